"""The menu: order of the sub-menus, words that a search for a node finds, and nodes that never met released weights."""

from __future__ import annotations

from dataclasses import fields

from comfy_api.latest import io

from ..samplers.methods.registry import ROWS
from .types import CATEGORY

ORDER = (
    "search",
    "methods",
    "methods/noise",
    "modifiers",
    "verifiers",
    "rewriters",
    "trace",
    "infinity",
    "video",
    "examples",
)
"""Sub-menus in the order of use."""

UNTRIED = {
    "TestTimeCLIPScore",
    "TestTimePickScore",
    "TestTimeHPS",
    "TestTimeImageReward",
    "TestTimeAesthetic",
    "TestTimeSimilarity",
    "TestTimeVLM",
    "TestTimeEditJudge",
    "TestTimeRefineByEdit",
    "TestTimeVLMClip",
    "TestTimeClipRewriter",
    "TestTimeGenEval",
    "TestTimeLoadFeatures",
    "TestTimeLoadInfinity",
    "TestTimeInfinityTextEncode",
    "TestTimeLocalRewriter",
    "TestTimeTwoExpertGuider",
    "TestTimeVideoReward",
    "TestTimeTournament",
    "TestTimeHPSv3",
}
"""Nodes whose models were never run here with their released weights: marked experimental."""

ALIASES = {
    **{row.node: row.aliases for row in ROWS if row.aliases},
    "TestTimeSearchKSampler": ("test-time scaling", "best of", "inference scaling", "ksampler", "search"),
    "TestTimeSearchSampler": ("test-time scaling", "custom sampler", "inference scaling"),
    "TestTimeSetSDE": ("stochastic path", "flow sde", "interpolant", "noise"),
    "TestTimeUseWorkers": ("multi gpu", "parallel", "ray", "distributed"),
    "TestTimeFitToBudget": ("search budget", "nfe", "time limit"),
    "TestTimeTournament": ("pairwise", "compare images", "vlm judge", "elo", "duel"),
    "TestTimeAddRewriting": ("re-prompted", "prompt rewriting"),
    "TestTimeContinueSearch": ("resume", "branch"),
    "TestTimeLoadValueNetwork": ("value function",),
    "TestTimeScoreImages": ("rank", "sort images", "rank images", "keep best"),
    "TestTimeCompareVerifiers": ("rank", "correlation", "agreement"),
    "TestTimeEnsemble": ("combine verifiers", "weights", "reward"),
    "TestTimeCLIPScore": ("reward", "clip similarity", "prompt adherence"),
    "TestTimePickScore": ("reward", "preference", "human preference"),
    "TestTimeHPSv3": ("reward", "preference", "human preference score"),
    "TestTimeHPS": ("reward", "preference", "human preference score"),
    "TestTimeImageReward": ("reward", "preference"),
    "TestTimeAesthetic": ("aesthetic", "laion", "beauty", "reward", "siglip"),
    "TestTimeSimilarity": ("reward", "dino", "reference image"),
    "TestTimeVLM": ("vqascore", "judge", "llm judge", "qwen", "reward"),
    "TestTimeVLMClip": ("vqascore", "judge", "text encoder", "qwen3-vl", "krea 2"),
    "TestTimeClipRewriter": ("prompt enhancer", "text encoder", "qwen3-vl"),
    "TestTimeRefineByEdit": ("fix image", "self correction", "reflection", "edit loop", "checklist"),
    "TestTimeEditJudge": ("image editing", "edit reward", "kontext", "qwen edit", "instruction"),
    "TestTimePreservation": ("image editing", "keep the rest", "unchanged", "difference"),
    "TestTimeVLMEndpoint": ("vqascore", "judge", "openai", "ollama", "vllm"),
    "TestTimeGenEval": ("objects", "detector", "counting", "owl", "grounding dino"),
    "TestTimeVideoReward": ("reward", "video quality", "motion quality", "videoalign"),
    "TestTimePickByHand": ("image picker", "human", "choose image", "preview chooser"),
    "TestTimeJPEG": ("compressibility", "file size"),
    "TestTimeRerenderParticle": ("replay", "reproduce"),
    "TestTimeRecoverSearch": ("cancelled", "crash", "resume"),
    "TestTimeSearchReport": ("tree", "plot"),
    "TestTimeSaveSearch": ("save image", "trace"),
    "TestTimeLoadShapesWorld": ("example model", "toy model"),
}
"""What people may call a node who do not know its name."""


def place(node: type[io.ComfyNode]) -> int:
    """Where a node's sub-menu stands; those of no known sub-menu come last."""
    menu = node.define_schema().category.removeprefix(f"{CATEGORY}/")
    return ORDER.index(menu) if menu in ORDER else len(ORDER)


def described(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Add to a node's schema what this module knows of it; returns the class. Older hosts have no other names."""
    define = node.define_schema.__func__
    if hasattr(define, "in_menu"):
        return node

    def define_schema(cls) -> io.Schema:
        schema = define(cls)
        schema.is_experimental = schema.is_experimental or schema.node_id in UNTRIED
        if "search_aliases" in {field.name for field in fields(schema)}:
            schema.search_aliases = list(ALIASES.get(schema.node_id, ()))
        return schema

    define_schema.in_menu = True
    node.define_schema = classmethod(define_schema)
    return node
