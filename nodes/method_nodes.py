"""One node per search method; each gives a SEARCH. Widgets are the fields of the classes in ``samplers.methods``."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering
from ..samplers.smc.tempering import Alpha
from . import guidance_check
from .method_inputs import (
    Windowed,
    alpha_inputs,
    method_schema,
    particles_input,
    scheme_input,
    search_output,
    tempering_inputs,
    value_input,
    window_inputs,
    window_problem,
)


class BestOfNNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            BestOfN,
            "Makes N images and keeps the one with the best score. Works with any eta.",
            [particles_input()],
        )

    @classmethod
    def execute(cls, particles) -> io.NodeOutput:
        return search_output(BestOfN(particles=particles))


class SVDDNode(Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            SVDD,
            "Tries M continuations at every step and goes on with the most promising one (Li et al. 2024). Pushes "
            "the score harder than any other method, and is the greediest.",
            [
                io.Int.Input(
                    "candidates",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="M: continuations tried per step (5 to 20 in the paper). M continuations take about M "
                    "times as long.",
                ),
                *alpha_inputs(0.0, 0.0, " 0 = always take the best, as the published code does."),
                *window_inputs(0.0, 1.0, 1, "choice"),
                io.Int.Input(
                    "rounds",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="After the M continuations of a step, this many times M more that vary the best one's "
                    "noise. Finds higher scores for the same number of continuations, and weak spots of the verifier.",
                ),
                io.Int.Input(
                    "block",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Steps that continuations go on alone before they are compared. 1 = compare at every step. "
                    "More = fewer decodes, and a weaker search. As many as there are steps = Best-of-N.",
                ),
                *value_input(),
            ],
        )

    @classmethod
    def execute(
        cls, candidates, alpha, alpha_mode, start, end, every, rounds=0, block=1, value_function=None
    ) -> io.NodeOutput:
        temperature = Alpha(alpha, alpha_mode) if alpha > 0 else None
        return search_output(
            SVDD(
                candidates=candidates,
                alpha=temperature,
                start=start,
                end=end,
                every=every,
                value_function=value_function,
                rounds=rounds,
                block=block,
            )
        )


class SMCNode(Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            SMC,
            "Sequential Monte Carlo: phases the score in over the steps and resamples when a few particles carry "
            "most of the weight. Stays closest to what the model itself would make.",
            [
                particles_input(),
                *alpha_inputs(),
                *tempering_inputs(),
                *window_inputs(0.0, 0.9, 1, "resampling"),
                scheme_input("systematic"),
                *value_input(),
            ],
        )

    @classmethod
    def execute(
        cls, particles, alpha, alpha_mode, tempering, ess_threshold, start, end, every, resampling, value_function=None
    ) -> io.NodeOutput:
        return search_output(
            SMC(
                value_function=value_function,
                particles=particles,
                alpha=Alpha(alpha, alpha_mode),
                tempering=tempering,
                ess_threshold=ess_threshold or None,
                start=start,
                end=end,
                every=every,
                resampling=resampling,
            )
        )


class DASNode(Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            DAS,
            "SMC whose steps follow the gradient of the score (Kim et al. 2025). Needs a differentiable verifier. If "
            "the model has no gradient, it runs without guidance and warns.",
            [
                particles_input(),
                *alpha_inputs(),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Strength of the gradient: 1 as derived, 0 is SMC. Any value is corrected for by the "
                    "weights.",
                ),
                io.Combo.Input(
                    "gradient_through",
                    options=["denoiser", "decoder"],
                    default="denoiser",
                    tooltip="denoiser: exact gradient, about three times the cost, needs a lot of memory. decoder: "
                    "through verifier and VAE only; cheap, approximate.",
                ),
                *tempering_inputs(),
                *window_inputs(0.0, 0.9, 1, "resampling"),
                scheme_input("ssp"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, guidance=None, start=None, end=None):
        # Naming an input here switches the host's own check of it off.
        if guidance is not None and not 0.0 <= guidance <= 100.0:
            return f"guidance is {guidance}: it must lie in 0 (SMC) .. 100"
        if guidance is None or guidance > 0:
            node = getattr(getattr(cls, "hidden", None), "unique_id", None)
            reason = guidance_check.problem(node, guidance_check.queued())
            if reason:
                return reason
        return window_problem(start, end)

    @classmethod
    def execute(
        cls,
        particles,
        alpha,
        alpha_mode,
        guidance,
        gradient_through,
        tempering,
        ess_threshold,
        start,
        end,
        every,
        resampling,
    ) -> io.NodeOutput:
        return search_output(
            DAS(
                particles=particles,
                alpha=Alpha(alpha, alpha_mode),
                guidance=guidance,
                gradient_through=gradient_through,
                tempering=tempering,
                ess_threshold=ess_threshold or None,
                start=start,
                end=end,
                every=every,
                resampling=resampling,
            )
        )


class FKSteeringNode(Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            FKSteering,
            "Resamples the particles at a few steps by a potential of their scores so far (Feynman-Kac steering, "
            "Singhal et al. 2025). With the potential rt it is importance sampling by the present score.",
            [
                particles_input(),
                *alpha_inputs(),
                io.Combo.Input(
                    "potential",
                    options=["diff", "max", "rt", "sum"],
                    default="diff",
                    tooltip="What particles are resampled by. diff: how much the score rose. max: the best score so "
                    "far. rt: the present score (importance sampling). sum: all scores added up (heavy-tailed, "
                    "experimental). The paper's lambda is 1 / alpha.",
                ),
                *window_inputs(0.2, 0.8, 4, "resampling"),
                scheme_input("multinomial"),
            ],
        )

    @classmethod
    def execute(cls, particles, alpha, alpha_mode, potential, start, end, every, resampling) -> io.NodeOutput:
        return search_output(
            FKSteering(
                particles=particles,
                alpha=Alpha(alpha, alpha_mode),
                potential=potential,
                start=start,
                end=end,
                every=every,
                resampling=resampling,
            )
        )


NODES = [BestOfNNode, SVDDNode, SMCNode, DASNode, FKSteeringNode]
