"""Reference answers of L02, the solutions of its page."""

import torch
import torch.nn.functional as F


def lookup(table, idx):
    one_hot = F.one_hot(idx, len(table)).to(table.dtype)  # (B, T, V)
    return one_hot @ table


def sinusoidal_table(length, width, base=10_000.0):
    frequencies = base ** (-torch.arange(0, width, 2) / width)  # (width / 2,)
    angles = torch.outer(torch.arange(length).float(), frequencies)  # (length, width / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
