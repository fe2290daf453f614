"""The package's own kernels in C, compiled on first use; without a compiler everything runs on ATen's operations."""

from stochade.native.build import load as load
from stochade.native.build import status as status

__all__ = ["load", "status"]
