"""Checks of L02: lookup as a product, sinusoidal positions, rotation."""

import math

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from course_lib.checks import Check
from course_lib.checks.tools import close, devices, is_tensor, randint, randn

LOOKUPS = {"__getitem__", "embedding", "gather", "index_select", "take_along_dim", "take"}


class _UsesOf(TorchFunctionMode):
    """Writes down the names of the functions that are given a certain tensor."""

    def __init__(self, tensor):
        super().__init__()
        self.tensor, self.names = tensor, set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if any(part is self.tensor for part in (*args, *(kwargs or {}).values())):
            self.names.add(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@Check
def check_lookup(fn):
    """Values against the embedding of PyTorch, for several shapes; and that a product made them."""
    table = randn(0, 7, 3)
    for shape in ((4,), (2, 5), (2, 3, 2), (1, 1)):
        idx = randint(len(shape), 5, *shape)  # the last ids never occur
        with _UsesOf(table) as uses:
            got = fn(table, idx)
        is_tensor(got, (*shape, 3), table.dtype)
        assert close(got, F.embedding(idx, table)), "the vector of id i is row i of the table"
        assert not uses.names & LOOKUPS, (
            "the table is indexed: build one-hot rows and multiply, as a product"
        )
    for dtype in (torch.float64, torch.bfloat16):
        got = fn(table.to(dtype), torch.tensor([[6, 0]]))
        is_tensor(got, (1, 2, 3), dtype)
        assert close(got, table.to(dtype)[[6, 0]][None]), f"wrong in {dtype}"
    for device in devices():
        got = fn(table.to(device), torch.tensor([2], device=device))
        assert got.device.type == device, "the result must stay on the device of the table"
    learned = randn(1, 4, 2).requires_grad_()
    out = fn(learned, torch.tensor([1, 1, 3]))
    assert out.requires_grad, "no gradient reaches the table: it could not be trained"
    out.sum().backward()
    assert close(learned.grad[:, 0], torch.tensor([0.0, 2.0, 0.0, 1.0])), "the gradient is wrong"


@Check
def check_sinusoidal_table(fn):
    """Hand values, every entry from `math`, and dot products that depend on the distance alone."""
    got = fn(3, 4)
    is_tensor(got, (3, 4))
    first = got[0]
    assert not close(first, torch.tensor([0.0, 0.0, 1.0, 1.0])), (
        "all sines come first: sines and cosines take turns, column by column"
    )
    assert not close(first, torch.tensor([1.0, 0.0, 1.0, 0.0])), (
        "the sine goes to the even columns, the cosine to the odd ones"
    )
    assert close(first, torch.tensor([0.0, 1.0, 0.0, 1.0])), (
        f"position 0 must be [0, 1, 0, 1], not {[round(v, 3) for v in first.tolist()]}: "
        f"positions count from 0"
    )
    assert close(got[1, :2], torch.tensor([math.sin(1), math.cos(1)])), (
        "the first pair turns by one radian a position: f_0 is 1"
    )
    assert not close(got[1, 2], torch.tensor(math.sin(100.0))), (
        "the frequencies grow: they must fall, the exponent is negative"
    )
    assert not close(got[1, 2], torch.tensor(math.sin(10_000**-0.25))), (
        "the exponent is half of what it should be: -2 i / width, with i counting pairs"
    )
    assert not close(got[1, 2], torch.tensor(math.sin(10_000**-1.0))), (
        "the exponent is twice what it should be: -2 i / width, with i counting pairs"
    )
    for length, width, base in ((3, 4, 1e4), (7, 10, 1e4), (5, 2, 1e4), (6, 8, 50.0), (1, 6, 7.0)):
        got = fn(length, width, base)
        is_tensor(got, (length, width))
        assert got.dtype == torch.float32, f"the table is {got.dtype}: make it float32"
        for t in range(length):
            for c in range(width):
                angle = t * base ** (-(c // 2) * 2 / width)
                want = math.cos(angle) if c % 2 else math.sin(angle)
                assert abs(got[t, c].item() - want) < 1e-5, (
                    f"column {c} of position {t} is wrong for base={base:g}, width={width}: "
                    f"{got[t, c].item():.4f} instead of {want:.4f}"
                )
    table = fn(40, 16).double()
    dots = table @ table.T
    assert close(dots[3, 8], dots[20, 25], 1e-4), "dot products must depend on the distance alone"


def _angles(positions, d, theta=100.0):
    angles = positions[..., None].double() * theta ** (-torch.arange(d // 2).double() * 2 / d)
    return angles.cos(), angles.sin()


@Check
def check_rotate(fn):
    """A turn by hand, complex numbers as the oracle, and the relative-offset property."""
    quarter = fn(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    is_tensor(quarter, (1, 1, 1, 2))
    assert not close(quarter.flatten(), torch.tensor([0.0, -1.0])), (
        "it turns the other way round: (1, 0) by 90 degrees is (0, 1). Check the signs"
    )
    assert close(quarter.flatten(), torch.tensor([0.0, 1.0])), (
        f"(1, 0) turned by 90 degrees is (0, 1), not {quarter.flatten().tolist()}"
    )
    for shape, dtype in (((2, 3, 5, 8), torch.float64), ((1, 1, 4, 6), torch.float32)):
        x = randn(0, *shape, dtype=dtype)
        cos, sin = (part.to(dtype) for part in _angles(torch.arange(shape[2]), shape[3]))
        got = fn(x, cos, sin)
        is_tensor(got, shape, dtype)
        assert close(got.norm(dim=-1), x.norm(dim=-1), 1e-4), (
            "the length of a vector changes: a rotation keeps it. One of the two sums is a "
            "difference"
        )
        assert not close(got, _turn(x, cos, sin, interleaved=True)), (
            "that is the interleaved layout (0 with 1, 2 with 3): here i turns with i + d / 2"
        )
        assert not close(got, _turn(x, cos, -sin)), "it turns the other way round: check the signs"
        assert close(got, _turn(x, cos, sin)), (
            "i must turn with i + d / 2, and the halves come back in their old order"
        )
    _check_offsets(fn)


def _turn(x, cos, sin, interleaved=False):
    """The same by complex numbers."""
    half = x.unflatten(-1, (-1, 2)).mT if interleaved else x.unflatten(-1, (2, -1))
    turned = torch.complex(half[..., 0, :], half[..., 1, :]) * torch.complex(cos, sin)
    parts = torch.stack((turned.real, turned.imag), dim=-1)
    return parts.flatten(-2) if interleaved else parts.mT.flatten(-2)


def _check_offsets(fn):
    """Only distances count; and each row of a batch may have positions of its own."""
    q, k = randn(1, 1, 1, 1, 8, dtype=torch.float64), randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def dot(m, n):
        at = [_angles(torch.tensor([place]), 8) for place in (m, n)]
        return (fn(q, *at[0]) * fn(k, *at[1])).sum()

    assert close(dot(3, 1), dot(12, 10), 1e-6), "the product must depend on the distance alone"
    x = randn(3, 2, 3, 4, 8, dtype=torch.float64)
    cos, sin = _angles(torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]]), 8)
    got = fn(x, cos[:, None], sin[:, None])
    is_tensor(got, x.shape, x.dtype)
    assert close(got[1:], _turn(x[1:], *_angles(torch.arange(5, 9), 8))), (
        "with positions by row, (B, 1, T, d / 2), the second row is wrong: let the angles broadcast"
    )
