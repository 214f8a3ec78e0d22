"""``TTS-VAR`` and the image features that it clusters by."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.clustering import REDUCTIONS, PixelFeatures
from ..samplers.methods import TTSVAR
from ..samplers.methods.population_plan import NAMED_PLANS, PopulationPlan
from ..samplers.methods.tts_var import CLUSTER_BY, POTENTIALS, TOP
from ..samplers.protocols import SearchError
from ..samplers.smc.resampling import SCHEMES
from .method_inputs import method_schema, search_output
from .types import ExtractorType, ValueType


def numbers(text: str | None, name: str) -> list[int]:
    """Integers of a comma-separated widget; SearchError names the widget and what stands in it."""
    try:
        return [int(part) for part in (text or "").replace(" ", ",").split(",") if part]
    except ValueError:
        raise SearchError(f"{name} is {text!r}: write whole numbers with commas between, e.g. 6, 9") from None


def plan_of(batch_schedule: str, cluster_scales: str, resample_scales: str) -> PopulationPlan | None:
    """The widgets' plan, None for the default one. SearchError for one that cannot work."""
    batches = numbers(batch_schedule, "batch_schedule")
    cluster = numbers(cluster_scales, "cluster_scales")
    resample = numbers(resample_scales, "resample_scales")
    if not batches:
        if cluster or resample:
            raise SearchError(
                "batch_schedule is empty but scales to select at are given: write how many particles (in multiples of "
                "N) are left after each scale, e.g. 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1"
            )
        return None
    return PopulationPlan.from_batches(batches, cluster, resample, len(batches))


class TTSVARNode(io.ComfyNode):
    """TTS-VAR."""

    @classmethod
    def define_schema(cls):
        return method_schema(
            TTSVAR,
            "Many candidates while the image is small, few once it is large: clustering keeps the early ones "
            "different, scores choose among the later ones (Chen et al. 2025). Made for Infinity; on diffusion "
            "models it uses steps instead of scales.",
            [
                io.Int.Input(
                    "particles",
                    default=2,
                    min=1,
                    max=256,
                    tooltip="N: images that are finished. The search starts with 8 N (or as batch_schedule says).",
                ),
                io.Combo.Input(
                    "potential",
                    options=list(POTENTIALS),
                    default="value",
                    tooltip="What the resampling weights are based on. value: the score now. max, sum: over the "
                    "scales so far. diff: the gain since the last scale. All but value score every scale, which "
                    "costs decodes.",
                ),
                io.Float.Input(
                    "strength",
                    default=10.0,
                    min=0.0,
                    max=10_000.0,
                    step=0.5,
                    tooltip="Lambda: particles are drawn in proportion to exp(strength * potential). 10 suits "
                    "ImageReward, whose scores spread by about 1.",
                ),
                io.Combo.Input(
                    "features",
                    options=list(REDUCTIONS),
                    default="pca",
                    tooltip="How an image's patch features become the vector that is clustered. pca = projection on "
                    "their main direction, pool = their average.",
                ),
                io.String.Input(
                    "batch_schedule",
                    default="",
                    optional=True,
                    tooltip="Particles left after each scale, in multiples of N, one number per scale, e.g. for 13 "
                    "scales 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1. Empty = the published schedule, fitted to the "
                    "number of scales.",
                ),
                io.String.Input(
                    "cluster_scales",
                    default="",
                    optional=True,
                    tooltip="Scales (from 0) after which clusters choose, e.g. 2, 5. Used with batch_schedule.",
                ),
                io.String.Input(
                    "resample_scales",
                    default="",
                    optional=True,
                    tooltip="Scales (from 0) after which scores choose, e.g. 6, 9. Used with batch_schedule.",
                ),
                io.Int.Input(
                    "cluster_side",
                    default=0,
                    min=0,
                    max=256,
                    optional=True,
                    tooltip="Decode size (in codes along the longer side) for images that are only clustered. "
                    "Smaller is faster, but other images may be kept than at full size. 0 = preview size; other "
                    "sizes work on next-scale models only.",
                ),
                io.Combo.Input(
                    "plan",
                    options=list(NAMED_PLANS),
                    default="published",
                    optional=True,
                    tooltip="Where the population shrinks. published = clusters after two early scales, scores after "
                    "two later ones. scores = no clusters, all candidates go on until scores say something; costs a "
                    "little more. batch_schedule overrides it.",
                ),
                io.Combo.Input(
                    "selection",
                    options=["multinomial", TOP, *(name for name in SCHEMES if name != "multinomial")],
                    default="multinomial",
                    optional=True,
                    tooltip="How scores choose. multinomial = drawn by weight, as published: a good image may be kept "
                    "several times. top = the best, each once; ignores strength.",
                ),
                io.Combo.Input(
                    "cluster_by",
                    options=list(CLUSTER_BY),
                    default="features",
                    optional=True,
                    tooltip="What is clustered. features = image features of decoded previews, as published. codes = "
                    "the image's codes as they are, which saves these decodes (next-scale models only).",
                ),
                ExtractorType.Input(
                    "extractor",
                    optional=True,
                    tooltip="Image features for clustering, e.g. DINOv2 as published. If empty, average colours are "
                    "used; they need no model.",
                ),
                ValueType.Input(
                    "value_function",
                    optional=True,
                    tooltip="A value network for this next-scale model. Replaces previews and verifier when "
                    "choosing; the verifier still scores the finished images.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, batch_schedule=None, cluster_scales=None, resample_scales=None):
        if None in (batch_schedule, cluster_scales, resample_scales):
            return True  # linked: known when the node runs
        try:
            plan_of(batch_schedule, cluster_scales, resample_scales)
        except SearchError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, particles, potential, strength, features, batch_schedule="", cluster_scales="", resample_scales="",
        cluster_side=0, plan="published", selection="multinomial", cluster_by="features", extractor=None,
        value_function=None,
    ) -> io.NodeOutput:  # fmt: skip
        own = plan_of(batch_schedule, cluster_scales, resample_scales)
        return search_output(
            TTSVAR(
                particles,
                own or plan,
                extractor or PixelFeatures(),
                features=features,
                potential=potential,
                strength=strength,
                cluster_side=cluster_side,
                cluster_by=cluster_by,
                selection=selection,
                value_function=value_function,
            )
        )


NODES = [TTSVARNode]
