"""Write the example workflows: ``python tools/build_workflows.py [--thumbnails]``.

Every workflow is described once (below, in ``DESCRIPTIONS``) and written in UI format to ``workflows/`` and in API
format to ``workflows/api/``. Node definitions come from a ComfyUI that is started headless with this pack alone.
``--thumbnails`` also runs the workflows of the embedded model and makes each one's picture for the workflow browser.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from testtime.cli.comfyui import HeadlessComfyUI, HeadlessOptions
from testtime.cli.main import main as testtime

try:
    from workflow_graph import Group, Link, Node, Workflow, dump, note
except ImportError:
    from tools.workflow_graph import Group, Link, Node, Workflow, dump, note

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
MODELS, PROMPT, SEARCH, RESULT = "#3f789e", "#3f6e4e", "#8a5a2b", "#5a4a8a"
DESCRIPTIONS: dict[str, Callable[[], Workflow]] = {}
WITH_OWN_MODELS = ("sd15_svdd_clipscore", "sdxl_fk_steering_clipscore")
"""Workflows that need a checkpoint of the user's; everything else runs on the embedded model."""


def describe(function: Callable[[], Workflow]) -> Callable[[], Workflow]:
    """Decorator: file a description under its name."""
    DESCRIPTIONS[function.__name__] = function
    return function


class World:
    """The nodes most workflows share: embedded model, two prompts, an empty latent."""

    def __init__(self, prompt: str, model: str = "diffusion", batch: int = 1):
        self.prompt = prompt
        self.load = Node("TestTimeLoadShapesWorld", {"model": model}, width=270)
        self.positive = Node("CLIPTextEncode", {"clip": self.load["clip"], "text": prompt}, "Positive prompt", lines=3)
        self.negative = Node("CLIPTextEncode", {"clip": self.load["clip"], "text": ""}, "Negative prompt", lines=2)
        self.latent = Node("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": batch}, width=320)

    def groups(self, text: str) -> list[Group]:
        """Note and model, then prompts."""
        return [
            Group("Model", [[note(text), self.load]], MODELS),
            Group("Prompt", [[self.positive, self.negative, self.latent]], PROMPT),
        ]

    def sampling(self, **changes) -> dict:
        """Inputs of Search KSampler."""
        inputs = {
            **{name: self.load[name] for name in ("model", "vae", "verifier", "held_out")},
            "positive": self.positive["CONDITIONING"],
            "negative": self.negative["CONDITIONING"],
            "latent_image": self.latent["LATENT"],
            "seed": 7,
            "steps": 20,
            "cfg": 4.0,
            "scheduler": "normal",
            "prompt": self.prompt,
        }
        return inputs | changes


def results(world_vae: Link, sampler: Node, prefix: str) -> list[list[Node]]:
    """Decode and save the best; decode the finalists for the report."""
    best = Node("VAEDecode", {"samples": sampler["best"], "vae": world_vae}, "Decode the best", width=210)
    save_inputs = {"images": best["IMAGE"], "filename_prefix": prefix}
    save = Node("SaveImage", save_inputs, "Best image", width=300, picture=True)
    rest = Node("VAEDecode", {"samples": sampler["finalists"], "vae": world_vae}, "Decode the finalists", width=210)
    inputs = {"trace": sampler["trace"], "finalists": rest["IMAGE"], "scores": sampler["scores"]}
    report = Node("TestTimeSearchReport", inputs | {"filename_prefix": f"{prefix}_report"}, width=460, picture=True)
    return [[best, rest], [save], [report]]


def one_search(name: str, method: Node, prompt: str, text: str, **changes) -> Workflow:
    """The standard workflow: one method on the embedded model."""
    world = World(prompt)
    sampler = Node("TestTimeSearchKSampler", world.sampling(search=method["search"], **changes), width=340, lines=3)
    groups = world.groups(text)
    groups.append(Group("Search", [[method, sampler]], SEARCH))
    groups.append(Group("Result", results(world.load["vae"], sampler, name), RESULT))
    return Workflow(name, groups)


@describe
def best_of_n() -> Workflow:
    text = (
        "## Best-of-N\n\nDraws **N images** from the same prompt and keeps the one the verifier likes best. The "
        "plainest "
        "way to spend more compute, and the hardest to fool.\n\n**particles** is N. It runs in chunks that fit the "
        "memory. "
        "Any `eta` works; 1 gives the most variety.\n\nQueue it: the report shows all N with their scores. `held_out` "
        "is a "
        "second judge that never steers."
    )
    return one_search("best_of_n", Node("TestTimeBestOfN", {"particles": 8}), "a red star and a blue circle", text)


@describe
def importance_sampling() -> Workflow:
    text = (
        "## Importance Sampling\n\nN particles run side by side; at a few steps they are **drawn again in proportion "
        "to "
        "their score**, so the good ones continue several times.\n\n**alpha** is the temperature: low = greedy. "
        "**start / end / every** say at which steps. Needs `eta` > 0, so that copies separate."
    )
    method = Node("TestTimeImportanceSampling", {"particles": 8})
    return one_search("importance_sampling", method, "three yellow hearts", text)


@describe
def svdd() -> Workflow:
    text = (
        "## SVDD\n\nAt every step **M continuations** of the image are tried, each is previewed and scored, and the "
        "best "
        "one is taken (Li et al. 2024).\n\nThe strongest optimiser of the score per step, and the greediest: watch the "
        "held-out score in the report.\n\n**candidates** is M. **alpha** = 0 takes the best; above 0 it draws."
    )
    return one_search("svdd", Node("TestTimeSVDD", {"candidates": 4}), "a green ring above a cross", text)


@describe
def smc() -> Workflow:
    text = (
        "## SMC\n\nSequential Monte Carlo: the score is **phased in** over the steps (tempering), and particles are "
        "resampled when few of them carry the weight. Of all methods it stays closest to what the model would draw.\n\n"
        "**alpha** is the temperature, **tempering** how the score comes in, **ess_threshold** when to resample."
    )
    return one_search("smc", Node("TestTimeSMC", {"particles": 8}), "two purple squares", text)


@describe
def das() -> Workflow:
    text = (
        "## DAS\n\nSMC whose moves **follow the gradient of the score** (Kim et al. 2025). The verifier must be "
        "differentiable, as both verifiers of Shapes World and CLIPScore are.\n\n**guidance** is the strength, 1 as "
        "derived. **gradient_through**: `denoiser` is exact and dear, `decoder` cheap and approximate."
    )
    method = Node("TestTimeDAS", {"particles": 4, "gradient_through": "decoder"})
    return one_search("das", method, "an orange triangle left of a ring", text)


@describe
def fk_steering() -> Workflow:
    text = (
        "## FK Steering\n\nFeynman-Kac steering resamples at a few steps by a **potential** of each particle's scores "
        "so "
        "far (Singhal et al. 2025).\n\n**potential**: `diff` by how much the score rose, `max` the best so far, `rt` "
        "the "
        "present one. The paper's lambda is 1 / alpha."
    )
    method = Node("TestTimeFKSteering", {"particles": 8})
    return one_search("fk_steering", method, "a red cross and a white heart", text)


@describe
def flow_rbf() -> Workflow:
    text = (
        "## Rollover Budget Forcing\n\nFor **flow models** (here the embedded one). **Stochastic Path** gives the "
        "flow noise "
        "to search with; **Rollover Budget Forcing** goes on as soon as a candidate is better than everything before "
        "and "
        "saves the rest of the budget for later steps (Kim et al. 2025).\n\n**budget** counts denoiser calls per "
        "image. "
        "`tail` steps without noise finish the image; distilled models need only 1."
    )
    method = Node("TestTimeRBF", {"budget": 160, "chains": 2, "initial": 8})
    path = Node("TestTimeStochasticPath", {"search": method["search"], "path": "linear", "spacing": "sampler"})
    world = World("two green hearts", model="flow")
    sampling = world.sampling(search=path["search"], scheduler="simple", cfg=3.0)
    sampler = Node("TestTimeSearchKSampler", sampling, width=340, lines=3)
    groups = world.groups(text)
    groups.append(Group("Search", [[method, path], [sampler]], SEARCH))
    groups.append(Group("Result", results(world.load["vae"], sampler, "flow_rbf"), RESULT))
    return Workflow("flow_rbf", groups)


@describe
def search_sampler_custom_advanced() -> Workflow:
    text = (
        "## Search Sampler\n\nA search as a stock **SAMPLER**: plug it into SamplerCustomAdvanced with any guider, "
        "sigmas "
        "and noise. With one particle and eta 0 it is `euler`, with eta 1 `euler_ancestral`.\n\n**Recover Search** "
        "hands "
        "out the finalists, the scores and the trace of the last search."
    )
    world = World("two red stars", model="flow")
    load, prompt = world.load, world.prompt
    method = Node("TestTimeSVDD", {"candidates": 4})
    inputs = {name: load[name] for name in ("verifier", "vae", "held_out")}
    sampler = Node("TestTimeSearchSampler", inputs | {"search": method["search"], "prompt": prompt}, width=340, lines=3)
    noise = Node("RandomNoise", {"noise_seed": 7}, width=270)
    scheduler = Node("BasicScheduler", {"model": load["model"], "scheduler": "simple", "steps": 20}, width=270)
    guider_inputs = {"positive": world.positive["CONDITIONING"], "negative": world.negative["CONDITIONING"]}
    guider = Node("CFGGuider", guider_inputs | {"model": load["model"], "cfg": 4.0}, width=270)
    parts = {"noise": noise["NOISE"], "guider": guider["GUIDER"], "sampler": sampler["sampler"]}
    parts |= {"sigmas": scheduler["SIGMAS"], "latent_image": world.latent["LATENT"]}
    run = Node("SamplerCustomAdvanced", parts, width=270)
    decode = Node("VAEDecode", {"samples": run["output"], "vae": load["vae"]}, "Decode the best", width=210)
    name = "search_sampler_custom_advanced"
    save_inputs = {"images": decode["IMAGE"], "filename_prefix": name}
    save = Node("SaveImage", save_inputs, "Best image", width=300, picture=True)
    groups = world.groups(text)
    groups.append(Group("Search", [[method, sampler]], SEARCH))
    groups.append(Group("Sampling", [[noise, scheduler, guider, run]], SEARCH))
    groups.append(Group("Result", [[decode, save]], RESULT))
    return Workflow(name, groups)


@describe
def image_to_image() -> Workflow:
    text = (
        "## Image to image\n\nA plain KSampler makes a picture; **Search KSampler** changes it with `denoise` 0.75 "
        "towards "
        "another prompt, trying several ways.\n\nEverything that works with KSampler works here: latents of your own "
        "images (VAE Encode), any denoise, batches."
    )
    world = World("a blue star")
    first = {**world.sampling(), "sampler_name": "euler_ancestral"}
    first = {k: v for k, v in first.items() if k not in ("vae", "verifier", "held_out", "prompt")}
    before_inputs = {"clip": world.load["clip"], "text": "a red circle"}
    before = Node("CLIPTextEncode", before_inputs, "Prompt of the start", lines=2)
    start = Node("KSampler", {**first, "positive": before["CONDITIONING"]}, "Start image", width=270)
    shown = Node("VAEDecode", {"samples": start["LATENT"], "vae": world.load["vae"]}, width=210)
    preview = Node("PreviewImage", {"images": shown["IMAGE"]}, "Start image", width=270, picture=True)
    method = Node("TestTimeBestOfN", {"particles": 8})
    changes = {"latent_image": start["LATENT"], "denoise": 0.75, "search": method["search"]}
    sampler = Node("TestTimeSearchKSampler", world.sampling(**changes), width=340, lines=3)
    groups = world.groups(text)
    groups[1].columns[0].append(before)
    groups.append(Group("Start", [[start, shown, preview]], PROMPT))
    groups.append(Group("Search", [[method, sampler]], SEARCH))
    groups.append(Group("Result", results(world.load["vae"], sampler, "image_to_image"), RESULT))
    return Workflow("image_to_image", groups)


@describe
def inpainting() -> Workflow:
    text = (
        "## Inpainting\n\nThe right half of a picture is drawn anew; the left half is kept. **Set Latent Noise Mask** "
        "works "
        "as with KSampler, for every particle of the search.\n\nThe verifier judges the whole picture."
    )
    world = World("a red circle left of a blue star")
    first = {**world.sampling(), "sampler_name": "euler_ancestral"}
    first = {k: v for k, v in first.items() if k not in ("vae", "verifier", "held_out", "prompt")}
    before_inputs = {"clip": world.load["clip"], "text": "a red circle"}
    before = Node("CLIPTextEncode", before_inputs, "Prompt of the start", lines=2)
    start = Node("KSampler", {**first, "positive": before["CONDITIONING"]}, "Start image", width=270)
    shown = Node("VAEDecode", {"samples": start["LATENT"], "vae": world.load["vae"]}, width=210)
    preview = Node("PreviewImage", {"images": shown["IMAGE"]}, "Start image", width=270, picture=True)
    keep = Node("SolidMask", {"value": 0.0, "width": 128, "height": 128}, "Keep", width=230)
    draw = Node("SolidMask", {"value": 1.0, "width": 64, "height": 128}, "Draw anew", width=230)
    placed = {"destination": keep["MASK"], "source": draw["MASK"], "x": 64, "y": 0, "operation": "add"}
    mask = Node("MaskComposite", placed, "Right half", width=230)
    masked = Node("SetLatentNoiseMask", {"samples": start["LATENT"], "mask": mask["MASK"]}, width=230)
    method = Node("TestTimeSVDD", {"candidates": 4})
    changes = {"latent_image": masked["LATENT"], "search": method["search"]}
    sampler = Node("TestTimeSearchKSampler", world.sampling(**changes), width=340, lines=3)
    groups = world.groups(text)
    groups[1].columns[0].append(before)
    groups.append(Group("Start", [[start, shown, preview]], PROMPT))
    groups.append(Group("Mask", [[keep, draw, mask, masked]], PROMPT))
    groups.append(Group("Search", [[method, sampler]], SEARCH))
    groups.append(Group("Result", results(world.load["vae"], sampler, "inpainting"), RESULT))
    return Workflow("inpainting", groups)


@describe
def rank_images() -> Workflow:
    text = (
        "## Rank a batch\n\n**Score Images** works on any batch, without a search: it sorts the images, best first, "
        "and "
        "gives their scores.\n\nHere two verifiers judge together: **Verifier Ensemble** brings their scores to one "
        "scale. "
        "What fools one of them seldom fools both."
    )
    world = World("a pink heart", batch=8)
    inputs = {**world.sampling(), "sampler_name": "euler_ancestral"}
    inputs = {k: v for k, v in inputs.items() if k not in ("vae", "verifier", "held_out", "prompt")}
    sampler = Node("KSampler", inputs, width=270)
    decode = Node("VAEDecode", {"samples": sampler["LATENT"], "vae": world.load["vae"]}, width=210)
    voices = {"verifier_1": world.load["verifier"], "verifier_2": world.load["held_out"], "combine": "rank"}
    ensemble = Node("TestTimeEnsemble", voices, width=270)
    score_inputs = {"images": decode["IMAGE"], "verifier": ensemble["verifier"], "prompt": world.prompt}
    score = Node("TestTimeScoreImages", score_inputs, width=320, lines=3)
    save_inputs = {"images": score["sorted"], "filename_prefix": "rank_images"}
    save = Node("SaveImage", save_inputs, "Best first", width=420, picture=True)
    groups = world.groups(text)
    groups.append(Group("Sampling", [[sampler, decode]], PROMPT))
    groups.append(Group("Judgement", [[ensemble, score]], SEARCH))
    groups.append(Group("Result", [[save]], RESULT))
    return Workflow("rank_images", groups)


@describe
def replay_winner() -> Workflow:
    text = (
        "## Replay the winner\n\n**Replay Particle** makes the winner again from the seed and its lineage, alone: one "
        "image's "
        "cost instead of the search's. Give it the model, seed, schedule and prompts of the search.\n\nUse it to get "
        "any "
        "other particle of the trace, or to look at the winner with another decoder."
    )
    world = World("a brown ring")
    method = Node("TestTimeSMC", {"particles": 8})
    sampling = world.sampling(search=method["search"])
    sampler = Node("TestTimeSearchKSampler", sampling, width=340, lines=3)
    kept = ("model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "scheduler")
    replay_inputs = {"trace": sampler["trace"], **{name: sampling[name] for name in kept}}
    replay = Node("TestTimeReplayParticle", replay_inputs, width=320)
    again = Node("VAEDecode", {"samples": replay["latent"], "vae": world.load["vae"]}, width=210)
    save_inputs = {"images": again["IMAGE"], "filename_prefix": "replay_winner_again"}
    save = Node("SaveImage", save_inputs, "The winner, made alone", width=300, picture=True)
    best = Node("VAEDecode", {"samples": sampler["best"], "vae": world.load["vae"]}, width=210)
    first_inputs = {"images": best["IMAGE"], "filename_prefix": "replay_winner"}
    first = Node("SaveImage", first_inputs, "The winner of the search", width=300, picture=True)
    groups = world.groups(text)
    groups.append(Group("Search", [[method, sampler]], SEARCH))
    groups.append(Group("Replay", [[replay]], SEARCH))
    groups.append(Group("Result", [[best, first], [again, save]], RESULT))
    return Workflow("replay_winner", groups)


def with_checkpoint(name: str, checkpoint: str, size: int, method: Node, text: str, changes: dict) -> Workflow:
    """A stock checkpoint, CLIPScore as the judge, and a search."""
    prompt = "a photograph of a red fox sitting left of a blue bicycle, autumn leaves"
    load = Node("CheckpointLoaderSimple", {"ckpt_name": checkpoint}, width=360)
    positive = Node("CLIPTextEncode", {"clip": load["CLIP"], "text": prompt}, "Positive prompt", width=360, lines=4)
    negative_inputs = {"clip": load["CLIP"], "text": "blurry, deformed"}
    negative = Node("CLIPTextEncode", negative_inputs, "Negative prompt", width=360, lines=3)
    latent = Node("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}, width=360)
    judge = Node("TestTimeCLIPScore", {"clip": "verifiers/openai--clip-vit-large-patch14"}, width=360)
    inputs = {
        "model": load["MODEL"], "positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"],
        "latent_image": latent["LATENT"], "verifier": judge["verifier"], "vae": load["VAE"], "search": method["search"],
        "prompt": prompt, "seed": 7, "scheduler": "karras", **changes,
    }  # fmt: skip
    sampler = Node("TestTimeSearchKSampler", inputs, width=360, lines=4)
    groups = [
        Group("Model and judge", [[note(text), load, judge]], MODELS),
        Group("Prompt", [[positive, negative, latent]], PROMPT),
        Group("Search", [[method, sampler]], SEARCH),
        Group("Result", results(load["VAE"], sampler, name), RESULT),
    ]
    return Workflow(name, groups)


_CLIP_NOTE = (
    "\n\nThe judge is CLIPScore: put `openai/clip-vit-large-patch14` (its whole folder) into "
    "`models/verifiers/openai--clip-vit-large-patch14`."
)


@describe
def sd15_svdd_clipscore() -> Workflow:
    text = "## Stable Diffusion 1.5, SVDD, CLIPScore\n\nFour continuations per step, the most promising one is taken. "
    text += "Costs about four plain images and a decode of each preview." + _CLIP_NOTE
    method = Node("TestTimeSVDD", {"candidates": 4, "every": 2}, width=360)
    checkpoint = "v1-5-pruned-emaonly-fp16.safetensors"
    return with_checkpoint("sd15_svdd_clipscore", checkpoint, 512, method, text, {"steps": 30, "cfg": 7.5})


@describe
def sdxl_fk_steering_clipscore() -> Workflow:
    text = (
        "## SDXL, FK steering, CLIPScore\n\nFour particles, resampled at a few steps in the middle. Costs about four "
    )
    text += "plain images and a few decodes." + _CLIP_NOTE
    method = Node("TestTimeFKSteering", {"particles": 4}, width=360)
    checkpoint = "sd_xl_base_1.0.safetensors"
    return with_checkpoint("sdxl_fk_steering_clipscore", checkpoint, 1024, method, text, {"steps": 30, "cfg": 6.0})


def write(object_info: dict, names: list[str]) -> None:
    """Write both formats of the workflows called ``names``."""
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for name in names:
        workflow = DESCRIPTIONS[name]()
        (FOLDER / f"{name}.json").write_text(dump(workflow.ui(object_info)), encoding="utf-8")
        (FOLDER / "api" / f"{name}.json").write_text(dump(workflow.api(object_info)), encoding="utf-8")


def thumbnail(name: str, url: str) -> None:
    """Run a workflow and make ``workflows/<name>.jpg`` of what it saved."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        if testtime(["run", str(FOLDER / "api" / f"{name}.json"), "--server", url, "--out", folder]) != 0:
            raise SystemExit(f"workflow {name} failed")
        saved = sorted(Path(folder).rglob("*.png"))
        reports = [Image.open(path).convert("RGB") for path in saved if "report" in path.name]
        images = [Image.open(path).convert("RGB") for path in saved if "report" not in path.name]
        picture = Image.new("RGB", (512, 512), (24, 26, 31))
        if reports:
            width, height = reports[0].size
            tree = reports[0].crop((24, 92, width - 24, 92 + 616)).resize((512, 276), Image.Resampling.LANCZOS)
            picture.paste(tree, (0, 236))
            picture.paste(images[0].resize((224, 224), Image.Resampling.LANCZOS), (144, 6))
        else:
            side = 512 if len(images) == 1 else 252
            places = [(0, 0), (260, 0), (0, 260), (260, 260)]
            for image, place in zip(images[:4], places, strict=False):
                picture.paste(image.resize((side, side), Image.Resampling.LANCZOS), place)
        picture.save(FOLDER / f"{name}.jpg", quality=85, optimize=True)


def card(name: str) -> None:
    """A title card for a workflow that cannot be run here."""
    from testtime.reports.canvas import DARK, Canvas

    family, _, rest = name.partition("_")
    canvas = Canvas(512, 512, DARK)
    canvas.panel((24, 24, 488, 488), 16)
    canvas.text((256, 230), {"sd15": "SD 1.5", "sdxl": "SDXL"}.get(family, family), 64, DARK.accent, "mm")
    canvas.text((256, 310), rest.replace("_clipscore", " + CLIPScore").replace("_", " "), 28, anchor="mm")
    from PIL import Image

    Image.fromarray(canvas.finish()).save(FOLDER / f"{name}.jpg", quality=88, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="workflows to write; default: all")
    parser.add_argument("--thumbnails", action="store_true", help="also run them and make their pictures")
    options = parser.parse_args()
    names = options.names or list(DESCRIPTIONS)
    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:
        with urllib.request.urlopen(server.url + "/object_info", timeout=60) as response:
            write(json.load(response), names)
        if options.thumbnails:
            for name in names:
                card(name) if name in WITH_OWN_MODELS else thumbnail(name, server.url)


if __name__ == "__main__":
    main()
