"""What the example workflows share: the embedded model with a prompt, the search in the middle, results on the right.

From left to right: model and prompt with the method and a note below, the search, its results. The loader stands at
the top; what stands between it and the sampler begins ``WIRES`` lower, so that its wires run over the other nodes and
not behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflow_graph import Group, Link, Node, Workflow, note

MODEL_BLUE, START_GREEN, SEARCH_BROWN, RESULT_VIOLET = "#3f789e", "#3f6e4e", "#8a5a2b", "#5a4a8a"
WIRES = 130
"""Room for wires above the nodes in the middle, in pixels."""
PREVIEW = 200
"""Room for the preview that a sampler shows while it runs, in pixels."""
REPORT_DROP = 284
"""Puts the decoder of the finalists beside the report, in pixels."""


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

    def before(self, text: str, *more: Node) -> list[Group]:
        """The note, and the group of model and prompts; ``more`` nodes stand under the prompts."""
        prompts = lowered(self.positive, self.negative, *more)
        model = Group("Model and prompt", [[self.load, self.prompt], prompts], MODEL_BLUE)
        return [model, Group("", [[note(text)]], below=True)]

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

    def search(self, search: Node, **changes) -> Node:
        """Search KSampler with the search that comes out of a node."""
        judged = {name: self.load[name] for name in ("vae", "verifier", "held_out")}
        own = {**judged, "search": search["search"], "prompt": self.prompt["STRING"], "sampler_name": "euler"}
        inputs = {**self.plain(), **own, **changes}
        return Node("TestTimeSearchKSampler", inputs, width=340, lines=2, picture=PREVIEW)


def save(images: Link, prefix: str, title: str, size: int = 300) -> Node:
    """Save Image, wide enough to see something."""
    return Node("SaveImage", {"images": images, "filename_prefix": prefix}, title, size, picture=size - 20)


def decode(samples: Link, vae: Link, title: str = "") -> Node:
    """VAE Decode."""
    return Node("VAEDecode", {"samples": samples, "vae": vae}, title, width=220)


def best_only(vae: Link, samples: Link, prefix: str) -> Group:
    """The best image, decoded and saved."""
    best = decode(samples, vae, "Decode the best")
    return Group("Result", [[best], [save(best["IMAGE"], prefix, "Best image", 340)]], RESULT_VIOLET)


def results(vae: Link, sampler: Node, prefix: str) -> Group:
    """The best image, and below it the report of the search."""
    best = decode(sampler["best"], vae, "Decode the best")
    rest = decode(sampler["finalists"], vae, "Decode the finalists")
    rest.drop = REPORT_DROP
    inputs = {"trace": sampler["trace"], "finalists": rest["IMAGE"], "scores": sampler["scores"]}
    report = Node("TestTimeSearchReport", {**inputs, "filename_prefix": f"{prefix}_report"}, width=400, picture=330)
    return Group("Result", [[best, rest], [save(best["IMAGE"], prefix, "Best image"), report]], RESULT_VIOLET)


def one_search(name: str, prompt: str, text: str, *methods: Node, model: str = "diffusion", **changes) -> Workflow:
    """The standard workflow: a method (the last of a chain of nodes) on the embedded model."""
    world = World(prompt, model)
    sampler = world.search(methods[-1], **changes)
    model, read_me = world.before(text)
    columns = [[method] for method in methods]
    columns[-1].append(world.latent)
    for node in (*methods, world.latent):
        node.width = 290
    method = Group("Method", [*read_me.columns, *columns], SEARCH_BROWN, below=True)
    groups = [model, method, Group("Search", [[sampler]], SEARCH_BROWN)]
    return Workflow(name, [*groups, results(world.load["vae"], sampler, name)])


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
    latent = Node("EmptyLatentImage", size, "Empty latent", width=320)
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
    sampler = Node("TestTimeSearchKSampler", inputs, width=340, lines=2)
    groups = [
        Group("Model, judge and prompt", [[load, judge, prompt], lowered(positive, negative)], MODEL_BLUE),
        Group("", [[note(text, 360)]], below=True),
        Group("Search", [lowered(method, latent), [sampler]], SEARCH_BROWN),
        results(load["VAE"], sampler, name),
    ]
    return Workflow(name, groups)
