"""``Search KSampler``: KSampler's widgets plus a search, in one node."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io
from torch import Tensor

from ..samplers.protocols import SearchError
from .host.compat import fitting_latent
from .host.latents import Latent, check_latent_input, with_samples
from .host.residency import reserve_for
from .host.results import HostResult
from .host.run import SearchOptions
from .host.stock_samplers import sampler_named
from .search_inputs import clip_inputs, common_inputs, prompt_problem, source_inputs
from .search_sampler import SearchSampler
from .types import CATEGORY, ScoresType, TraceType

RESERVE_KEY = "testtime_reserve"


def schedule(model, scheduler: str, steps: int, denoise: float, sampler: str = "euler") -> Tensor:
    """KSampler's sigmas ``[steps + 1]`` for a MODEL; raises SearchError for steps or denoise that leave none.

    Some samplers (dpm_2, uni_pc) leave the last level but one out.
    """
    if steps < 1:
        raise SearchError(f"steps is {steps}: at least 1 is needed")
    if not 0.0 < denoise <= 1.0:
        raise SearchError(f"denoise is {denoise}: it must be above 0 (keep the latent) and at most 1 (new image)")
    stock = comfy.samplers.KSampler(
        model,
        steps=steps,
        device=model.load_device,
        sampler=sampler,
        scheduler=scheduler,
        denoise=denoise,
        model_options=model.model_options,
    )
    return stock.sigmas


def guided_sample(
    model,
    conditioning: tuple[Any, Any],
    cfg: float,
    sampler: comfy.samplers.Sampler,
    sigmas: Tensor,
    latent: Latent,
    seed: int,
    particles: int,
) -> Tensor:
    """Run a SAMPLER under CFG as KSampler would, with memory reserved for ``particles`` latents at once.

    Returns latents ``[G, ...]`` on the device they were sampled on.
    """
    samples = fitting_latent(model, latent)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, RESERVE_KEY, reserve_for(particles))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conditioning)
    guider.set_cfg(cfg)
    return guider.sample(
        noise,
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def sampler_input() -> io.Combo.Input:
    """KSampler's list of samplers."""
    return io.Combo.Input(
        "sampler_name",
        options=list(comfy.samplers.KSampler.SAMPLERS),
        default="euler",
        tooltip="Whose steps the search makes. euler, euler_ancestral, lcm, dpmpp_2m, dpmpp_2m_sde, res_multistep, "
        "er_sde and ddim go with every method; the others run one candidate after the other, and go with methods that "
        "choose at the end or at a few steps.",
    )


def sampling_inputs(sampler: bool = True) -> list:
    """KSampler's inputs in KSampler's order, with or without the sampler's name."""
    return [
        io.Model.Input("model", tooltip="The model used for denoising the input latent."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed for all noise. Same seed and settings, same search.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Denoising steps per candidate."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance scale. 1.0 skips the negative prompt and halves the cost.",
        ),
        *([sampler_input()] if sampler else []),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            tooltip="How noise is removed over the steps.",
        ),
        io.Conditioning.Input("positive", tooltip="What to include in the image, for the model."),
        io.Conditioning.Input("negative", tooltip="What to keep out of the image, for the model."),
        io.Latent.Input("latent_image", tooltip="The latents to denoise; each returns its best of N."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Amount of denoising; lower values keep the structure of the latent (image to image).",
        ),
    ]


class SearchKSamplerNode(io.ComfyNode):
    """Search KSampler: builds the SAMPLER of Search Sampler and runs it under CFG."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSearchKSampler",
            display_name="Search KSampler",
            category=f"{CATEGORY}/search",
            description="KSampler that spends extra compute to find a better image: N candidates per image, chosen "
            "by a verifier. Returns the best latent of each image, all finalists sorted, their scores and the trace.",
            inputs=[*sampling_inputs(), *common_inputs(), *clip_inputs(), *source_inputs()],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The best latent of every image."),
                io.Latent.Output(
                    display_name="finalists", tooltip="All finalists, by image, then by score, best first."
                ),
                ScoresType.Output(display_name="scores", tooltip="Scores of the finalists, in their order."),
                TraceType.Output(
                    display_name="trace", tooltip="The record of the search, for Search Report and Re-render Particle."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt=None, steps=None, max_nfe=None):
        # Naming an input here switches the host's own check of it off.
        if steps is not None and steps < 1:
            return f"steps is {steps}: at least 1 is needed"
        if max_nfe is not None and max_nfe < 0:
            return f"max_nfe is {max_nfe}: it must be >= 0 (0 = no limit)"
        if steps is not None and max_nfe and max_nfe < steps:
            return f"max_nfe is {max_nfe}: one image of {steps} steps needs at least {steps} forward passes"
        return prompt_problem(prompt)

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, scheduler, positive, negative, latent_image, denoise, sampler_name=None, **search
    ) -> io.NodeOutput:
        layout = check_latent_input(latent_image, model.model)
        results: list[HostResult] = []
        options = SearchOptions(**search, stream_ids=latent_image.get("batch_index"), on_result=results.append)
        if sampler_name is not None:
            options = options.sampled_by(sampler_named(sampler_name))
        sampler = SearchSampler(options)
        particles = layout.rows_per_call or latent_image["samples"].shape[0] * options.search.method.population
        sigmas = schedule(model, scheduler, steps, denoise, sampler_name or "euler")
        guided_sample(model, (positive, negative), cfg, sampler, sigmas, latent_image, seed, particles)
        result = results[-1]
        return io.NodeOutput(
            with_samples(latent_image, result.best),
            with_samples(latent_image, result.finalists, result.scores.group),
            result.scores,
            result.trace,
        )


NODES = [SearchKSamplerNode]
