"""Which noise path a loaded model was trained on."""

from __future__ import annotations

import comfy.model_sampling as sampling

from ...samplers.processes.kernel import VE, Flow, Interpolant
from ...samplers.protocols import SearchError

# Beginnings of the names of sampling families whose states our one kernel does not describe: refused, not guessed.
# Newer hosts have bridges of several kinds, IMG_TO_IMG_FLOW among them, which is a subclass of the flows'.
_REFUSED = {
    "IMG_TO_IMG": "image-to-image bridge",
    "StableCascadeSampling": "Stable Cascade",
}


def interpolant_for(model_sampling) -> Interpolant:
    """The interpolant of a ComfyUI ``model_sampling`` object.

    eps-, v-, EDM- and x0-models keep variance-exploding states ``x0 + sigma eps``; CONST (SD3, Flux, Lumina, Qwen, ...)
    is the linear flow, on newer hosts with noise of its own strength (``noise_scale``); Cosmos' rectified flow is
    trained on the flow but keeps variance-exploding states.

    Raises:
        SearchError: for families that are none of these, and for a flow without noise.
    """
    names = [cls.__name__ for cls in type(model_sampling).__mro__]
    for beginning, family in _REFUSED.items():
        for name in names:
            if name.startswith(beginning):
                raise SearchError(
                    f"the model samples as {name} ({family}), which searches cannot steer: use another model"
                )
    if isinstance(model_sampling, sampling.CONST):
        return Flow(scale=_noise_scale(model_sampling))
    if isinstance(model_sampling, sampling.EPS):  # V_PREDICTION, EDM and X0 derive from it
        return VE()
    cosmos = getattr(sampling, "COSMOS_RFLOW", None)
    if cosmos is not None and isinstance(model_sampling, cosmos):
        return VE()
    raise SearchError(
        f"the model's sampling type {type(model_sampling).__mro__[1].__name__ if names else '?'} is unknown: searches "
        f"run on eps-, v-, EDM-, Cosmos- and flow-models (SD 1.x/2.x, SDXL, SD3, Flux, Lumina, Qwen, ...)"
    )


def _noise_scale(model_sampling) -> float:
    scale = float(getattr(model_sampling, "noise_scale", 1.0))
    if not scale > 0.0:
        raise SearchError(
            f"the model's noise_scale is {scale:g}: without noise all particles are the same, set it above 0"
        )
    return scale


def widens_start(model_sampling) -> bool:
    """Whether a start at the model's largest sigma is drawn from N(0, sigma^2 + 1) rather than N(0, sigma^2)."""
    return isinstance(model_sampling, sampling.EPS)
