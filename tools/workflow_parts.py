"""What the example workflows share: the embedded model with a prompt, the search in the middle, results on the right.

From left to right: model and prompt with a note and the method below, the search, its results. All of it is seen at
once when a workflow opens (``workflow_graph.VIEW``), beside the open panel. The loader stands at the top; the prompts
begin ``WIRES`` lower, so that the loader's wires run straight over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workflow_graph import Group, Link, Node, Workflow, note

MODEL_BLUE, START_GREEN, SEARCH_BROWN, RESULT_VIOLET = "#3f789e", "#3f6e4e", "#8a5a2b", "#5a4a8a"
WIRES = 140
"""Room for wires above the prompts, in pixels."""
PREVIEW = 200
"""Room for the preview that a sampler shows while it runs, in pixels."""
REPORT_DROP = 290
"""Puts the decoder of the finalists beside the report, in pixels."""
NARROW, SEARCH = 290, 340
"""Widths of most nodes, and of those that search, in pixels."""


def lowered(*nodes: Node, drop: int = WIRES) -> list[Node]:
    """A column that leaves room for wires above it."""
    nodes[0].drop = drop
    return list(nodes)


def text_node(text: str, width: int = 290) -> Node:
    """The prompt, written once for model and verifier."""
    return Node("PrimitiveStringMultiline", {"value": text}, "Prompt", width, lines=4)


def encode(clip: Link, text: str | Link, title: str, width: int = 290) -> Node:
    """A prompt for the model."""
    return Node("CLIPTextEncode", {"clip": clip, "text": text}, title, width, lines=2)


class World:
    """The nodes that most workflows share: embedded model, prompts, an empty latent."""

    def __init__(self, prompt: str, model: str = "diffusion", batch: int = 1):
        self.load = Node("TestTimeLoadShapesWorld", {"model": model}, width=290)
        self.prompt = text_node(prompt)
        self.positive = encode(self.load["clip"], self.prompt["STRING"], "Positive prompt")
        self.negative = encode(self.load["clip"], "", "Negative prompt")
        size = {"width": 128, "height": 128, "batch_size": batch}
        self.latent = Node("EmptyLatentImage", size, "Empty latent", width=320)

    def before(self, text: str, left: Sequence[Node], right: Sequence[Node], title: str = "Method") -> list[Group]:
        """The group of model and prompts, and that below it: the note over ``left``, beside it ``right``."""
        model = Group("Model and prompt", [[self.load, self.prompt], lowered(self.positive, self.negative)], MODEL_BLUE)
        for node in (*left, *right):
            node.width = NARROW
        return [model, Group(title, [[note(text), *left], [*right]], SEARCH_BROWN, below=True)]

    def plain(self, **changes) -> dict:
        """Inputs of a stock KSampler."""
        return {
            "model": self.load["model"],
            "positive": self.positive["CONDITIONING"],
            "negative": self.negative["CONDITIONING"],
            "latent_image": self.latent["LATENT"],
            "seed": 7,
            "steps": 20,
            "cfg": 2.5,
            "sampler_name": "euler_ancestral",
            "scheduler": "normal",
            **changes,
        }

    def search(self, search: Node, width: int = SEARCH, **changes) -> Node:
        """Search KSampler with the search that comes out of a node."""
        judged = {name: self.load[name] for name in ("vae", "verifier", "held_out")}
        own = {**judged, "search": search["search"], "prompt": self.prompt["STRING"], "sampler_name": "euler"}
        inputs = {**self.plain(), **own, **changes}
        return Node("TestTimeSearchKSampler", inputs, width=width, lines=2, picture=PREVIEW)


def save(images: Link, prefix: str, title: str, size: int = 300) -> Node:
    """Save Image, wide enough to see something."""
    return Node("SaveImage", {"images": images, "filename_prefix": prefix}, title, size, picture=size - 20)


def decode(samples: Link, vae: Link, title: str = "") -> Node:
    """VAE Decode; Nodes 2.0 are never narrower."""
    return Node("VAEDecode", {"samples": samples, "vae": vae}, title, width=225)


def best_only(vae: Link, samples: Link, prefix: str) -> Group:
    """The best image, decoded and saved."""
    best = decode(samples, vae, "Decode the best")
    return Group("Result", [[best], [save(best["IMAGE"], prefix, "Best image", 240)]], RESULT_VIOLET)


def results(vae: Link, sampler: Node, prefix: str) -> Group:
    """The best image, and below it the report of the search."""
    best = decode(sampler["best"], vae, "Decode the best")
    rest = decode(sampler["finalists"], vae, "Decode the finalists")
    rest.drop = REPORT_DROP
    inputs = {"trace": sampler["trace"], "finalists": rest["IMAGE"], "scores": sampler["scores"]}
    report = Node("TestTimeSearchReport", {**inputs, "filename_prefix": f"{prefix}_report"}, width=400, picture=330)
    return Group("Result", [[best, rest], [save(best["IMAGE"], prefix, "Best image"), report]], RESULT_VIOLET)


def one_search(
    name: str, prompt: str | World, text: str, *methods: Node, model: str = "diffusion", **changes
) -> Workflow:
    """The standard workflow: a method (the last of a chain of nodes) on the embedded model."""
    world = World(prompt, model) if isinstance(prompt, str) else prompt
    sampler = world.search(methods[-1], **changes)
    before = world.before(text, methods[:-1], [methods[-1], world.latent])
    search = Group("Search", [[sampler]], SEARCH_BROWN)
    return Workflow(name, [*before, search, results(world.load["vae"], sampler, name)])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the user's: file name, where it is from, image side in pixels, CFG scale."""

    name: str
    url: str
    side: int
    cfg: float

    def load(self) -> Node:
        """The stock loader; the front end offers to download the file where it is missing."""
        file = {"name": self.name, "url": self.url, "directory": "checkpoints"}
        return Node("CheckpointLoaderSimple", {"ckpt_name": self.name}, width=360, models=(file,))


def with_checkpoint(name: str, checkpoint: Checkpoint, text: str, method: Node) -> Workflow:
    """A stock checkpoint, CLIPScore as the judge, and a search."""
    load = checkpoint.load()
    judge = Node("TestTimeCLIPScore", {"clip": "verifiers/openai--clip-vit-large-patch14"}, width=360)
    prompt = text_node("a photograph of a red fox sitting left of a blue bicycle, autumn leaves", 360)
    positive = encode(load["CLIP"], prompt["STRING"], "Positive prompt")
    negative = encode(load["CLIP"], "blurry, deformed", "Negative prompt")
    size = {"width": checkpoint.side, "height": checkpoint.side, "batch_size": 1}
    latent = Node("EmptyLatentImage", size, "Empty latent", width=NARROW)
    method.width = NARROW
    inputs = {
        "model": load["MODEL"],
        "positive": positive["CONDITIONING"],
        "negative": negative["CONDITIONING"],
        "latent_image": latent["LATENT"],
        "verifier": judge["verifier"],
        "vae": load["VAE"],
        "search": method["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
        "steps": 30,
        "cfg": checkpoint.cfg,
        "scheduler": "karras",
    }
    sampler = Node("TestTimeSearchKSampler", inputs, width=340, lines=2, picture=PREVIEW)
    groups = [
        Group("Model, judge and prompt", [[load, judge, prompt], lowered(positive, negative)], MODEL_BLUE),
        Group("Method", [[note(text, 360)], [method, latent]], SEARCH_BROWN, below=True),
        Group("Search", [[sampler]], SEARCH_BROWN),
        results(load["VAE"], sampler, name),
    ]
    return Workflow(name, groups)
