"""What the checks share: inputs that vary, and comparisons with a message."""

from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.checks import describe


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32, device="cpu") -> Tensor:
    """Normal numbers that depend on the seed alone: the global generator is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def randint(seed: int, high: int, *shape: int) -> Tensor:
    """Whole numbers from 0 to `high - 1`."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def devices() -> list[str]:
    """The devices of this machine, the CPU first."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def is_tensor(got, shape: Sequence[int], dtype: torch.dtype | None = None) -> None:
    """Assert that an answer is a tensor of this shape (and dtype) without NaN."""
    assert isinstance(got, Tensor), f"it returns {describe(got)}: return a tensor"
    assert tuple(got.shape) == tuple(shape), (
        f"the result has shape {tuple(got.shape)}: it must be {tuple(shape)}"
    )
    assert dtype is None or got.dtype == dtype, (
        f"the result is {got.dtype}: it must be {dtype}, as the input says"
    )
    assert not got.isnan().any(), "the result holds NaN (0/0, or infinity minus infinity)"


def close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> bool:
    """Are both equal up to rounding?"""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    return got.shape == want.shape and torch.allclose(got, want, rtol=tolerance, atol=tolerance)


def near(got: float | Tensor, want: float, tolerance: float = 1e-6) -> bool:
    """Are two numbers equal up to rounding?"""
    got = got.detach() if isinstance(got, Tensor) else got
    return abs(float(got) - want) <= tolerance * max(1.0, abs(want))
