"""Inputs that the samplers of searches share."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.plan import OUTPUTS
from .host.run import AUTO_ETA, FINISH, STOP
from .host.sampling_call import AUTO, BREADTH, DEPTH
from .types import SearchType, VerifierType


def common_inputs() -> list:
    """Inputs shared by Search Sampler and Search KSampler, from ``verifier`` on."""
    return [
        VerifierType.Input("verifier", tooltip="Scores previews and finished images; the search keeps the best."),
        io.Vae.Input("vae", tooltip="Decodes latents for the verifier."),
        SearchType.Input("search", tooltip="The search method: Best-of-N, SVDD, SMC, DAS, FK Steering, ..."),
        io.Float.Input(
            "eta",
            default=AUTO_ETA,
            min=AUTO_ETA,
            max=1.0,
            step=0.05,
            tooltip="Randomness of each step: 0 = none (as euler), 1 = full (as euler_ancestral; on flow models the "
            "flow's own SDE), -1 = auto: 0, or as much as a method that clones candidates needs; a sampler with noise "
            "of its own keeps it. The log says what was chosen.",
        ),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="What the image should show, for the verifier. The model follows `positive` and `negative`. If "
            "the verifier ignores prompts, any text will do.",
        ),
        VerifierType.Input(
            "held_out",
            optional=True,
            tooltip="A second verifier that only scores the results, so you can see whether the images got better or "
            "just the score.",
        ),
        io.Int.Input(
            "max_nfe",
            default=0,
            min=0,
            max=10_000_000,
            optional=True,
            tooltip="Stop after this many forward passes of the model (two per step and candidate with CFG) and "
            "return the best so far. 0 = no limit.",
        ),
        io.Float.Input(
            "max_seconds",
            default=0.0,
            min=0.0,
            max=1_000_000.0,
            step=1.0,
            optional=True,
            tooltip="Stop after this many seconds and return the best so far. 0 = no limit.",
        ),
        io.Combo.Input(
            "on_cancel",
            options=[STOP, FINISH],
            default=STOP,
            optional=True,
            tooltip="What Cancel does. stop: stop the workflow; Recover Search returns the best so far. finish with "
            "best so far: go on with it.",
        ),
        io.Combo.Input(
            "output",
            options=list(OUTPUTS),
            default=OUTPUTS[0],
            optional=True,
            tooltip="Which finalist becomes the image. score: the one with the best score. weight: the one with the "
            "highest weight. sample: one drawn at random by weight, which follows the target p(x) exp(score / alpha): "
            "true to the model at high alpha. weight and sample need a method with weights: SMC, DAS, FK Steering.",
        ),
    ]


def clip_inputs() -> list:
    """Inputs of searches among latents: how clips are looked at, and in which order candidates are made."""
    return [
        io.Vae.Input(
            "preview_vae",
            optional=True,
            tooltip="A small decoder of the same latents for looks on the way: taesd, taesdxl, taesd3 or taef1 in Load "
            "VAE, for videos e.g. lighttaew2_1. Finished candidates are always judged with `vae`, and if the first "
            "looks rank candidates otherwise than `vae` does, it takes over.",
        ),
        io.Combo.Input(
            "order",
            options=[AUTO, DEPTH, BREADTH],
            default=AUTO,
            optional=True,
            tooltip="depth: each candidate is finished before the next is begun, so that stopping early leaves whole "
            "ones (Best-of-N, Random Search, Zero-Order Search). breadth: all side by side. auto: depth for videos.",
        ),
        io.Int.Input(
            "skip_latents",
            default=0,
            min=0,
            max=1024,
            optional=True,
            tooltip="For videos: latent frames at the beginning that are no part of the clip and are not judged. Give "
            "the `trim_latent` of the VACE nodes.",
        ),
    ]


def source_inputs() -> list:
    """The image that is edited, for verifiers and rewriters that compare with it."""
    return [
        io.Image.Input(
            "source",
            optional=True,
            tooltip="For edits: the image that is edited, shown to verifiers that compare with it (Edit Judge, "
            "Preservation Verifier) and to rewriters. Without it they get the reference latents of `positive`, else "
            "the latent of image to image or inpainting.",
        ),
        io.Mask.Input("source_mask", optional=True, tooltip="Where the source may change (white)."),
    ]


def prompt_problem(prompt: str | None) -> bool | str:
    """Queue-time check of a prompt widget; None means that it is linked and not known yet."""
    if prompt is not None and not prompt.strip():
        return "prompt is empty: write what the image should show, the verifier judges against it"
    return True
