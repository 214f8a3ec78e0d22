"""What a network said of an image is kept for the rest of the run, found again by the image's content.

Searches show a judge the same picture more than once: members of an ensemble with the same tower, finalists that are
scored again, copies after a resampling. The key is the content, so nothing has to know where a picture came from.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..samplers.processes.chunking import Chunker


def digest(row: Tensor) -> bytes:
    """16 bytes that name a tensor's content, shape and type."""
    row = row.detach().contiguous().cpu()
    hasher = hashlib.blake2b(row.view(torch.uint8).numpy().tobytes(), digest_size=16)
    hasher.update(repr((tuple(row.shape), str(row.dtype))).encode())
    return hasher.digest()


class ImageCache:
    """Rows computed from images, least recently used dropped first. Calls with a graph of autograd pass through.

    Args:
        size: rows kept.
        batch: images per call of ``compute``; halved when memory runs out.
    """

    def __init__(self, size: int = 512, batch: int | None = 32):
        self._size, self.chunker = size, Chunker(batch)
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def clear(self) -> None:
        """Forget everything, e.g. because the weights' precision changed."""
        self._kept.clear()

    def __call__(
        self, images: Tensor, compute: Callable[[Tensor], Tensor], also: Sequence[Hashable] | None = None
    ) -> Tensor:
        """Rows ``[n, ...]`` of ``images [n, ...]``, in order, on the images' device.

        Args:
            compute: row numbers int64 ``[k]`` -> ``[k, ...]``, a row for each; called for what is not known.
            also: what else a row depends on, one per image (its prompt).
        """
        if torch.is_grad_enabled() and images.requires_grad:
            return compute(torch.arange(len(images)))
        keys = [(digest(row), None if also is None else also[index]) for index, row in enumerate(images)]
        missing = {key: index for index, key in reversed(list(enumerate(keys))) if key not in self._kept}
        rows = torch.tensor(sorted(missing.values()), dtype=torch.int64)
        fresh: dict[Hashable, Tensor] = {}
        if len(rows):
            with torch.no_grad():
                parts = self.chunker.map(lambda part: compute(rows[part]).cpu(), len(rows))
            fresh = {keys[row]: value for row, value in zip(rows.tolist(), torch.cat(parts), strict=True)}
        found = []
        for key in keys:
            row = fresh[key] if key in fresh else self._kept[key]
            found.append(row)
            if bool(torch.isfinite(row).all()):  # what failed may work the next time
                self._kept[key] = row
                self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        # stack copies, so a row that was made under inference mode can be saved for a backward pass outside of it
        return torch.stack(found).to(images.device)
