"""Verifiers by name. Nothing heavy is imported until one is made:

    verifier = create("shapes_clip")
    verifier = create("clip_score", folder="models/verifiers/openai--clip-vit-large-patch14")

Options are those of the verifier's class.
"""

from __future__ import annotations

from collections.abc import Callable

from ..samplers.protocols import Verifier
from .base import VerifierError

Factory = Callable[..., Verifier]

_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Decorator: make a factory available under ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def add(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise ValueError(f"a verifier named {name!r} is registered already")
        _FACTORIES[name] = factory
        return factory

    return add


def names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_FACTORIES)


def create(name: str, precision: str | None = None, **options) -> Verifier:
    """Make the verifier ``name`` with its constructor's ``options``.

    Args:
        precision: "fp32", "fp16" or "bf16" for its towers, None leaves them as loaded (float32 for most).

    Raises:
        VerifierError: unknown name, or options that it does not have.
    """
    if name not in _FACTORIES:
        raise VerifierError(f"there is no verifier {name!r}: choose one of {', '.join(names())}")
    try:
        verifier = _FACTORIES[name](**options)
    except TypeError as error:
        if not options:
            raise
        raise VerifierError(f"verifier {name!r} cannot be made with {options}: {error}") from error
    if precision is not None:
        from .precision import set_precision

        set_precision(verifier, precision)
    return verifier


@register("shapes_clip")
def _shapes_clip(**options) -> Verifier:
    from .embedded import ShapesCLIPVerifier

    return ShapesCLIPVerifier(**options)


@register("shapes_preference")
def _shapes_preference(**options) -> Verifier:
    from .embedded import ShapesPreferenceVerifier

    return ShapesPreferenceVerifier(**options)


@register("clip_score")
def _clip_score(folder, **options) -> Verifier:
    from .image_text.clip_score import load_clip_score_folder

    return load_clip_score_folder(folder, **options)


@register("pickscore")
def _pickscore(folder, **options) -> Verifier:
    from .preference.clip_rewards import load_pickscore

    return load_pickscore(folder, **options)


@register("hps_v2_1")
def _hps(file, tokenizer, **options) -> Verifier:
    from .preference.clip_rewards import load_hps

    return load_hps(file, tokenizer, **options)


@register("image_reward")
def _image_reward(file, tokenizer, **options) -> Verifier:
    from .preference.image_reward import load_image_reward

    return load_image_reward(file, tokenizer, **options)


@register("laion_aesthetic")
def _laion_aesthetic(clip, head, **options) -> Verifier:
    from .aesthetic.predictors import load_laion_aesthetic

    return load_laion_aesthetic(clip, head, **options)


@register("aesthetic_v25")
def _aesthetic_v25(siglip, head, **options) -> Verifier:
    from .aesthetic.predictors import load_aesthetic_v25

    return load_aesthetic_v25(siglip, head, **options)


@register("similarity")
def _similarity(folder, references, **options) -> Verifier:
    from .image_image.similarity import load_similarity

    return load_similarity(folder, references, **options)


@register("preservation")
def _preservation(**options) -> Verifier:
    from .image_image.preservation import PreservationVerifier

    return PreservationVerifier(**options)


@register("vqa_score")
def _vqa_score(folder, **options) -> Verifier:
    from .vlm.vqa_score import load_vqa_score

    return load_vqa_score(folder, **options)


@register("vqa_flant5")
def _vqa_flant5(folder, **options) -> Verifier:
    from .vlm.flan_t5 import load_clip_flant5

    return load_clip_flant5(folder, **options)


@register("vlm_judge")
def _vlm_judge(folder, **options) -> Verifier:
    from .vlm.judge import load_vlm_judge

    return load_vlm_judge(folder, **options)


@register("edit_judge")
def _edit_judge(folder, longest=512, **options) -> Verifier:
    from .vlm.edit import load_edit_judge

    return load_edit_judge(folder, longest, **options)


@register("vlm_endpoint")
def _vlm_endpoint(url, model, **options) -> Verifier:
    from .vlm.endpoint import endpoint_judge

    return endpoint_judge(url, model, **options)


@register("objects")
def _objects(folder, **options) -> Verifier:
    from .objects.verifier import load_objects

    return load_objects(folder, **options)


@register("jpeg_compressibility")
def _jpeg_compressibility(**options) -> Verifier:
    from .aesthetic.jpeg import JPEGVerifier

    return JPEGVerifier("compressibility", **options)


@register("jpeg_incompressibility")
def _jpeg_incompressibility(**options) -> Verifier:
    from .aesthetic.jpeg import JPEGVerifier

    return JPEGVerifier("incompressibility", **options)


@register("motion")
def _motion(**options) -> Verifier:
    from .video.motion import MotionVerifier

    return MotionVerifier(**options)


@register("frames")
def _frames(verifier: str | Verifier, which="uniform", count=5, how="mean", longest=512, **options) -> Verifier:
    from .video.frames import FramesVerifier

    inner = create(verifier, **options) if isinstance(verifier, str) else verifier
    return FramesVerifier(inner, which, count, how, longest)


@register("hps_v3")
def _hps_v3(folder, base) -> Verifier:
    from .preference.hps_v3 import load_hps_v3

    return load_hps_v3(folder, base)


@register("video_reward")
def _video_reward(folder, base, **options) -> Verifier:
    from .video.video_reward_files import load_video_reward

    return load_video_reward(folder, base, **options)
