"""Any text-to-image pipeline of diffusers (SD 1.x and 2.x, SDXL, SD3, Flux, ...) as a ``DiffusionProcess``.

There is no code per model family: a denoiser call is the pipeline's own call with a scheduler of a single step that
returns the clean estimate (``schedulers.OneStep``). Guidance, prompt encoders, adapters and control images are
therefore whatever the pipeline makes of them. Prompts are encoded once. Options that look at the number of the step
(such as a guidance that ends half-way) see the first step only.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..samplers.processes.chunking import Chunker
from ..samplers.processes.denoise import Denoised
from ..samplers.processes.diffusion import Decode, DiffusionProcess
from ..samplers.processes.streams import Streams
from ..samplers.protocols import SearchError
from .decode import PipelineDecode
from .encodings import Remembered, tensors_of
from .schedulers import OneStep, Parameterisation


class _Prepared(Exception):
    """Raised inside a pipeline's call once it has said how its latents look and which steps it would take."""


class PipelineDenoise:
    """A pipeline as ``samplers.processes.denoise.Denoise``.

    Args:
        pipe: a loaded pipeline; it is not changed.
        prompts: one per group.
        call: further arguments of the pipeline's call (guidance_scale, negative_prompt, height, width, ...). A list
            with one entry per prompt is dealt out to the groups.
        parameterisation: how the network's output is read.

    Attributes:
        nfe_per_call: network rows per particle: expected 1 before the first call, then measured.
    """

    can_encode = True

    def __init__(self, pipe: Any, prompts: Sequence[str], call: dict[str, Any], parameterisation: Parameterisation):
        self.pipe = _detached(pipe)
        self.prompts, self.call, self.parameterisation = list(prompts), dict(call), parameterisation
        self.network: Any = _network(pipe)
        self.nfe_per_call = 1
        self._scheduler_config = pipe.scheduler.config
        self._conditions: Tensor | None = None

    def encode(self, texts: Sequence[str]) -> None:
        """Nothing to do: prompts are encoded when they are met, and remembered."""

    def __call__(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None = None) -> Denoised:
        """Clean estimates float32 ``[n, ...]`` of states ``x`` at ``sigma``; ``prompts`` replace the groups' own."""
        grad = torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(grad), _CountedRows(self.network) as rows:
            scheduler = OneStep(self._scheduler_config, self.parameterisation, x, sigma)
            self._run(scheduler, group, x.to(self.network.dtype), 1, prompts)
        if scheduler.result is None:
            raise SearchError(f"{type(self.pipe).__name__} took no step: it is no text-to-image pipeline")
        self.nfe_per_call = -(-rows.count // len(x))
        return Denoised(scheduler.result, rows.count)

    def prepare(self, steps: int) -> tuple[tuple[int, ...], Tensor, torch.device]:
        """(shape of one latent, sigmas ``[T + 1]``, device) that the pipeline would use for ``steps`` steps.

        The call is made up to the point where both are known; its checks of the arguments are done by then.
        """
        found: dict[str, Any] = {}

        def note(name: str, value: Any) -> None:
            found[name] = value
            if len(found) == 2:
                raise _Prepared

        scheduler = copy.deepcopy(self.pipe.__dict__["scheduler"])
        set_timesteps, prepare_latents = scheduler.set_timesteps, self.pipe.prepare_latents

        @functools.wraps(set_timesteps)  # pipelines look at its signature
        def recorded(*args, **kwargs):
            set_timesteps(*args, **kwargs)
            note("scheduler", scheduler)

        @functools.wraps(prepare_latents)
        def drawn(*args, **kwargs):
            made = prepare_latents(*args, **kwargs)
            note("latents", made[0] if isinstance(made, tuple) else made)
            return made

        scheduler.set_timesteps = recorded
        self.pipe.__dict__["prepare_latents"] = drawn
        try:
            with torch.no_grad():
                self._run(scheduler, torch.arange(len(self.prompts)), None, steps)
        except _Prepared:
            pass
        finally:
            del self.pipe.__dict__["prepare_latents"]
        if len(found) < 2:
            raise SearchError(f"{type(self.pipe).__name__} is no text-to-image pipeline that searches can run on")
        latents = found["latents"]
        return tuple(latents.shape[1:]), self.parameterisation.schedule(scheduler), latents.device

    def prompt_embedding(self, group: Tensor) -> Tensor | None:
        """Prompt embeddings ``[n, W]``, the mean over the tokens; None if the pipeline does not show them."""
        if self._conditions is None:
            encoded = getattr(self.pipe, "encode_prompt", None)
            known = [encoded.of(prompt) for prompt in self.prompts] if isinstance(encoded, Remembered) else []
            rows = [next((t for t in tensors_of(made) if t.dim() == 3), None) for made in known]
            found = [row.float().mean(1) for row in rows if row is not None]
            if not found or len(found) < len(rows):
                return None
            self._conditions = torch.cat(found)
        return self._conditions[group.to(self._conditions.device)]

    def _run(
        self,
        scheduler: Any,
        group: Tensor,
        latents: Tensor | None,
        steps: int,
        prompts: Sequence[str | None] | None = None,
    ) -> None:
        """The pipeline's call, without the decorator that switches gradients off."""
        groups = group.tolist()
        texts = [text or self.prompts[g] for g, text in zip(groups, prompts or [None] * len(groups), strict=True)]
        dealt = {
            name: [value[g] for g in groups] if isinstance(value, list) and len(value) == len(self.prompts) else value
            for name, value in self.call.items()
        }
        self.pipe.__dict__["scheduler"] = scheduler
        inspect.unwrap(type(self.pipe).__call__)(
            self.pipe,
            prompt=texts,
            latents=latents,
            num_inference_steps=steps,
            output_type="latent",
            return_dict=False,
            **dealt,
        )


class _CountedRows:
    """Counts the rows that pass through a network while it is entered."""

    def __init__(self, network: torch.nn.Module):
        self.network, self.count = network, 0

    def __enter__(self):
        self._hook = self.network.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *exception):
        self._hook.remove()

    def _note(self, module, args, kwargs):
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        self.count += 0 if first is None else len(first)


def _detached(pipe: Any) -> Any:
    """A copy of a pipeline that shares its networks, is silent and remembers encodings."""
    own = copy.copy(pipe)
    own.__dict__["_progress_bar_config"] = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    own.__dict__["scheduler"] = pipe.scheduler
    if hasattr(pipe, "encode_prompt"):
        # Bound to the copy, so that what the method reads of the pipeline's state is the running call's.
        own.__dict__["encode_prompt"] = Remembered(type(pipe).encode_prompt.__get__(own))
    return own


def _network(pipe: Any) -> torch.nn.Module:
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise SearchError(f"{type(pipe).__name__} has neither a unet nor a transformer: searches cannot run on it")


def pipeline_process(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int = 28,
    eta: Any = 1.0,
    seed: int = 0,
    sigmas: Tensor | None = None,
    max_batch: int | None = None,
    gradient_through: str = "denoiser",
    group_offset: int = 0,
    decode: Decode | None = None,
    **call: Any,
) -> DiffusionProcess:
    """A ``DiffusionProcess`` over a diffusers pipeline, one group per prompt.

    Args:
        pipe: a loaded text-to-image pipeline. Its scheduler says which noise levels ``steps`` steps visit.
        prompts: one image each.
        steps: >= 1; of the schedule, unless ``sigmas`` gives one.
        eta: 0 (ODE) .. 1 (ancestral), or a rule of ``samplers.processes.sde``.
        seed, group_offset: of all noise.
        sigmas: ``[T + 1]`` decreasing, e.g. of ``sde.clock_grid``, or None for the scheduler's.
        max_batch: particles per network call, None for all at once.
        gradient_through: "denoiser" or "decoder", see ``DiffusionProcess``.
        decode: clean latents -> images, or None for the pipeline's VAE.
        call: arguments of the pipeline's own call: guidance_scale, negative_prompt, height, width, ...

    Raises:
        SearchError: a pipeline, scheduler or argument that cannot work. The pipeline's own checks raise ValueError.
    """
    if not prompts:
        raise SearchError("prompts is empty: at least one is needed")
    if steps < 1:
        raise SearchError(f"steps is {steps}: at least 1 is needed")
    taken = sorted({"prompt", "latents", "num_inference_steps", "output_type", "generator", "eta"} & set(call))
    if taken:
        raise SearchError(f"{taken[0]} is set by the search: leave it out")
    if not hasattr(pipe, "scheduler"):
        raise SearchError(f"pipe is a {type(pipe).__name__}: a loaded diffusers pipeline is needed")
    denoise = PipelineDenoise(pipe, prompts, call, Parameterisation.of(pipe.scheduler))
    shape, schedule, device = denoise.prepare(steps)
    return DiffusionProcess(
        denoise,
        denoise.parameterisation.interpolant,
        schedule if sigmas is None else sigmas,
        decode or PipelineDecode(pipe, _size(pipe, call)),
        shape,
        len(prompts),
        Streams(seed, group_offset),
        eta=eta,
        chunker=Chunker(max_batch),
        device=device,
        gradient_through=gradient_through,
    )


def _size(pipe: Any, call: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) in pixels that the pipeline will make."""
    default = getattr(pipe, "default_sample_size", None)
    default = None if default is None else default * getattr(pipe, "vae_scale_factor", 8)
    height, width = call.get("height") or default, call.get("width") or default
    return None if height is None or width is None else (int(height), int(width))
