"""Stands in for torchvision, which adv-lib imports for its LPIPS distance only; nothing here is ever called.

The CPU build of torch has no matching torchvision here, and no attack that is compared needs one.
"""

from types import SimpleNamespace

__version__ = "0.0.0+stub"
models = SimpleNamespace()
