"""``Infinity Sampler`` draws images scale by scale; ``Infinity Search`` searches while it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.sampling import ScaleSampling
from ..models.infinity.schedules import BUDGETS
from ..samplers.prepare import Prepared, prepare_on
from ..samplers.run.trace import Listener, StepRecord
from ..samplers.sources import Sources
from ..samplers.state import State
from .host.infinity_host import RATIOS
from .host.pixels import HostVerifier
from .host.progress import best_rows
from .host.residency import Residency
from .host.results import HostResult
from .host.run import SearchOptions, run_in_host
from .host.scalewise_host import ScaleCall, make_room, scalewise_process
from .search_inputs import common_inputs, prompt_problem
from .types import CATEGORY, InfinityType, ScoresType, TraceType

INFINITY_CATEGORY = f"{CATEGORY}/infinity"
PREVIEW_SIDE = 512


def report_to_bar(steps: int, groups: int) -> Listener:
    """A listener that moves the progress bar and shows the best particle where images were decoded anyway."""
    bar = comfy.utils.ProgressBar(steps)

    def listener(record: StepRecord, _: State, images: Tensor | None) -> None:
        show(bar, record.step, steps, None if images is None else images[best_rows(record, groups)[0]])

    return listener


def show(bar: comfy.utils.ProgressBar, step: int, steps: int, image: Tensor | None) -> None:
    """Move a progress bar; ``image`` ``[H, W, 3]`` in 0..1 becomes the node's preview."""
    preview = None
    if image is not None:
        from PIL import Image

        pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        preview = ("JPEG", Image.fromarray(pixels), PREVIEW_SIDE)
    bar.update_absolute(step, steps, preview)


def drawing_inputs() -> list:
    """Inputs of both nodes: the model, the prompt, how bits are drawn, the size."""
    return [
        InfinityType.Input("infinity", tooltip="The transformer of Load Infinity or Load Shapes World VAR."),
        io.Conditioning.Input("positive", tooltip="The prompt, encoded with the model's own CLIP."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed for all randomness. Same seed and settings, same images.",
        ),
        io.Float.Input(
            "cfg",
            default=3.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance scale. 1.0 leaves the unconditional branch out, which halves the cost.",
        ),
        io.Float.Input(
            "tau",
            default=0.5,
            min=0.01,
            max=10.0,
            step=0.05,
            tooltip="Temperature of the bits: lower is cleaner and less varied. Infinity 2B: 0.5, 8B and Shapes World: "
            "1.0. A search needs some variety to choose from.",
        ),
        io.Float.Input(
            "top_p",
            default=0.97,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Nucleus per bit: values less likely than 1 - top_p are never drawn. 0 = off.",
        ),
        io.Combo.Input(
            "aspect_ratio", options=list(RATIOS), tooltip="Width : height. The model has a schedule for each of these."
        ),
        io.Combo.Input(
            "pixels",
            options=list(BUDGETS),
            default="1M",
            tooltip="Size of the image: 0.06M = 256 x 256, 0.25M = 512 x 512, 0.60M = 768 x 768, 1M = 1024 x 1024, or "
            "as many pixels in another shape. Shapes World always draws 128 x 128.",
        ),
        io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Number of images."),
    ]


def optional_inputs() -> list:
    """Optional inputs of both nodes."""
    return [
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="Negative prompt. If empty, the model's own empty prompt is used.",
        ),
        io.Int.Input(
            "cfg_layer",
            default=0,
            min=-64,
            max=0,
            optional=True,
            tooltip="Where guidance is applied: 0 = at the logits, -n = after the n-th block from the end.",
        ),
    ]


def sampling_of(cfg: float, tau: float, top_p: float, cfg_layer: int = 0) -> ScaleSampling:
    """The widgets as the library takes them."""
    return ScaleSampling(cfg=cfg, tau=tau, top_p=top_p, layers=(cfg_layer,))


def to_graph(latents: Tensor) -> Tensor:
    """Code maps for the graph."""
    return latents.float().to(management.intermediate_device())


class InfinitySamplerNode(io.ComfyNode):
    """Infinity Sampler: plain sampling, no search."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeInfinitySampler",
            display_name="Infinity Sampler",
            category=INFINITY_CATEGORY,
            description="Samples images with Infinity, scale by scale, from 1 x 1 tokens up. Decode with VAE Decode.",
            inputs=[
                *drawing_inputs(),
                *optional_inputs(),
                io.Int.Input(
                    "top_k",
                    default=2,
                    min=1,
                    max=2,
                    optional=True,
                    tooltip="Values a bit may take: 2 = both, drawn at random; 1 = only the likelier one, always the "
                    "same image. (The published code's 900 means 2.)",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For previews between the scales; optional."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Summed codes, one map per image.")],
        )

    @classmethod
    def execute(
        cls, infinity, positive, seed, cfg, tau, top_p, aspect_ratio, pixels, batch_size, negative=None, cfg_layer=0,
        top_k=2, vae=None,
    ) -> io.NodeOutput:  # fmt: skip
        schedule = infinity.schedule(aspect_ratio, pixels)
        sampling = sampling_of(cfg, tau, top_p, cfg_layer)
        call = ScaleCall(infinity, vae, positive, negative, schedule, batch_size, seed, sampling)
        process, residency = scalewise_process(call)
        make_room(process, residency, [1] * len(schedule))
        latents = draw(process if top_k == 2 else process.variant(eta=0.0), preview=vae is not None)
        return io.NodeOutput({"samples": to_graph(latents)})


def draw(process: ScalewiseProcess, preview: bool) -> Tensor:
    """All scales of one particle per image, with progress -> code maps ``[G, d, h, w]``."""
    bar = comfy.utils.ProgressBar(process.steps)
    state = process.start(1)
    for step in range(process.steps):
        state, _ = process.advance(state)
        image = None
        if preview and 0 < step < process.steps - 1:  # a single token shows a flat colour, the last scale is the result
            image = process.preview(process.predict(state.select(torch.tensor([0]))))[0]
        show(bar, step + 1, process.steps, image)
    return process.finish(state)


class InfinitySearchNode(io.ComfyNode):
    """Infinity Search: any search that a next-scale model allows."""

    @classmethod
    def define_schema(cls):
        shared = [entry for entry in common_inputs() if entry.id != "eta"]
        return io.Schema(
            node_id="TestTimeInfinitySearch",
            display_name="Infinity Search",
            category=INFINITY_CATEGORY,
            description="Infinity Sampler that spends extra compute to find a better image: many candidates at once, "
            "scored between the scales. Works with TTS-VAR, Best-of-N, Random Search, SMC and FK Steering. Returns "
            "the best image, all finalists sorted, their scores and the trace.",
            inputs=[*drawing_inputs(), *shared, *optional_inputs()],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The best code map of every image."),
                io.Latent.Output(
                    display_name="finalists", tooltip="All finalists, by image, then by score, best first."
                ),
                ScoresType.Output(display_name="scores", tooltip="Scores of the finalists, in their order."),
                TraceType.Output(display_name="trace", tooltip="The record of the search, for reports."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt=None):
        return prompt_problem(prompt)

    @classmethod
    def execute(
        cls, infinity, positive, seed, cfg, tau, top_p, aspect_ratio, pixels, batch_size, negative=None, cfg_layer=0,
        **search,
    ) -> io.NodeOutput:  # fmt: skip
        options = SearchOptions(**search)
        options.check("next-scale")
        results: list[HostResult] = []
        call = NextScaleCall(
            ScaleCall(
                infinity,
                options.vae,
                positive,
                negative,
                infinity.schedule(aspect_ratio, pixels),
                batch_size,
                seed,
                sampling_of(cfg, tau, top_p, cfg_layer),
            )
        )
        run_in_host(call, replace(options, on_result=results.append))
        result = results[-1]
        return io.NodeOutput({"samples": result.best}, {"samples": result.finalists}, result.scores, result.trace)


@dataclass(frozen=True)
class NextScaleCall:
    """A call of Infinity Search as ``run_in_host`` takes it.

    Attributes:
        call: what is drawn.
    """

    call: ScaleCall

    @property
    def groups(self) -> int:
        """Images of the batch."""
        return self.call.groups

    def prepare(self, options: SearchOptions) -> Prepared:
        """See ``HostCall``. The process says what its kind can do and costs; one particle is enough for that."""
        process, residency = self._made
        make_room(process, residency, [1] * process.steps)
        verifier = None if options.verifier is None else HostVerifier(options.verifier, residency)
        return prepare_on(options.search, process, verifier, [options.prompt] * self.groups)

    def process(self, prepared: Prepared, options: SearchOptions) -> tuple[ScalewiseProcess, Residency]:
        """See ``HostCall``."""
        process, residency = self._made
        make_room(process, residency, prepared.plan.method.populations(process.steps))
        return process, residency

    @cached_property
    def _made(self) -> tuple[ScalewiseProcess, Residency]:
        """One process says what the model can do, is timed, and is searched: its prompts are read once."""
        return scalewise_process(self.call)

    def report(self, process: ScalewiseProcess) -> Listener:
        """See ``HostCall``."""
        return report_to_bar(process.steps, self.groups)

    def to_graph(self, status: str) -> Callable[[Tensor], Tensor]:
        """See ``HostCall``."""
        return to_graph

    def sources(self, options: SearchOptions) -> Sequence[Sources]:
        """See ``HostCall``: next-scale models edit nothing."""
        return ()

    def facts(self) -> dict[str, Any]:
        """See ``HostCall``."""
        return {"cfg": self.call.sampling.cfg}

    def warnings(self) -> list[str]:
        """None."""
        return []


NODES = [InfinitySamplerNode, InfinitySearchNode]
