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

from ..samplers.after.replay import Replay
from ..samplers.budget import WithinBudget, method_of
from ..samplers.processes.kernel import is_stochastic
from ..samplers.processes.sde import SDE, OnPath
from ..samplers.protocols import Search, SearchError, SearchResult
from ..samplers.run.session import run_search
from ..samplers.run.trace import Listener
from .compat import InterruptProcessing
from .host.budget import Judged, Limits, fit_budget
from .host.denoiser import ignore_extra_rows
from .host.interpolants import interpolant_for
from .host.live import LiveRun
from .host.live import store as live_store
from .host.pixels import HostVerifier
from .host.process import (
    GradientUnavailable,
    HostProcess,
    HostSettings,
    SamplingCall,
    check_latent,
    host_process,
)
from .host.progress import both, report_to
from .host.results import HostResult, host_result, store
from .host.rewriting import with_hosted_rewriter
from .types import CATEGORY, SearchType, VerifierType

log = logging.getLogger("testtime")

STOP = "stop"
FINISH = "finish with best so far"
# Wrapper keys of patches that reuse earlier model outputs, assuming one particle on one monotone path.
_CACHING = ("easycache", "lazycache", "teacache", "wavespeed", "fbcache")


@dataclass(frozen=True)
class SearchOptions:
    """What a search needs besides the sampling call.

    Attributes:
        search: a method of ``samplers.methods``.
        verifier: the judge (None only where the method needs none).
        vae: decodes previews for the judge.
        prompt: what the images should show; one for all images of the batch.
        eta: 0 = ODE, 1 = ancestral.
        held_out: a verifier that is reported and never steers, or None.
        max_nfe: forward passes allowed, 0 = no limit.
        max_seconds: seconds allowed, 0 = no limit.
        on_cancel: ``STOP`` keeps the best so far for Recover Search and cancels; ``FINISH`` goes on with it.
        stream_ids: see ``HostSettings.stream_ids``.
        on_result: called with the ``HostResult`` of every run, whole or cut short.
        listener: called after every step besides the progress report.
        before_run: called with the process before the search begins, to refuse it (SearchError).
    """

    search: Search
    verifier: Any
    vae: Any
    prompt: str
    eta: float = 1.0
    held_out: Any = None
    max_nfe: int = 0
    max_seconds: float = 0.0
    on_cancel: str = STOP
    stream_ids: Sequence[int] | None = None
    on_result: Callable[[HostResult], None] | None = None
    listener: Listener | None = None
    before_run: Callable[[HostProcess], None] | None = None

    def check(self) -> None:
        """Raise SearchError for options that are wrong whatever the model is."""
        if self.search is None:
            raise SearchError("search is missing: connect a method node, e.g. Best-of-N")
        if not 0.0 <= self.eta <= 1.0:
            raise SearchError(f"eta is {self.eta}: it must lie in 0 (ODE) .. 1 (ancestral)")
        search, noise = method_of(self.search), noise_of(self.search, self.eta)
        if not self.prompt.strip():
            raise SearchError("prompt is empty: write what the image should show, the verifier judges against it")
        if self.on_cancel not in (STOP, FINISH):
            raise SearchError(f"on_cancel is {self.on_cancel!r}: choose {STOP!r} or {FINISH!r}")
        if self.vae is None and (self.verifier is not None or not isinstance(search, Replay)):
            raise SearchError("vae is missing: connect one, a verifier judges decoded images")
        if isinstance(self.search, WithinBudget):
            self.search.check_settings()
        if getattr(search, "needs_schedule", False):
            search.check_settings()  # the rest is checked when model and sigmas are known
        else:
            # The method's own rules see nothing of the process but this.
            search.check(_Noise(noise), self.verifier)


@dataclass(frozen=True)
class _Noise:
    """As much of a Process as ``Search.check`` looks at."""

    eta: float | SDE

    @property
    def stochastic(self) -> bool:
        return is_stochastic(self.eta)


def path_of(search: Search | OnPath | WithinBudget) -> OnPath | None:
    """The path that a search is to run on, if any."""
    search = search.search if isinstance(search, WithinBudget) else search
    return search if isinstance(search, OnPath) else None


def noise_of(search: Search | OnPath | WithinBudget, eta: float) -> float | SDE:
    """The noise of the moves: the path's where the search has one, else ``eta``."""
    path = path_of(search)
    return eta if path is None else path.sde


def live_run(options: SearchOptions) -> LiveRun | None:
    """What shows a run in the front end, or None when that is switched off."""
    if not live_store.enabled:
        return None
    return LiveRun(
        {
            "method": method_of(options.search).name,
            "prompts": [options.prompt],
            "verifier": getattr(options.verifier, "name", None),
            "held_out": getattr(options.held_out, "name", None),
            "max_nfe": options.max_nfe or None,
            "max_seconds": options.max_seconds or None,
        }
    )


class SearchSampler(comfy.samplers.Sampler):
    """A SAMPLER that searches: takes G latents, returns the best of N particles for each.

    Slot 0 of every image starts from the noise of the NOISE object, so with one particle ``eta = 0`` is ``euler`` and
    ``eta = 1`` is ``euler_ancestral`` with our noise.
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
        options = self.options
        check_latent(noise.shape)
        call = SamplingCall(
            guider=model_wrap,
            sigmas=sigmas,
            model_options=extra_args.get("model_options", {}),
            seed=extra_args.get("seed"),
            noise=noise,
            latent_image=torch.zeros_like(noise) if latent_image is None else latent_image,
            denoise_mask=denoise_mask,
        )
        live = live_run(self.options)
        listener = both(both(report_to(callback, call.groups), options.listener), live)
        try:
            result = self._run(call, listener, live)
        except BaseException as error:
            if live is not None:
                live.finish("failed", [f"{type(error).__name__}: {error}"])
            raise
        if live is not None:
            live.finish(result.status, result.warnings)
        self._keep(result, call)
        if result.status == "interrupted" and options.on_cancel == STOP:
            log.info("search cancelled: the best so far is kept, see the Recover Search node")
            raise InterruptProcessing()
        if result.status != "complete":
            log.warning("search ended early (%s): returning the best so far", result.status)
        return _finish(call, result.status)(result.latents)

    def _run(self, call: SamplingCall, listener: Listener | None, live: LiveRun | None) -> SearchResult:
        options = self.options
        search, noise, path = method_of(options.search), options.eta, path_of(options.search)
        limits = (options.max_nfe or None, options.max_seconds or None)
        if path is not None:
            sampling = call.model.model_sampling
            interpolant, largest = interpolant_for(sampling), float(sampling.sigma_max)
            sigmas, noise = path.schedule(interpolant, call.sigmas, largest)
            call = replace(call, sigmas=sigmas.to(call.sigmas.device))
        if isinstance(options.search, WithinBudget):
            judged = Judged(options.vae, options.verifier, options.prompt)
            search, call, limits = fit_budget(options.search, call, noise, judged, limits)
        try:
            return self._search(search, call, listener, noise, live, limits)
        except GradientUnavailable as reason:
            message = f"no gradient through this model, VAE or verifier ({reason}): searching without guidance"
        log.warning(message)
        result = self._search(replace(search, guidance=0.0), call, listener, noise, live, limits)
        result.warnings.append(message)
        return result

    def _search(
        self,
        search: Search,
        call: SamplingCall,
        listener: Listener | None,
        noise: float | SDE,
        live: LiveRun | None,
        limits: Limits,
    ) -> SearchResult:
        options = self.options
        process = host_process(
            call,
            HostSettings(
                vae=options.vae,
                eta=noise,
                population=call.groups * population(search),
                gradient=getattr(search, "guidance", 0.0) > 0,
                judges=[] if options.verifier is None else [options.verifier],
                stream_ids=options.stream_ids,
                encoder=getattr(search, "encoder", None),
            ),
        )
        if options.before_run is not None:
            options.before_run(process)
        if live is not None:
            live.process = process
        process.denoise.on_extra_rows = lambda rows: _add_nfe(process, rows)
        try:
            result = run_search(
                with_hosted_rewriter(search, process.residency),
                process,
                _hosted(options.verifier, process),
                [options.prompt] * call.groups,
                held_out=_hosted(options.held_out, process),
                listener=listener,
                max_nfe=limits[0],
                max_seconds=limits[1],
                interrupts=(InterruptProcessing,),
            )
        finally:
            # Breaks the only reference cycle, so that nothing keeps the model alive until a garbage collection.
            process.denoise.on_extra_rows = ignore_extra_rows
        result.warnings.extend(warnings_for(call))
        result.trace.meta.update(
            {
                "sigmas": process.sigmas,
                "cfg": getattr(call.guider, "cfg", None),
                "run": None if live is None else live.run,
                "stream_ids": None if options.stream_ids is None else list(options.stream_ids),
                "warnings": result.warnings,
            }
        )
        return result

    def _keep(self, result: SearchResult, call: SamplingCall) -> None:
        to_graph = _finish(call, result.status)

        def finish(latents: Tensor) -> Tensor:
            scaled = call.model.process_latent_out(to_graph(latents).float())
            return scaled.to(management.intermediate_device())

        hosted = host_result(result, self.options.verifier, self.options.held_out, finish)
        store.add(hosted)
        if self.options.on_result is not None:
            self.options.on_result(hosted)


def population(search: Search) -> int:
    """Particles per image that a method runs at once."""
    search = method_of(search)
    names = ("population", "particles", "candidates")
    return next((count for name in names if (count := getattr(search, name, None))), 1)


def warnings_for(call: SamplingCall) -> list[str]:
    """Things in the model's patches that a search may not go well with."""
    wrappers = call.model_options.get("transformer_options", {}).get("wrappers", {})
    keys = {str(key).lower() for kind in wrappers.values() for key in kind}
    found = sorted(name for name in _CACHING if any(name in key for key in keys))
    if not found:
        return []
    message = f"{', '.join(found)} reuses model outputs along one path: with several particles results may be wrong"
    log.warning(message)
    return [message]


def _hosted(verifier: Any, process: HostProcess) -> HostVerifier | None:
    return None if verifier is None else HostVerifier(verifier, process.residency)


def _add_nfe(process: HostProcess, rows: int) -> None:
    process.ledger.nfe += rows


def _finish(call: SamplingCall, status: str) -> Callable[[Tensor], Tensor]:
    """Map of the search's latents to the sampler's result; what was cut short is clean already."""
    last = call.sigmas[-1]
    if status != "complete" or float(last) == 0.0:
        return lambda latents: latents
    return lambda latents: call.model.model_sampling.inverse_noise_scaling(last, latents)


def common_inputs() -> list:
    """Inputs shared by Search Sampler and Search KSampler, from ``verifier`` on."""
    return [
        VerifierType.Input("verifier", tooltip="Judges decoded previews; the search keeps what it likes best."),
        io.Vae.Input("vae", tooltip="Decodes latents for the verifier during sampling."),
        SearchType.Input("search", tooltip="The search method: Best-of-N, SVDD, SMC, DAS, FK Steering, ..."),
        io.Float.Input(
            "eta",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Randomness of each step: 0 = ODE (as euler), 1 = ancestral (as euler_ancestral). Methods that "
            "clone or branch particles need more than 0; Best-of-N works with any value.",
        ),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="What the image should show, in plain words. The verifier judges against it; the model is steered "
            "by its own conditioning. For a verifier that ignores prompts any text will do.",
        ),
        VerifierType.Input(
            "held_out",
            optional=True,
            tooltip="A second verifier that never steers. It scores the results, so you can see whether the search "
            "found better images or only better scores.",
        ),
        io.Int.Input(
            "max_nfe",
            default=0,
            min=0,
            max=10_000_000,
            optional=True,
            tooltip="Budget of model forward passes (one per particle and conditional branch). When it is spent the "
            "best so far is returned. 0 = no limit.",
        ),
        io.Float.Input(
            "max_seconds",
            default=0.0,
            min=0.0,
            max=1_000_000.0,
            step=1.0,
            optional=True,
            tooltip="Time budget. When it is spent the best so far is returned. 0 = no limit.",
        ),
        io.Combo.Input(
            "on_cancel",
            options=[STOP, FINISH],
            default=STOP,
            optional=True,
            tooltip="What Cancel does: stop the workflow (the best so far is kept for the Recover Search node), or "
            "finish the workflow with the best so far.",
        ),
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
            category=CATEGORY,
            description="Turns a search into a sampler for SamplerCustomAdvanced: any guider, sigmas and noise. "
            "Gives the best latent for every image of the batch.",
            inputs=common_inputs(),
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def validate_inputs(cls, prompt=None):
        return prompt_problem(prompt)

    @classmethod
    def execute(cls, verifier, vae, search, eta, prompt, **optional) -> io.NodeOutput:
        options = SearchOptions(search, verifier, vae, prompt, eta=eta, **optional)
        return io.NodeOutput(SearchSampler(options))


NODES = [SearchSamplerNode]
