"""Wrong answers of L02. `<exercise>__<misconception>`: the docstring is in the check's message."""

import torch
import torch.nn.functional as F


def lookup__indexes(table, idx):
    """the table is indexed"""
    return table[idx]


def lookup__counts_the_ids_that_occur(table, idx):
    """it stops with RuntimeError"""
    return F.one_hot(idx).to(table.dtype) @ table


def lookup__whole_numbers(table, idx):
    """it stops with RuntimeError"""
    return F.one_hot(idx, len(table)) @ table


def lookup__always_float32(table, idx):
    """it stops with RuntimeError"""
    return F.one_hot(idx, len(table)).float() @ table


def lookup__one_too_far(table, idx):
    """row i of the table"""
    return F.one_hot((idx + 1) % len(table), len(table)).to(table.dtype) @ table


def lookup__flat(table, idx):
    """the result has shape"""
    return F.one_hot(idx.flatten(), len(table)).to(table.dtype) @ table


def _angles(length, width, base, start=0, share=1.0):
    i = torch.arange(0, width, 2)
    return torch.outer(torch.arange(start, length + start).float(), base ** (-share * i / width))


def sinusoidal_table__halves(length, width, base=10_000.0):
    """all sines come first"""
    angles = _angles(length, width, base)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def sinusoidal_table__cosine_first(length, width, base=10_000.0):
    """the sine goes to the even columns"""
    angles = _angles(length, width, base)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(1)


def sinusoidal_table__from_one(length, width, base=10_000.0):
    """positions count from 0"""
    angles = _angles(length, width, base, start=1)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_table__half_the_exponent(length, width, base=10_000.0):
    """the exponent is half"""
    angles = _angles(length, width, base, share=0.5)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_table__twice_the_exponent(length, width, base=10_000.0):
    """the exponent is twice"""
    angles = _angles(length, width, base, share=2.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_table__growing(length, width, base=10_000.0):
    """the frequencies grow"""
    angles = _angles(length, width, base, share=-1.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_table__ignores_the_base(length, width, base=10_000.0):
    """for base=50"""
    angles = _angles(length, width, 10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotate__other_way_round(x, cos, sin):
    """the other way round"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def rotate__two_differences(x, cos, sin):
    """the other way round"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos - a * sin), dim=-1)


def rotate__two_sums(x, cos, sin):
    """a rotation keeps it"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos + a * sin), dim=-1)


def rotate__interleaved(x, cos, sin):
    """the interleaved layout"""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def rotate__halves_swapped(x, cos, sin):
    """is (0, 1), not"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((b * cos + a * sin, a * cos - b * sin), dim=-1)


def rotate__in_place(x, cos, sin):
    """changes its argument `x` in place"""
    a, b = x.chunk(2, dim=-1)
    old = a.clone()
    a.copy_(a * cos - b * sin)
    b.copy_(b * cos + old * sin)
    return x


def rotate__first_row_of_positions(x, cos, sin):
    """let the angles broadcast"""
    if cos.dim() > 2:
        cos, sin = cos[0], sin[0]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
