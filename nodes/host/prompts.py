"""Prompts of particles inside the host: encoded with the user's CLIP, one conditioning per prompt, mixed in one call.

The user's positive conditioning stays what it is; a particle's own prompt replaces the text in it (tokens, pooled
output and whatever else the encoder gives) and leaves areas, masks, ControlNets, guidance and timing alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.protocols import SearchError
from .conditioning import Conds, GroupConditioning, batch_of, take_rows
from .experts import LOW

Entries = list[dict[str, Any]]

KEPT = 64
POSITIVE = "positive"
_PLACED = ("area", "mask")
# Keys of an encoding that belong to hooks, which the user's conditioning already has.
_NOT_TEXT = ("hooks", "clip_start_percent", "clip_end_percent")


class ClipEncoder:
    """Encodings of prompts by a ComfyUI CLIP, the latest ``KEPT`` of them.

    Args:
        clip: any ComfyUI text encoder.

    Raises:
        SearchError: no CLIP.
    """

    def __init__(self, clip: Any):
        if clip is None:
            raise SearchError("clip is missing: connect the model's text encoder, new prompts have to be encoded")
        self.clip = clip
        self._kept: OrderedDict[str, tuple[Tensor, dict[str, Any]]] = OrderedDict()

    def __call__(self, text: str) -> tuple[Tensor, dict[str, Any]]:
        """(tokens ``[1, L, W]``, further outputs) of a prompt, as CLIPTextEncode makes them."""
        if text not in self._kept:
            (encoded, *more) = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            if more:
                raise SearchError("clip has hooks with a schedule: prompts of a search need one encoding each")
            self._kept[text] = (encoded[0], {k: v for k, v in encoded[1].items() if k not in _NOT_TEXT})
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return self._kept[text]


class PromptConditions:
    """The positive conditioning of a sampling run under other prompts.

    Args:
        encoder: see ``ClipEncoder``.
        call: the ``SamplingCall``.
        leave: called before the text encoder may be loaded.
    """

    def __init__(self, encoder: ClipEncoder, call: Any, leave):
        self._encoder, self._call, self._leave = encoder, call, leave
        self._kept: OrderedDict[str, dict[str, Entries]] = OrderedDict()
        conds = getattr(call.guider, "conds", None) or {}
        if POSITIVE not in conds:
            raise SearchError("the guider has no positive conditioning: prompts can only be rewritten under CFGGuider")
        if all(any(key in entry for key in _PLACED) for entry in conds[POSITIVE]):
            raise SearchError(
                "positive conditioning has areas or masks only: rewrites are of the whole prompt, add one without"
            )
        # Where two models share the schedule, each has processed the conditioning for itself.
        self._models = {POSITIVE: call.model}
        if LOW + POSITIVE in conds:
            self._models[LOW + POSITIVE] = call.guider.low_model
        self._own = {name: conds[name] for name in self._models}

    def encode(self, texts: Sequence[str]) -> None:
        """Encode prompts together, so that the text encoder is loaded once."""
        new = [text for text in texts if text not in self._kept]
        if new:
            self._leave()
        for text in new:
            self._kept[text] = {
                name: [self._entry(entry, text, self._models[name]) for entry in entries]
                for name, entries in self._own.items()
            }
        while len(self._kept) > max(KEPT, len(texts)):
            self._kept.popitem(last=False)

    def entries(self, text: str | None) -> dict[str, Entries]:
        """Processed positive entries under a prompt, of every model that makes steps; None for the user's own."""
        if text is None:
            return self._own
        if text not in self._kept:
            self.encode([text])
        self._kept.move_to_end(text)
        return self._kept[text]

    def _entry(self, entry: dict[str, Any], text: str, model: Any) -> dict[str, Any]:
        """A processed entry of ``model`` with another text; entries with a place keep theirs."""
        if any(key in entry for key in _PLACED):
            return entry
        tokens, outputs = self._encoder(text)
        call = self._call
        kept = {key: value for key, value in entry.items() if key not in ("attention_mask", "pooled_output")}
        changed = {**kept, **outputs, "cross_attn": tokens, "model_conds": self._given(entry)}
        (made,) = comfy.samplers.encode_model_conds(
            model.extra_conds,
            [changed],
            call.noise,
            call.noise.device,
            POSITIVE,
            latent_image=call.latent_image,
            denoise_mask=call.denoise_mask,
            seed=call.seed,
            latent_shapes=[call.noise.shape],
        )
        return made

    def _given(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Model conditions that came with the user's conditioning, before the model added its own."""
        originals = getattr(self._call.guider, "original_conds", {}).get(POSITIVE, [])
        found = next((raw for raw in originals if raw.get("uuid") == entry.get("uuid")), {})
        return dict(found.get("model_conds", {}))

    def calls(
        self, conditioning: GroupConditioning, group: Tensor, prompts: Sequence[str | None]
    ) -> Iterator[tuple[Tensor, Conds]]:
        """Split particles into calls whose conditions ComfyUI itself would put into one batch.

        Yields:
            (rows int64, conditions for them). Texts of different token length share a call where the host's own rule
            allows it (cross-attention, whose tokens may be repeated), and are run in separate calls where it does not.
        """
        rows_of = [_Row(self.entries(text), int(g)) for text, g in zip(prompts, group.tolist(), strict=True)]
        buckets: list[list[int]] = []
        for index, row in enumerate(rows_of):
            home = next((bucket for bucket in buckets if rows_of[bucket[0]].goes_with(row)), None)
            if home is None:
                buckets.append([index])
            else:
                home.append(index)
        for bucket in buckets:
            rows = torch.tensor(bucket)
            mixed = _mixed([rows_of[index] for index in bucket], group[rows])
            named, place = {}, 0
            for name, entries in self._own.items():
                named[name] = mixed[place : place + len(entries)]
                place += len(entries)
            yield rows, {**conditioning.gather(group[rows]), **named}


class _Row:
    """The positive entries of one particle, of all models in a row, every model condition of batch one."""

    def __init__(self, named: dict[str, Entries], group: int):
        self.entries = entries = [entry for one in named.values() for entry in one]
        only = torch.tensor([group])
        self.conds = [
            {key: take_rows(value, only) if batch_of(value) > 1 else value for key, value in e["model_conds"].items()}
            for e in entries
        ]

    def goes_with(self, other: _Row) -> bool:
        """Whether the host would concatenate the two."""
        for mine, theirs in zip(self.conds, other.conds, strict=True):
            if mine.keys() != theirs.keys() or not all(mine[key].can_concat(theirs[key]) for key in mine):
                return False
        return True


def _mixed(rows: list[_Row], group: Tensor) -> list[dict[str, Any]]:
    """Entries with one row per particle."""
    first, *others = rows
    mixed = []
    for place, entry in enumerate(first.entries):
        entry = entry.copy()
        entry["model_conds"] = {
            key: value._copy_with(value.concat([row.conds[place][key] for row in others]))
            for key, value in first.conds[place].items()
        }
        if "mask" in entry and entry["mask"].shape[0] > 1:
            entry["mask"] = entry["mask"][(group % entry["mask"].shape[0]).to(entry["mask"].device)]
        mixed.append(entry)
    return mixed
