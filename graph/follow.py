"""What surrounds a sampler in an API-format workflow: the VAE behind it, what it makes, and the text that it is given.

Everything goes by the types of inputs and outputs in the server's definitions, so nodes of any pack are followed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..installation.errors import BadInput
from .check import specs_of
from .workflow import is_link, label_of

Source = tuple[str, int]
"""(node, output slot)."""
FRAMES = ("length", "num_frames", "video_frames", "frames", "frame_count", "n_frames")
"""What nodes that make latents of videos call the number of frames."""
PROMPT_NAMES = ("prompt", "text", "user_prompt", "t5xxl", "text_g", "llama", "clip_l", "clip_g", "text_l")
NO_PROMPTS = ("system", "negative", "template", "name")
MAKES = {"AUDIO": "sound", "VOXEL": "a mesh", "MESH": "a mesh", "VIDEO": "a video", "SPLAT": "a splat"}
MAPPERS = ("LotusConditioning",)
"""Conditionings of models that turn a picture into a map of it, in a way that searches refuse."""
LONGEST = 4000
"""Links that are followed from one node, against workflows that run in circles."""


@dataclass(frozen=True)
class Text:
    """A prompt that feeds a conditioning: where it is written, and its value or the link that feeds it."""

    node: str
    name: str
    value: Any


class Flow:
    """The links of an API-format workflow, in both directions.

    Args:
        workflow: API format. object_info: definitions; of unknown classes as much as the file tells of them.
    """

    def __init__(self, workflow: dict, object_info: dict):
        self.workflow = workflow
        self.object_info = object_info

    @cached_property
    def consumers(self) -> dict[Source, list[tuple[str, str]]]:
        """Output -> (node, input) of everything that takes it."""
        found: dict[Source, list[tuple[str, str]]] = {}
        for key, node in self.workflow.items():
            for name, value in node["inputs"].items():
                if is_link(value):
                    found.setdefault((value[0], value[1]), []).append((key, name))
        return found

    def kinds(self, key: str) -> dict[str, str]:
        """Type of every input of a node."""
        node = self.workflow[key]
        info = self.object_info.get(node["class_type"], {})
        specs = specs_of(info, node["inputs"])
        found = {name: _plain(spec[0]) for name, spec in specs.items()}
        for name, value in node["inputs"].items():  # growing inputs, such as values.a, are in no definition
            if name not in found and is_link(value):
                found[name] = self.kind_of(value)
        return found

    def outputs(self, key: str) -> list[str]:
        """Types of the outputs of a node."""
        info = self.object_info.get(self.workflow[key]["class_type"], {})
        return [_plain(kind) for kind in info.get("output") or []]

    def kind_of(self, source: Source) -> str:
        """Type of an output; a wildcard is taken for what feeds its node."""
        if source[0] not in self.workflow:
            return "*"
        outputs = self.outputs(source[0])
        return outputs[source[1]] if 0 <= source[1] < len(outputs) else "*"

    def link(self, key: str, name: str) -> Source | None:
        """What feeds an input, None where it is a value or nothing."""
        value = self.workflow[key]["inputs"].get(name)
        return (value[0], value[1]) if is_link(value) and value[0] in self.workflow else None

    def links_in(self, key: str, kind: str) -> dict[str, Source]:
        """Linked inputs of a node that carry a type, wildcards included when what feeds them has it."""
        found = {}
        for name, expected in self.kinds(key).items():
            source = self.link(key, name)
            if source is not None and kind in (expected, *self.kind_of(source).split(",")):
                found[name] = source
        return found

    def label(self, key: str) -> str:
        """How messages name a node."""
        return label_of(key, self.workflow[key], self.object_info)


def _plain(kind: Any) -> str:
    """A type as one word: that of drop-downs, and the wildcard for types that follow what is linked."""
    if not isinstance(kind, str):
        return "COMBO"
    return "*" if kind.startswith("COMFY_MATCHTYPE") else kind


def decoder_of(flow: Flow, sampler: str) -> tuple[str, str]:
    """(node, its input for the VAE) of the nearest decoder that a sampler's latent reaches.

    Raises:
        BadInput: no latent of the sampler meets a VAE, or what comes out is no image.
    """
    waiting = deque((sampler, slot) for slot, kind in enumerate(flow.outputs(sampler)) if kind == "LATENT")
    seen = set(waiting)
    unknown: list[str] = []
    last = ""
    while waiting and len(seen) < LONGEST:
        for key, _ in flow.consumers.get(waiting.popleft(), ()):
            outputs = flow.outputs(key)
            vae = next(iter(flow.links_in(key, "VAE")), None)
            other = next((MAKES[kind] for kind in outputs if kind in MAKES), None)
            if other is not None and "IMAGE" not in outputs:
                last = last or other
            elif vae is not None and "IMAGE" in outputs:
                return key, vae
            elif not outputs and flow.workflow[key]["class_type"] not in flow.object_info:
                unknown.append(flow.label(key))
            for slot, kind in enumerate(outputs):
                if kind in ("LATENT", "*") and (key, slot) not in seen:
                    seen.add((key, slot))
                    waiting.append((key, slot))
    if last:
        raise BadInput(f"{flow.label(sampler)} makes {last}: searches compare images")
    if unknown:
        raise BadInput(
            f"{flow.label(sampler)}: its latent goes to {unknown[0]}, which this ComfyUI does not know, so the VAE "
            "cannot be found"
        )
    raise BadInput(
        f"{flow.label(sampler)}: its latent never meets a VAE. A verifier judges pictures: connect a VAE Decode"
    )


def check_makes_images(flow: Flow, sampler: str, decoder: str) -> None:
    """Raise ``BadInput`` where a sampler makes a video: a search would make many of them; or a map of an image."""
    positive = positive_of(flow, sampler)
    if positive is not None and flow.workflow.get(positive[0], {}).get("class_type") in MAPPERS:
        raise BadInput(
            f"{flow.label(sampler)} makes a map of depths or normals with Lotus, which goes straight from one image to "
            "another: searches cannot steer it"
        )
    frames = _frames(flow, sampler)
    if frames == 1:
        return
    if frames is not None or _becomes_a_video(flow, decoder):
        told = f" of {frames} frames" if isinstance(frames, int) and frames > 1 else ""
        raise BadInput(
            f"{flow.label(sampler)} makes a video{told}: this replaces samplers of images. For videos connect "
            "Search KSampler or Search Sampler by hand, and read what each candidate costs first"
        )


def _frames(flow: Flow, sampler: str) -> int | str | None:
    """Frames of the latent that a sampler begins with; "some" for an unknown number, None for no sign of any."""
    waiting, seen = deque(flow.links_in(sampler, "LATENT").values()), set()
    while waiting and len(seen) < LONGEST:
        key = waiting.popleft()[0]
        if key in seen:
            continue
        seen.add(key)
        inputs, kinds = flow.workflow[key]["inputs"], flow.kinds(key)
        for name in FRAMES:
            if name in inputs and kinds.get(name) in ("INT", "*"):
                value = _constant(flow, inputs[name])
                return value if isinstance(value, int) else "some"
        waiting.extend(flow.links_in(key, "LATENT").values())
    return None


def _constant(flow: Flow, value: Any, depth: int = 0) -> Any:
    """The value of an input, past nodes that hold one value; None where only a run can tell."""
    if not is_link(value):
        return value
    if value[0] not in flow.workflow or depth > 8:
        return None
    inputs = flow.workflow[value[0]]["inputs"]
    outputs = flow.outputs(value[0])
    return _constant(flow, next(iter(inputs.values())), depth + 1) if len(inputs) == len(outputs) == 1 else None


def _becomes_a_video(flow: Flow, decoder: str) -> bool:
    """Whether decoded images go into a video or an animation, as they are or by way of other images."""
    waiting = deque((decoder, slot) for slot, kind in enumerate(flow.outputs(decoder)) if kind == "IMAGE")
    seen = set(waiting)
    while waiting and len(seen) < LONGEST:
        for key, _ in flow.consumers.get(waiting.popleft(), ()):
            kind, outputs = flow.workflow[key]["class_type"], flow.outputs(key)
            if "VIDEO" in outputs or any(word in kind for word in ("Animated", "WEBM", "SaveVideo", "VideoCombine")):
                return True
            for slot, output in enumerate(outputs):
                if output in ("IMAGE", "*") and (key, slot) not in seen:
                    seen.add((key, slot))
                    waiting.append((key, slot))
    return False


def positive_of(flow: Flow, sampler: str) -> Source | None:
    """The conditioning that a sampler (or its guider) is steered towards."""
    key, seen = sampler, set()
    while key not in seen:
        seen.add(key)
        conditionings = flow.links_in(key, "CONDITIONING")
        wanted = [name for name in conditionings if "negative" not in name.lower()]
        if wanted:
            return conditionings[next((name for name in wanted if "positive" in name.lower()), wanted[0])]
        guiders = flow.links_in(key, "GUIDER")
        if guiders:
            key = next(iter(guiders.values()))[0]
    return None


def prompts_of(flow: Flow, source: Source | None) -> list[Text]:
    """The texts behind a conditioning, in the order in which they are combined, each once; some may be empty."""
    found: list[Text] = []
    seen: set[Source] = set()

    def walk(origin: Source) -> None:
        if origin in seen or len(seen) > LONGEST:
            return
        seen.add(origin)
        key, slot = origin
        conditionings = flow.links_in(key, "CONDITIONING")
        if conditionings:
            for name in _same_side(flow, key, slot, conditionings):
                walk(conditionings[name])
            return
        text = _text_of(flow, key)
        if text is not None and all(text.value != other.value for other in found):
            found.append(text)

    if source is not None:
        walk(source)
    return found


def _same_side(flow: Flow, key: str, slot: int, conditionings: dict[str, Source]) -> list[str]:
    """Of the conditionings that go into a node, those that its output ``slot`` is made of."""
    info = flow.object_info.get(flow.workflow[key]["class_type"], {})
    if flow.outputs(key)[slot : slot + 1] == ["*"]:  # a switch: one of its inputs, by a value if it has one
        inputs = flow.workflow[key]["inputs"].values()
        known = (_constant(flow, value) for value in inputs)
        value = next((str(value).lower() for value in known if isinstance(value, bool)), "")
        return [name for name in conditionings if value and value in name.lower()] or list(conditionings)[:1]
    names = info.get("output_name") or []
    own = str(names[slot]).lower() if 0 <= slot < len(names) else ""
    for side in ("positive", "negative"):
        same = [name for name in conditionings if side in name.lower()]
        if side in own and same:
            return same
    return [name for name in conditionings if "negative" not in name.lower()] or list(conditionings)


def _text_of(flow: Flow, key: str) -> Text | None:
    """What a text encoder encodes; of several texts the longest, of links the one that is named most like a prompt."""
    inputs = flow.workflow[key]["inputs"]
    names = [
        name
        for name, kind in flow.kinds(key).items()
        if kind == "STRING" and name in inputs and not any(word in name.lower() for word in NO_PROMPTS)
    ]
    if not names:
        return None
    linked = [name for name in names if is_link(inputs[name])]
    if linked or not any(inputs[name] for name in names):  # an empty text may still come from somewhere
        names = linked or names
        best = min(names, key=lambda name: PROMPT_NAMES.index(name) if name in PROMPT_NAMES else len(PROMPT_NAMES))
    else:
        best = max(names, key=lambda name: len(str(inputs[name])))
    return Text(key, best, inputs[best])


def written(flow: Flow, text: Text) -> str | None:
    """A prompt as it is written somewhere in the workflow; None where only a run can tell."""
    value = _constant(flow, text.value)
    return value if isinstance(value, str) else None
