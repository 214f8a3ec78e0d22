"""``SearchSampler``: a search as a stock ComfyUI SAMPLER, and the node that makes one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as management
import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.budget import NoiseOutline, Pace
from ..samplers.few_steps import Setting
from ..samplers.plan import OUTPUTS, Prepared, prepare
from ..samplers.processes.kernel import Noise
from ..samplers.run.trace import Listener
from ..samplers.sources import Sources
from .host.denoiser import announced_nfe
from .host.interpolants import interpolant_for
from .host.layout import layout_of
from .host.patches import holders, refuse_memory, remembers, suspects
from .host.pixels import HostVerifier
from .host.process import AUTO, BREADTH, DEPTH, HostProcess, HostSettings, SamplingCall, distinct_sigmas, host_process
from .host.progress import report_last, report_to
from .host.residency import Residency
from .host.run import AUTO_ETA, FINISH, STOP, SearchOptions, run_in_host
from .host.sources import compared, found_in, given
from .host.stock_runs import StockMover
from .host.stock_samplers import host_sampler
from .types import CATEGORY, SearchType, VerifierType

log = logging.getLogger("testtime")

# Wrapper keys of patches that reuse earlier model outputs, assuming one particle on one monotone path.
_CACHING = ("teacache", "wavespeed", "fbcache")
TIMED = 4  # particles per image that the pace is measured on


@dataclass(frozen=True)
class DiffusionCall:
    """A sampling call as ``run_in_host`` takes it.

    Attributes:
        call: arguments of ``Sampler.sample``. callback: the host's, for progress.
    """

    call: SamplingCall
    callback: Callable | None = None

    @property
    def groups(self) -> int:
        """Images of the batch."""
        return self.call.groups

    def prepare(self, options: SearchOptions) -> Prepared:
        """See ``HostCall``. A budget in seconds is measured on a few particles, which counts as part of it."""
        sampling = self.call.steady.model_sampling
        outline = NoiseOutline(interpolant_for(sampling), distinct_sigmas(self.call.sigmas).tolist(), 0.0)

        def pace(sigmas: Sequence[float], eta: float | Noise) -> Pace:
            settings = HostSettings(options.vae, eta, TIMED * self.groups, **self._looking(options))
            process = host_process(self._on(sigmas), settings)
            verifier = None if options.verifier is None else HostVerifier(options.verifier, process.residency)
            # A clip goes through the model alone: four would take four times as long and tell nothing more.
            particles = process.look.layout.rows_per_call or TIMED
            return Pace.measure(process, verifier, [options.prompt] * self.groups, particles)

        prepared = prepare(
            options.search,
            outline,
            options.given_eta,
            nfe_per_call=announced_nfe(self.call.guider),
            groups=self.groups,
            top=float(sampling.sigma_max),
            pace=pace,
            setting=self.setting(),
        )
        for note in prepared.notes:
            log.info(note)
        if options.search.budget is not None:
            log.info("budget: %s, %d steps", prepared.plan.method, len(prepared.sigmas) - 1)
        return prepared

    def process(self, prepared: Prepared, options: SearchOptions) -> tuple[HostProcess, Residency]:
        """See ``HostCall``."""
        plan, runs = prepared.plan, prepared.runs
        settings = HostSettings(
            vae=options.vae,
            eta=prepared.eta,
            population=self.groups * plan.method.population,
            at_once=None if runs is None or runs.first_only else self.groups,
            gradient="can_differentiate" in plan.needs,
            judges=[] if options.verifier is None else [options.verifier],
            stream_ids=options.stream_ids,
            encoder=plan.encoder,
            **self._looking(options),
        )
        call = self._on(prepared.sigmas)
        process = host_process(call, settings)
        if settings.population > self.groups:  # else all images go down together, as with any sampler
            self._refuse_memory(process, whole_runs=runs is not None and not runs.first_only)
        if runs is not None:
            total = plan.method.denoiser_calls(process)
            process.mover = StockMover(runs, call, self.callback, total)
        return process, process.residency

    def _refuse_memory(self, process: HostProcess, whole_runs: bool) -> None:
        """Raise SearchError for patches that remember the last call; asks the model three times where one may.

        In ``whole_runs`` the candidates of a call go down together: a memory that starts anew at the top does no harm.
        """
        refuse_memory(holders(self.call.model_options))
        found = suspects(self.call.model_options)
        if not found or whole_runs:
            return
        group = torch.zeros(1, dtype=torch.int64)
        first = process.begin(process.initial_noise(group, group), group, group).x

        def ask(x: Tensor) -> Tensor:
            return process.denoise(x, process.sigmas[0], group).x0

        with torch.no_grad():
            if remembers(ask, first, first.flip(-1) * 0.5):
                refuse_memory(found)

    def report(self, process: HostProcess) -> Listener | None:
        """See ``HostCall``. Runs of a sampler move the bar themselves."""
        if isinstance(process.mover, StockMover):
            return report_last(self.callback, self.groups, process.mover.total)
        return report_to(self.callback, self.groups)

    def setting(self) -> Setting:
        """What is known of the model."""
        cfg, mro = getattr(self.call.guider, "cfg", None), type(self.call.steady.model_sampling).__mro__
        return Setting(None if cfg is None else float(cfg), any(kind.__name__ == "LCM" for kind in mro))

    def to_graph(self, status: str) -> Callable[[Tensor], Any]:
        """See ``HostCall``."""
        back = self.from_sampler(status)
        layout = layout_of(self.call.model, self.call.noise.shape)

        def finish(latents: Tensor) -> Any:
            scaled = self.call.steady.process_latent_out(back(latents).float())
            return layout.restore(scaled.to(management.intermediate_device()))

        return finish

    def from_sampler(self, status: str) -> Callable[[Tensor], Tensor]:
        """Map of the search's latents to the sampler's result; what was cut short is clean already."""
        last = self.call.sigmas[-1]
        if status != "complete" or float(last) == 0.0:
            return lambda latents: latents
        return lambda latents: self.call.steady.inverse_noise_scaling(last, latents)

    def sources(self, options: SearchOptions) -> Sequence[Sources]:
        """See ``HostCall``: what was connected, else what the call itself edits, where a judge compares with it."""
        found = given(options, self.groups)
        if found or not compared((options.verifier, options.held_out)):
            return found
        return found_in(self.call, options.vae)

    def facts(self) -> dict[str, Any]:
        """See ``HostCall``."""
        return {"cfg": getattr(self.call.guider, "cfg", None)}

    def warnings(self) -> list[str]:
        """Things in the model's patches that a search may not go well with."""
        wrappers = self.call.model_options.get("transformer_options", {}).get("wrappers", {})
        keys = {str(key).lower() for kind in wrappers.values() for key in kind}
        found = sorted(name for name in _CACHING if any(name in key for key in keys))
        if not found:
            return []
        return [f"{', '.join(found)} assumes a single image at a time: with several particles results may be wrong"]

    @staticmethod
    def _looking(options: SearchOptions) -> dict[str, Any]:
        """Settings of what is looked at, and in which order."""
        return {
            "watchers": [judge for judge in (options.verifier, options.held_out) if judge is not None],
            "preview_vae": options.preview_vae,
            "skip_latents": options.skip_latents,
            "order": options.order,
        }

    def _on(self, sigmas: Sequence[float]) -> SamplingCall:
        """The call on another schedule; itself on its own."""
        if list(sigmas) == distinct_sigmas(self.call.sigmas).tolist():
            return self.call
        return replace(self.call, sigmas=torch.tensor(list(sigmas), device=self.call.sigmas.device))


class SearchSampler(comfy.samplers.Sampler):
    """A SAMPLER that searches: takes G latents, returns the best of N particles for each.

    Slot 0 of every image starts from the noise of the NOISE object, so with one particle ``eta = 0`` is ``euler`` and
    ``eta = 1`` is ``euler_ancestral`` with our noise; on flow models, whose ``euler_ancestral`` is another one, it is
    the SDE with the flow's own marginals.
    """

    def __init__(self, options: SearchOptions):
        options.check()
        self.options = options

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        """See ``comfy.samplers.Sampler``. Raises the host's interruption exception when cancelled under ``STOP``."""
        call = SamplingCall(
            guider=model_wrap,
            sigmas=sigmas,
            model_options=extra_args.get("model_options", {}),
            seed=extra_args.get("seed"),
            noise=noise,
            latent_image=torch.zeros_like(noise) if latent_image is None else latent_image,
            denoise_mask=denoise_mask,
        )
        hosted = DiffusionCall(call, callback)
        result = run_in_host(hosted, self.options)
        return hosted.from_sampler(result.status)(result.latents)


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
            tooltip="For videos: a tiny decoder of the same latents for looks on the way, e.g. lighttaew2_1 in VAE "
            "Loader. Finished candidates are always judged with `vae`.",
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


class SearchSamplerNode(io.ComfyNode):
    """Search Sampler: SEARCH + VERIFIER + VAE + prompt -> SAMPLER."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSearchSampler",
            display_name="Search Sampler",
            category=f"{CATEGORY}/search",
            description="Turns a search into a SAMPLER for SamplerCustomAdvanced, with any guider, sigmas and noise. "
            "Returns the best latent of each image.",
            inputs=[
                *common_inputs(),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Whose steps the search makes, e.g. from KSamplerSelect. Without it: euler, with eta.",
                ),
                *clip_inputs(),
                *source_inputs(),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def validate_inputs(cls, prompt=None):
        return prompt_problem(prompt)

    @classmethod
    def execute(cls, verifier, vae, search, eta, prompt, sampler=None, **optional) -> io.NodeOutput:
        options = SearchOptions(search, verifier, vae, prompt, eta=eta, **optional)
        if sampler is not None:
            options = options.sampled_by(host_sampler(sampler))
        return io.NodeOutput(SearchSampler(options))


NODES = [SearchSamplerNode]
