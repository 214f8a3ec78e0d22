"""A model's own functions as they were when sampling began.

Nodes patch objects of a model (its latent format, its noise schedule), and ComfyUI undoes that whenever it pushes the
model off the device, as decoding and verifying do. Functions of the model that are called meanwhile would silently be
those of the unpatched model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

KEPT = ("latent_format", "model_sampling")
"""Attributes of a model that its functions read and that nodes patch."""


class SteadyModel:
    """The functions of a BaseModel that a search calls between its steps.

    Args:
        model: the BaseModel, loaded and patched.

    Attributes:
        latent_format, model_sampling: as they were.
    """

    def __init__(self, model: Any):
        self._model = model
        self._kept = {name: getattr(model, name) for name in KEPT if hasattr(model, name)}

    def __getattr__(self, name: str) -> Any:
        if name in KEPT and name in self.__dict__.get("_kept", {}):
            return self._kept[name]
        raise AttributeError(name)

    @contextmanager
    def as_it_was(self) -> Iterator[Any]:
        """The model with its attributes as they were; they are put back whatever happens."""
        now = {name: getattr(self._model, name) for name in self._kept}
        try:
            for name, value in self._kept.items():
                setattr(self._model, name, value)
            yield self._model
        finally:
            for name, value in now.items():
                setattr(self._model, name, value)

    def process_latent_out(self, latents: Tensor) -> Tensor:
        """Latents without the model's own scaling, as VAEs take them."""
        with self.as_it_was() as model:
            return model.process_latent_out(latents)

    def inverse_noise_scaling(self, sigma: Tensor, latents: Tensor) -> Tensor:
        """See ``model_sampling`` of the host."""
        with self.as_it_was() as model:
            return model.model_sampling.inverse_noise_scaling(sigma, latents)

    def scale_latent_inpaint(self, **inputs: Any) -> Tensor:
        """See ``BaseModel`` of the host."""
        with self.as_it_was() as model:
            return model.scale_latent_inpaint(**inputs)
