"""``Re-render Particle``: run one particle of an earlier search again, alone."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.after.replay import WINNER, check_same_run, moves_of, replay_of
from ..samplers.plan import Plan
from .host.latents import check_latent_input, with_samples
from .host.prompts import ClipEncoder
from .host.results import HostResult
from .host.run import AUTO_ETA, SearchOptions
from .host.stock_samplers import sampler_named
from .search_ksampler import guided_sample, sampling_inputs, schedule
from .search_sampler import SearchSampler
from .types import CATEGORY, TraceType, VerifierType


def particle_input() -> io.Int.Input:
    """Which particle of a trace is meant."""
    return io.Int.Input(
        "particle",
        default=WINNER,
        min=WINNER,
        max=10_000_000,
        tooltip="Number of the particle in the trace or the Search panel. -1 = the winner.",
    )


class RerenderParticleNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeRerenderParticle",
            display_name="Re-render Particle",
            category=f"{CATEGORY}/trace",
            description="Re-renders one particle from its seed and lineage, at the cost of one image. Model, seed, "
            "scheduler, steps and prompts must be those of the search.",
            inputs=[
                TraceType.Input("trace", tooltip="The record of the search, from Search KSampler."),
                particle_input(),
                io.Int.Input(
                    "image",
                    default=0,
                    min=0,
                    max=4095,
                    tooltip="If particle is -1: which image of the batch, from 0.",
                ),
                *sampling_inputs(sampler=False),
                io.Float.Input(
                    "eta",
                    default=AUTO_ETA,
                    min=AUTO_ETA,
                    max=1.0,
                    step=0.05,
                    tooltip="Randomness of each step, as in the search; -1: read it from the trace.",
                ),
                VerifierType.Input(
                    "verifier", optional=True, tooltip="Only needed if the particle followed a gradient (DAS)."
                ),
                io.Vae.Input("vae", optional=True, tooltip="Needed together with the verifier."),
                io.Clip.Input("clip", optional=True, tooltip="Only needed if the particle's prompt was rewritten."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The particle's finished latent.")],
        )

    @classmethod
    def execute(
        cls, trace, particle, image, model, seed, steps, cfg, scheduler, positive, negative, latent_image, denoise, eta,
        verifier=None, vae=None, clip=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_latent_input(latent_image, model.model)
        results: list[HostResult] = []
        replay = replay_of(trace, particle, image)
        name = trace.meta.get("sampler")
        prompted = replay.lineage.prompts and clip is not None
        options = SearchOptions(
            Plan(
                replay,
                sampler=sampler_named(name) if name else None,
                moves=moves_of(trace) if eta == AUTO_ETA else None,
                encoder=ClipEncoder(clip) if prompted else None,
            ),
            verifier if replay.guided else None,
            vae if replay.guided else None,
            prompt=(trace.meta.get("prompts") or ["replay"])[0],
            eta=eta,
            stream_ids=latent_image.get("batch_index"),
            on_result=results.append,
            before_run=lambda process: check_same_run(trace, seed=seed, sigmas=process.sigmas, eta=process.eta),
        )
        sampler = SearchSampler(options)
        sigmas = schedule(model, scheduler, steps, denoise, name or "euler")
        guided_sample(model, (positive, negative), cfg, sampler, sigmas, latent_image, seed, particles=1)
        return io.NodeOutput(with_samples(latent_image, results[-1].finalists, [replay.lineage.group]))


NODES = [RerenderParticleNode]
