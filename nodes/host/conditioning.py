"""Conditioning per image under chunking and resampling.

ComfyUI matches a conditioning of batch ``b`` to a latent batch by position: row ``i`` takes entry ``i % b``. In a
search the rows of a call are particles in any order and number, so position says nothing. Every entry with more than
one row is therefore gathered by the *group* (the image a particle competes for) before each call; entries with one row
serve everybody and are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...samplers.protocols import SearchError

Conds = dict[str, list[dict[str, Any]]]


def batch_of(value: Any) -> int:
    """Rows of a processed condition (an object with ``.cond``); 1 for constants."""
    cond = getattr(value, "cond", None)
    if isinstance(cond, Tensor):
        return cond.shape[0] if cond.dim() else 1
    if isinstance(cond, list) and cond and isinstance(cond[0], Tensor):
        return max(item.shape[0] for item in cond)
    return 1


def take_rows(value: Any, group: Tensor) -> Any:
    """A processed condition with one row per particle."""
    cond = value.cond
    if isinstance(cond, list):
        return value._copy_with([_take(item, group) for item in cond])
    return value._copy_with(_take(cond, group))


def _take(tensor: Tensor, group: Tensor) -> Tensor:
    if tensor.shape[0] == 1:
        return tensor
    return tensor[(group % tensor.shape[0]).to(tensor.device)]


class GroupConditioning:
    """The conditions of a guider, ready to be gathered for any set of particles.

    Args:
        conds: the guider's processed conditions, ``{name: [cond dict]}``.
        groups: number of images G.

    Raises:
        SearchError: if a conditioning holds several entries and G is not a multiple of them, or a ControlNet holds
            several hints that G is no multiple of.
    """

    def __init__(self, conds: Conds, groups: int):
        self.conds = conds
        self.groups = groups
        self.per_group = False
        for name, entries in conds.items():
            for entry in entries:
                self._check(name, entry)
        self.controls = _multi_hint_controls(conds, groups)

    def _check(self, name: str, entry: dict[str, Any]) -> None:
        batches = {key: batch_of(value) for key, value in entry.get("model_conds", {}).items()}
        if "mask" in entry:
            batches["mask"] = entry["mask"].shape[0]
        for key, rows in batches.items():
            if rows == 1:
                continue
            self.per_group = True
            if rows > self.groups or self.groups % rows:
                raise SearchError(
                    f"{name} conditioning ({key}) has {rows} entries for a latent batch of {self.groups}: the latent "
                    f"batch must be a multiple of the number of prompts"
                )

    def gather(self, group: Tensor) -> Conds:
        """Conditions for particles of groups ``group`` int64 ``[n]``; the originals where nothing is per group."""
        if not self.per_group:
            return self.conds
        return {name: [self._entry(entry, group) for entry in entries] for name, entries in self.conds.items()}

    @staticmethod
    def _entry(entry: dict[str, Any], group: Tensor) -> dict[str, Any]:
        entry = entry.copy()
        model_conds = entry.get("model_conds", {})
        entry["model_conds"] = {
            key: take_rows(value, group) if batch_of(value) > 1 else value for key, value in model_conds.items()
        }
        if "mask" in entry and entry["mask"].shape[0] > 1:
            entry["mask"] = _take(entry["mask"], group)
        return entry

    def without_inference_tensors(self) -> GroupConditioning:
        """A copy whose tensors autograd may save. Call it with inference mode off."""
        copy = GroupConditioning.__new__(GroupConditioning)
        copy.groups, copy.per_group, copy.controls = self.groups, self.per_group, self.controls
        copy.conds = {name: [_thawed_entry(entry) for entry in entries] for name, entries in self.conds.items()}
        return copy

    def calls(self, group: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Split particles into calls that may share one: (rows int64, their groups).

        One call for all, unless a ControlNet holds a hint per image: its hint is one tensor per call, so these run
        image by image.
        """
        if not self.controls:
            yield torch.arange(len(group)), group
            return
        for g in group.unique().tolist():
            rows = torch.nonzero(group == g).flatten()
            yield rows, group[rows]

    @contextmanager
    def hints_of(self, group: Tensor):
        """Let every multi-hint ControlNet see only the hint of the (single) group in ``group``."""
        saved = []
        try:
            for control in [one for kept in self.controls for one in on_all_devices(kept)]:
                saved.append((control, control.cond_hint_original, control.cond_hint, control.extra_concat_orig))
                image = int(group[0])
                control.cond_hint_original = _row_of(control.cond_hint_original, image)
                control.extra_concat_orig = [_row_of(c, image) for c in control.extra_concat_orig]
                control.cond_hint = None
            yield
        finally:
            for control, original, hint, concat in saved:
                control.cond_hint_original, control.cond_hint, control.extra_concat_orig = original, hint, concat


def control_chain(control) -> Iterator[Any]:
    """A ControlNet and the ones chained before it."""
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def on_all_devices(control) -> list[Any]:
    """A ControlNet and its copies on other devices, where the host has made some."""
    return [control, *getattr(control, "multigpu_clones", {}).values()]


def _multi_hint_controls(conds: Conds, groups: int) -> list[Any]:
    found: dict[int, Any] = {}
    for entries in conds.values():
        for entry in entries:
            for control in control_chain(entry.get("control")):
                hint = getattr(control, "cond_hint_original", None)
                if not isinstance(hint, Tensor) or hint.shape[0] == 1:
                    continue
                if hint.shape[0] > groups or groups % hint.shape[0]:
                    raise SearchError(
                        f"a ControlNet has {hint.shape[0]} hint images for a latent batch of {groups}: the latent "
                        f"batch must be a multiple of the number of hints"
                    )
                found[id(control)] = control
    return list(found.values())


def _row_of(hints: Tensor, image: int) -> Tensor:
    """The hint ``[1, ...]`` of an image; fewer hints than images are repeated, as ComfyUI repeats prompts."""
    row = image % len(hints)
    return hints[row : row + 1]


def _thawed_entry(entry: dict[str, Any]) -> dict[str, Any]:
    entry = entry.copy()
    entry["model_conds"] = {key: _thawed(value) for key, value in entry.get("model_conds", {}).items()}
    for key, value in entry.items():
        if isinstance(value, Tensor):
            entry[key] = thaw_tensor(value)
    return entry


def _thawed(value: Any) -> Any:
    cond = getattr(value, "cond", None)
    if isinstance(cond, Tensor):
        return value._copy_with(thaw_tensor(cond))
    if isinstance(cond, list) and cond and isinstance(cond[0], Tensor):
        return value._copy_with([thaw_tensor(item) for item in cond])
    return value


def thaw_tensor(tensor: Tensor) -> Tensor:
    """``tensor`` itself, or a normal copy of an inference tensor (only useful with inference mode off)."""
    return tensor.clone() if tensor.is_inference() else tensor
