"""One schedule by two models: one removes the strong noise, the other what is left (Wan 2.2)."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.protocols import SearchError

OWN = "testtime_"
"""Beginning of the keys of wrappers that a search puts into the options of a run, for whoever makes the step."""
LOW = "low "
"""Beginning of the names of the second model's conditions among the guider's."""


class TwoExpertGuider(comfy.samplers.CFGGuider):
    """Classifier-free guidance of two models that share a schedule: ``high`` at sigmas of ``boundary`` and above.

    A stock sampler runs on it as two KSamplerAdvanced stages would; a search has one population, and looks at what the
    first model leaves before the second goes on.

    Args:
        high, low: MODELs of one latent format.
        boundary: sigma, 0 < boundary < 1.

    Attributes:
        takes_turns: two models make the steps, so candidates are better moved side by side: a crossing then happens
            once in a search, and not once for each of them.

    Raises:
        SearchError: a boundary outside 0..1, or models of different latent formats.
    """

    takes_turns = True

    def __init__(self, high: Any, low: Any, boundary: float):
        super().__init__(high)
        if not 0.0 < boundary < 1.0:
            raise SearchError(f"boundary is {boundary}: it is a noise level between 0 and 1, for Wan 2.2 about 0.875")
        formats = [type(patcher.model.latent_format).__name__ for patcher in (high, low)]
        if formats[0] != formats[1]:
            raise SearchError(
                f"model_high makes latents of {formats[0]} and model_low of {formats[1]}: connect both halves of one "
                f"model"
            )
        self.low_patcher, self.boundary = low, boundary
        self.cfg_low = 1.0
        self._active: Any = None

    def set_cfgs(self, high: float, low: float) -> None:
        """Guidance scales of the two models."""
        self.set_cfg(high)
        self.cfg_low = low

    def expert_at(self, sigma: float) -> Any:
        """The ModelPatcher that makes the step at ``sigma``."""
        return self.model_patcher if sigma >= self.boundary else self.low_patcher

    @property
    def experts(self) -> tuple[Any, Any]:
        """Both ModelPatchers."""
        return self.model_patcher, self.low_patcher

    def announced_nfe(self) -> int:
        """Forward passes per particle and step, at most."""
        return 1 if math.isclose(self.cfg, 1.0) and math.isclose(self.cfg_low, 1.0) else 2

    def outer_sample(self, noise: Tensor, *args, **kwargs):
        """See ``CFGGuider``. The second model is prepared first, so that the first is loaded when sampling begins."""
        copies = {name: [entry.copy() for entry in entries] for name, entries in self.conds.items()}
        low = self.low_patcher
        self.low_model, self.low_conds, loaded = comfy.sampler_helpers.prepare_sampling(
            low, noise.shape, copies, low.model_options
        )
        low.pre_run()
        self._active = None
        try:
            return super().outer_sample(noise, *args, **kwargs)
        finally:
            low.cleanup()
            comfy.sampler_helpers.cleanup_models(self.low_conds, loaded)
            self._active = None
            del self.low_model, self.low_conds

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more
    ):
        """See ``CFGGuider``: conditions are processed by each model for itself."""
        image = latent_image
        if "latent_shapes" in more:
            self.low_model.latent_shapes = more["latent_shapes"]
        if image is not None and torch.count_nonzero(image) > 0:
            image = self.low_model.process_latent_in(image)
        low = comfy.samplers.process_conds(
            self.low_model, noise, self.low_conds, device, image, denoise_mask, seed, **more
        )
        joined = _WithLow(sampler, {LOW + name: entries for name, entries in low.items()})
        return super().inner_sample(
            noise, latent_image, device, joined, sigmas, denoise_mask, callback, disable_pbar, seed, **more
        )

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
        """The clean estimate by whoever is responsible for this noise level."""
        options = model_options or {}
        high = float(timestep.max()) >= self.boundary
        model = self.inner_model if high else self.low_model
        self._enter(self.model_patcher if high else self.low_patcher, model, x)
        names = ("negative", "positive") if high else (f"{LOW}negative", f"{LOW}positive")
        negative, positive = (self.conds.get(name) for name in names)
        return comfy.samplers.sampling_function(
            model,
            x,
            timestep,
            negative,
            positive,
            self.cfg if high else self.cfg_low,
            model_options=options if high else self._options_of_low(options),
            seed=seed,
        )

    def _enter(self, patcher: Any, model: Any, x: Tensor) -> None:
        if self._active is not patcher:
            management.load_models_gpu([patcher], memory_required=model.memory_required([2, *x.shape[1:]]))
            self._active = patcher

    def _options_of_low(self, options: dict[str, Any]) -> dict[str, Any]:
        """The second model's own options, with what belongs to the run."""
        own = comfy.model_patcher.create_model_options_clone(self.low_patcher.model_options)
        transformer, run = own.setdefault("transformer_options", {}), options.get("transformer_options", {})
        if "sample_sigmas" in run:
            transformer["sample_sigmas"] = run["sample_sigmas"]
        for kind, wrappers in run.get("wrappers", {}).items():
            for key, found in wrappers.items():
                if str(key).startswith(OWN):
                    transformer.setdefault("wrappers", {}).setdefault(kind, {})[key] = list(found)
        return own


class _WithLow(comfy.samplers.Sampler):
    """A sampler whose guider knows the second model's conditions besides the first's."""

    def __init__(self, sampler: comfy.samplers.Sampler, conds: dict[str, Any]):
        self._sampler, self._conds = sampler, conds

    def sample(self, model_wrap, *args, **kwargs):
        """See ``comfy.samplers.Sampler``."""
        model_wrap.conds = {**model_wrap.conds, **self._conds}
        return self._sampler.sample(model_wrap, *args, **kwargs)

    def max_denoise(self, model_wrap, sigmas):
        """See ``comfy.samplers.Sampler``."""
        return self._sampler.max_denoise(model_wrap, sigmas)
