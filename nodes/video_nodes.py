"""Nodes for searches on clips: judges of frames and motion, two experts, finalists one by one, ranking of videos."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..samplers.frames import AGGREGATES, LONGEST, WHICH, Shown
from ..samplers.looks import judge
from ..samplers.protocols import ScoreContext, SearchError
from ..verifiers.video.frames import FramesVerifier
from ..verifiers.video.motion import AMOUNTS, FRAMES, MotionVerifier
from .host.compat import is_nested, nested, throw_if_interrupted
from .host.experts import TwoExpertGuider
from .score_images_node import places_of, prompts_for, ranked
from .types import CATEGORY, VERIFIER_CATEGORY, ScoresType, VerifierType

FEW = 5


class FramesVerifierNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeFramesVerifier",
            display_name="Frames Verifier",
            category=VERIFIER_CATEGORY,
            description="Lets any verifier of images judge videos: it scores some frames of every clip. Without this "
            "node five frames are scored, evenly spaced, and the mean counts.",
            inputs=[
                VerifierType.Input("verifier", tooltip="Judges the frames."),
                io.Combo.Input(
                    "which",
                    options=list(WHICH),
                    default="uniform",
                    tooltip="Which frames: evenly spaced with both ends, so many from the beginning or the end, or "
                    "one. The first frames are cheap to decode for Wan, Cosmos and tiny autoencoders.",
                ),
                io.Int.Input(
                    "frames",
                    default=FEW,
                    min=1,
                    max=64,
                    tooltip="How many, for uniform, first and last. More are slower.",
                ),
                io.Combo.Input(
                    "aggregate",
                    options=list(AGGREGATES),
                    default="mean",
                    tooltip="What becomes the score of the clip. minimum: a clip is as good as its worst frame.",
                ),
                io.Int.Input(
                    "longest",
                    default=LONGEST,
                    min=64,
                    max=4096,
                    step=8,
                    optional=True,
                    tooltip="Pixels of the longer side of a frame that is judged; larger ones are scaled down.",
                ),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def execute(cls, verifier, which, frames, aggregate, longest=LONGEST) -> io.NodeOutput:
        return io.NodeOutput(FramesVerifier(verifier, which, frames, aggregate, longest))


class MotionVerifierNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeMotionVerifier",
            display_name="Motion Verifier",
            category=VERIFIER_CATEGORY,
            description="Prefers clips that move about as much as wanted, without flicker. Needs no model. It does not "
            "look at what is shown: combine it with another verifier in Verifier Ensemble.",
            inputs=[
                io.Combo.Input(
                    "amount",
                    options=list(AMOUNTS),
                    default="calm",
                    tooltip="How much should move. Frozen clips score low whatever is chosen here.",
                ),
                io.Float.Input(
                    "flicker_weight",
                    default=10.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How much flicker counts: at 10, brightness that jumps by 4 % every frame costs about 1.",
                ),
                io.Float.Input(
                    "likeness_weight",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    optional=True,
                    tooltip="How much it counts that a clip moves away from its first frame; for image to video.",
                ),
                io.Int.Input(
                    "frames",
                    default=FRAMES,
                    min=2,
                    max=257,
                    optional=True,
                    tooltip="How many frames from the beginning are looked at. 17 frames are 5 latent frames of Wan.",
                ),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def execute(cls, amount, flicker_weight, likeness_weight=0.0, frames=FRAMES) -> io.NodeOutput:
        return io.NodeOutput(MotionVerifier(amount, flicker_weight, likeness_weight, frames))


class TwoExpertGuiderNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        cfg = {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
        return io.Schema(
            node_id="TestTimeTwoExpertGuider",
            display_name="Two-Expert Guider",
            category=f"{CATEGORY}/video",
            description="The two models of Wan 2.2 as one guider, for Sampler Custom Advanced: the first makes the "
            "steps with strong noise, the second the others. One search then runs through both.",
            inputs=[
                io.Model.Input("model_high", tooltip="The high noise model; it makes the first steps."),
                io.Model.Input("model_low", tooltip="The low noise model; it makes the last steps."),
                io.Conditioning.Input("positive", tooltip="What to include in the video, for both models."),
                io.Conditioning.Input("negative", tooltip="What to keep out of the video, for both models."),
                io.Float.Input(
                    "cfg_high", tooltip="Guidance scale of the high noise model. 1 with a 4-step LoRA.", **cfg
                ),
                io.Float.Input("cfg_low", tooltip="Guidance scale of the low noise model.", **cfg),
                io.Float.Input(
                    "boundary",
                    default=0.875,
                    min=0.001,
                    max=0.999,
                    step=0.005,
                    round=0.001,
                    tooltip="Noise level at which the second model takes over: 0.875 for text to video, 0.9 for "
                    "image to video.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(
        cls, model_high, model_low, positive, negative, cfg_high, cfg_low, boundary
    ) -> io.NodeOutput:  # fmt: skip
        guider = TwoExpertGuider(model_high, model_low, boundary)
        guider.set_conds(positive, negative)
        guider.set_cfgs(cfg_high, cfg_low)
        return io.NodeOutput(guider)


class FinalistsAsListNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeFinalistsAsList",
            display_name="Finalists as List",
            category=f"{CATEGORY}/video",
            description="Gives the latents of a batch one by one. VAE Decode puts the frames of all clips of a batch "
            "into one; behind this node it runs once for each clip, and so do Create Video and Save Video.",
            inputs=[
                io.Latent.Input("latent", tooltip="The `finalists` (or `best`) of Search KSampler."),
                io.Int.Input("keep", default=0, min=0, max=4096, tooltip="How many of the first to give; 0 for all."),
            ],
            outputs=[io.Latent.Output(display_name="latents", is_output_list=True)],
        )

    @classmethod
    def execute(cls, latent, keep=0) -> io.NodeOutput:
        return io.NodeOutput(one_by_one(latent)[: keep or None])


def one_by_one(latent: dict) -> list[dict]:
    """Every row of a LATENT as a LATENT of its own, with its mask where there is one for each."""
    samples, mask, index = latent["samples"], latent.get("noise_mask"), latent.get("batch_index")
    streams = samples.unbind() if is_nested(samples) else [samples]
    found = []
    for row in range(len(streams[0])):
        parts = [stream[row : row + 1] for stream in streams]
        one = {**latent, "samples": nested(parts) if is_nested(samples) else parts[0]}
        own = isinstance(mask, torch.Tensor) and mask.dim() == streams[0].dim() and len(mask) == len(streams[0])
        if own:
            one["noise_mask"] = mask[row : row + 1]
        if index is not None:
            one["batch_index"] = [index[row]]
        found.append(one)
    return found


class RankVideosNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeRankVideos",
            display_name="Rank Videos",
            category=f"{CATEGORY}/video",
            description="Sorts videos by a verifier, best first, and keeps as many as wanted. Works on any videos, no "
            "search needed. Sound stays with its video; no verifier hears it.",
            inputs=[
                io.Video.Input("videos", tooltip="One video or a list of them."),
                VerifierType.Input("verifier", tooltip="Judges the videos. One of images scores five frames of each."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the videos should show."),
                io.Int.Input("keep", default=0, min=0, max=4096, tooltip="How many of the best to keep; 0 for all."),
            ],
            outputs=[
                io.Video.Output(display_name="videos", is_output_list=True, tooltip="The videos, best first."),
                ScoresType.Output(display_name="scores", tooltip="Scores of the sorted videos."),
                io.String.Output(display_name="order", tooltip="Former places of the videos, best first."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, videos, verifier, prompt, keep) -> io.NodeOutput:
        verifier, prompt, keep = verifier[0], prompt[0], keep[0]
        prompts = prompts_for(prompt, len(videos), verifier)
        values = [score_video(verifier, video, text) for video, text in zip(videos, prompts, strict=True)]
        rows, _, scores = ranked(verifier, torch.tensor(values, dtype=torch.float64), keep)
        kept = [videos[row] for row in rows.tolist()]
        return io.NodeOutput(kept, scores, places_of(rows), ui=ui.PreviewText(scores.as_text()))


def score_video(verifier, video, prompt: str) -> float:
    """Score of a VIDEO by any verifier, on the frames that it wants."""
    throw_if_interrupted()
    components = video.get_components()
    frames = components.images[..., :3]
    if len(frames) < verifier.least_frames:
        raise SearchError(f"verifier {verifier.name!r} judges videos: this one has {len(frames)} frame")
    shown = Shown(tuple(range(len(frames))), len(frames), fps=float(components.frame_rate))
    context = ScoreContext(torch.zeros(1, dtype=torch.int64), frames=shown)
    with torch.no_grad():
        values = judge(verifier, frames[None].float(), [prompt], context)
    return float(values.score[0])


NODES = [FramesVerifierNode, MotionVerifierNode, TwoExpertGuiderNode, FinalistsAsListNode, RankVideosNode]
"""Nodes of this module."""
