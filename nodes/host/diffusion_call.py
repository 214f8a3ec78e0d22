"""A sampling call of a diffusion or flow model as ``run_in_host`` takes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor

from ...samplers.budget import Pace
from ...samplers.few_steps import Setting
from ...samplers.outline import NoiseOutline
from ...samplers.prepare import Prepared, prepare
from ...samplers.processes.kernel import Noise
from ...samplers.run.trace import Listener
from ...samplers.sources import Sources
from .denoiser import announced_nfe
from .interpolants import interpolant_for
from .layout import layout_of
from .patches import holders, refuse_memory, remembers, suspects
from .pixels import HostVerifier
from .process import HostProcess, distinct_sigmas, host_process
from .progress import report_last, report_to
from .residency import Residency
from .run import SearchOptions
from .sampling_call import HostSettings, SamplingCall
from .sources import compared, found_in, given
from .stock_runs import StockMover

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
