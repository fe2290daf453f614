"""Where chunks of examples come from: tensors, uint8 arrays and memory maps, `Images`, or a torch Dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stochade.errors import ImagesError, LabelsError


class Source:
    """Examples cut into fixed chunks; pixels are cast to float32 per chunk, so a large set never sits in memory
    as floats.

    Args:
        images: float tensor or array in [0,1]; uint8 array or memory map [N,C,H,W] (divided by 255); an object
            with `images[i:j] -> (pixels, labels)` such as `stochade.data.Images`; or a Dataset of (pixels, label).
        labels: [N] integers; None where `images` brings them.
        chunk: examples per chunk.
    """

    def __init__(self, images: Any, labels: Any = None, chunk: int = 100):
        self.images, self.chunk = images, chunk
        self._pairs = labels is None and not isinstance(images, Tensor | np.ndarray)
        if labels is None and not self._pairs:
            raise LabelsError("labels [N]", "None", "pass labels, or a data set that brings them")
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise ImagesError("a tensor, an array, Images or a Dataset with a length", type(images).__name__)
        self.labels = None if self._pairs else _labels(labels)
        if len(images) == 0:
            raise ImagesError("at least one image", "none", "check the filter that made this set")
        if self.labels is not None and len(self.labels) != len(images):
            raise LabelsError(f"labels [{len(images)}], one per image", f"shape {tuple(self.labels.shape)}")
        kind = getattr(images, "dtype", None)
        if isinstance(images, np.ndarray) and kind != np.uint8 and kind is not None and kind.kind != "f":
            raise ImagesError("uint8 or float arrays", f"dtype {kind}", "cast to uint8 (0..255) or float (0..1)")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def chunks(self) -> int:
        return -(-len(self) // self.chunk)

    def rows(self, index: int) -> range:
        return range(index * self.chunk, min((index + 1) * self.chunk, len(self)))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Chunk `index`: float images and int64 labels."""
        rows = self.rows(index)
        if self._pairs:
            return self._from_pairs(rows)
        assert self.labels is not None
        part = self.images[rows.start : rows.stop]
        y = self.labels[rows.start : rows.stop]
        if isinstance(part, np.ndarray):
            if part.dtype == np.uint8:
                return torch.from_numpy(part.astype(np.float32) / 255), y
            return torch.from_numpy(np.array(part, dtype=np.float32)), y
        return part, y

    def _from_pairs(self, rows: range) -> tuple[Tensor, Tensor]:
        if hasattr(self.images, "pixels"):  # stochade.data.Images casts by itself
            x, y = self.images[rows.start : rows.stop]
            return torch.as_tensor(x), torch.as_tensor(y).long()
        items: Sequence = [self.images[i] for i in rows]
        return torch.stack([torch.as_tensor(x) for x, _ in items]), _labels([int(y) for _, y in items])


def _labels(labels: Any) -> Tensor:
    y = torch.as_tensor(labels)
    if y.is_floating_point() or y.dtype == torch.bool or y.dim() != 1:
        raise LabelsError(
            "integer labels [N]", f"{y.dtype} {tuple(y.shape)}", "use labels.long(); one-hot: argmax(1)"
        )
    return y.long()
