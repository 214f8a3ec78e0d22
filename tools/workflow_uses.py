"""The example workflows that show a use: beside KSampler, other samplers, image to image, ranking, real checkpoints."""

from __future__ import annotations

from workflow_graph import Group, Node, Workflow
from workflow_parts import (
    NARROW,
    PREVIEW,
    RESULT_VIOLET,
    SEARCH_BROWN,
    START_GREEN,
    Checkpoint,
    World,
    best_only,
    decode,
    encode,
    save,
    with_checkpoint,
)

NEED_CHECKPOINT = ("sd15_best_of_n", "sd15_svdd", "sdxl_best_of_n", "sdxl_fk_steering")
"""Workflows that need a checkpoint of the user's; everything else runs on the embedded model."""


def compare_with_ksampler() -> Workflow:
    text = """
    ## Beside KSampler
    The same model, prompt and seed: **one image of KSampler**, and **the best of eight of Search KSampler**. Candidate
    0 of the search starts from the same noise as KSampler.

    To search in a workflow of yours, replace KSampler by Search KSampler the way it is done here: same wires, plus
    VAE, a verifier, a method and the prompt in words.
    """
    name = "compare_with_ksampler"
    world = World("a green triangle above a red square")
    method = Node("TestTimeBestOfN", {"particles": 8})
    sampler = world.search(method)
    plain = Node("KSampler", world.plain(), "KSampler: one image", width=340)
    one = decode(plain["LATENT"], world.load["vae"], "Decode the one")
    best = decode(sampler["best"], world.load["vae"], "Decode the best")
    pictures = [save(best["IMAGE"], f"{name}_search", "Best of eight"), save(one["IMAGE"], name, "KSampler")]
    one.drop = 290
    groups = world.before(text, [], [method, world.latent])
    groups.append(Group("A search, and one image", [[sampler, plain]], SEARCH_BROWN))
    groups.append(Group("Result", [[best, one], pictures], RESULT_VIOLET))
    return Workflow(name, groups)


def search_sampler() -> Workflow:
    text = """
    ## Search Sampler
    A search as a stock **SAMPLER**: plug it into SamplerCustomAdvanced with any guider, sigmas and noise. Its input
    **sampler** takes the one from KSamplerSelect; without it the search makes the steps of euler, with eta.

    - **Recover Search** gives the finalists, scores and trace of the last search, also of one that was cancelled.
    """
    name = "search_sampler"
    world = World("two red stars", model="flow")
    load = world.load
    method = Node("TestTimeSVDD", {"candidates": 4})
    judged = {name: load[name] for name in ("verifier", "vae", "held_out")}
    inputs = {**judged, "search": method["search"], "prompt": world.prompt["STRING"]}
    sampler = Node("TestTimeSearchSampler", inputs, width=300, lines=2)
    prompts = {"positive": world.positive["CONDITIONING"], "negative": world.negative["CONDITIONING"]}
    guider = Node("CFGGuider", {**prompts, "model": load["model"], "cfg": 2.5}, width=300)
    noise = Node("RandomNoise", {"noise_seed": 7}, width=NARROW)
    scheduler = Node("BasicScheduler", {"model": load["model"], "scheduler": "simple", "steps": 20}, width=300)
    parts = {"noise": noise["NOISE"], "guider": guider["GUIDER"], "sampler": sampler["sampler"]}
    parts |= {"sigmas": scheduler["SIGMAS"], "latent_image": world.latent["LATENT"]}
    run = Node("SamplerCustomAdvanced", parts, width=280, picture=PREVIEW)
    groups = world.before(text, [noise], [method, world.latent])
    groups.append(Group("Search", [[sampler, guider, scheduler]], SEARCH_BROWN))
    groups.append(Group("Sampling", [[run]], START_GREEN))
    return Workflow(name, [*groups, best_only(load["vae"], run["output"], name)])


def _start(world: World) -> tuple[Node, Group]:
    """(prompt, group) of a plain KSampler that makes the picture a workflow begins with."""
    prompt = encode(world.load["clip"], "a red circle", "Prompt of the start")
    sampler = Node("KSampler", world.plain(positive=prompt["CONDITIONING"]), width=260, picture=PREVIEW)
    shown = decode(sampler["LATENT"], world.load["vae"])
    preview = Node("PreviewImage", {"images": shown["IMAGE"]}, "Start image", width=260, picture=230)
    return prompt, Group("Start image", [[sampler, shown, preview]], START_GREEN)


def image_to_image() -> Workflow:
    text = """
    ## Image to image
    A plain KSampler makes a picture; **Search KSampler** changes it towards another prompt with **denoise** 0.75,
    trying eight ways.

    Whatever works with KSampler works here: latents of your own images (Load Image and VAE Encode), any denoise,
    batches.
    """
    world = World("a blue star")
    prompt, start = _start(world)
    method = Node("TestTimeBestOfN", {"particles": 8})
    sampler = world.search(method, 320, latent_image=start.columns[0][0]["LATENT"], denoise=0.75)
    groups = [*world.before(text, [world.latent], [prompt, method], "Start and method"), start]
    groups.append(Group("Search", [[sampler]], SEARCH_BROWN))
    return Workflow("image_to_image", [*groups, best_only(world.load["vae"], sampler["best"], "image_to_image")])


def inpainting() -> Workflow:
    text = """
    ## Inpainting
    The right half of a picture is drawn anew, the left half is kept. **Set Latent Noise Mask** works as with KSampler,
    for every particle of the search. The verifier judges the whole picture.

    For your own images: Load Image, paint a mask, VAE Encode.
    """
    world = World("a red circle left of a blue star")
    prompt, start = _start(world)
    keep = Node("SolidMask", {"value": 0.0, "width": 128, "height": 128}, "Keep: everything", width=NARROW)
    draw = Node("SolidMask", {"value": 1.0, "width": 64, "height": 128}, "Draw anew: a half", width=NARROW)
    placed = {"destination": keep["MASK"], "source": draw["MASK"], "x": 64, "y": 0, "operation": "add"}
    mask = Node("MaskComposite", placed, "Put it to the right", width=NARROW)
    masked = Node("SetLatentNoiseMask", {"samples": start.columns[0][0]["LATENT"], "mask": mask["MASK"]}, width=NARROW)
    method = Node("TestTimeSVDD", {"candidates": 4}, width=290)
    sampler = world.search(method, 320, latent_image=masked["LATENT"])
    groups = world.before(text, [world.latent], [prompt, method], "Start and method")
    groups.append(Group("Mask", [[keep, draw], [mask, masked]], START_GREEN, below=True))
    groups += [start, Group("Search", [[sampler]], SEARCH_BROWN)]
    return Workflow("inpainting", [*groups, best_only(world.load["vae"], sampler["best"], "inpainting")])


def rank_images() -> Workflow:
    text = """
    ## Rank a batch
    **Score Images** works on any batch, without a search: it sorts the images, best first, and gives their scores.

    Here two verifiers judge together: **Verifier Ensemble** brings their scores to one scale. What fools one of them
    seldom fools both.

    - **combine**: rank takes the mean of the places, zscore the mean of scores on a fixed scale.
    """
    world = World("a pink heart", batch=8)
    sampler = Node("KSampler", world.plain(), width=NARROW, picture=PREVIEW)
    images = decode(sampler["LATENT"], world.load["vae"])
    voices = {"verifier_1": world.load["verifier"], "verifier_2": world.load["held_out"], "combine": "rank"}
    ensemble = Node("TestTimeEnsemble", voices)
    inputs = {"images": images["IMAGE"], "verifier": ensemble["verifier"], "prompt": world.prompt["STRING"]}
    score = Node("TestTimeScoreImages", inputs, width=320, lines=2)
    groups = world.before(text, [], [ensemble, world.latent], "Judges")
    groups.append(Group("Images", [[sampler, images]], START_GREEN))
    groups.append(Group("Ranking", [[score]], SEARCH_BROWN))
    groups.append(Group("Result", [[save(score["images"], "rank_images", "Best first", 420)]], RESULT_VIOLET))
    return Workflow("rank_images", groups)


def replay_winner() -> Workflow:
    text = """
    ## Replay the winner
    **Re-render Particle** makes the winner again from the seed and its lineage, alone: the cost of one image instead of
    the search's. Give it the model, seed, schedule and prompts of the search.

    Use it to get any other particle of the trace, or to look at the winner with another decoder.
    """
    name = "replay_winner"
    world = World("a yellow ring")
    method = Node("TestTimeSMC", {"particles": 8})
    sampler = world.search(method, 320)
    kept = ("model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "scheduler")
    inputs = {"trace": sampler["trace"], **{key: sampler.inputs[key] for key in kept}}
    replay = Node("TestTimeRerenderParticle", inputs, width=260, picture=PREVIEW)
    best = decode(sampler["best"], world.load["vae"], "Decode the winner")
    again = decode(replay["latent"], world.load["vae"], "Decode the replay")
    pictures = [save(best["IMAGE"], name, "The winner of the search", 240)]
    pictures += [save(again["IMAGE"], f"{name}_again", "The winner, made alone", 240)]
    again.drop = 230
    groups = world.before(text, [], [method, world.latent])
    groups.append(Group("Search", [[sampler]], SEARCH_BROWN))
    groups.append(Group("Replay", [[replay]], START_GREEN))
    groups.append(Group("Result", [[best, again], pictures], RESULT_VIOLET))
    return Workflow(name, groups)


SD15 = Checkpoint(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    512,
    7.5,
)
SDXL = Checkpoint(
    "sd_xl_base_1.0.safetensors",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    1024,
    6.0,
)
JUDGE = """
    The judge is CLIPScore. Put [openai/clip-vit-large-patch14](https://huggingface.co/openai/clip-vit-large-patch14)
    (config.json, model.safetensors, vocab.json, merges.txt) into `models/verifiers/openai--clip-vit-large-patch14`, or
    choose another CLIP in the node.
"""


def sd15_best_of_n() -> Workflow:
    text = """
    ## Stable Diffusion 1.5, Best-of-N
    Four images, of which CLIPScore keeps the one that fits the prompt best. Costs four plain images.

    - **particles** is N.
    """
    return with_checkpoint("sd15_best_of_n", SD15, text + JUDGE, Node("TestTimeBestOfN", {"particles": 4}))


def sd15_svdd() -> Workflow:
    text = """
    ## Stable Diffusion 1.5, SVDD
    Four continuations at every other step; the most promising one is taken. Costs about four plain images and a
    decode of every preview.

    - **candidates** per choice, **every** so many steps.
    """
    return with_checkpoint("sd15_svdd", SD15, text + JUDGE, Node("TestTimeSVDD", {"candidates": 4, "every": 2}))


def sdxl_best_of_n() -> Workflow:
    text = """
    ## SDXL, Best-of-N
    Four images, of which CLIPScore keeps the one that fits the prompt best. Costs four plain images.

    - **particles** is N.
    """
    return with_checkpoint("sdxl_best_of_n", SDXL, text + JUDGE, Node("TestTimeBestOfN", {"particles": 4}))


def sdxl_fk_steering() -> Workflow:
    text = """
    ## SDXL, FK Steering
    Four particles, resampled at a few steps in the middle by how much their score rose. Costs about four plain images
    and a few decodes.

    - **particles** is N, **alpha** the temperature: low is greedy.
    """
    return with_checkpoint("sdxl_fk_steering", SDXL, text + JUDGE, Node("TestTimeFKSteering", {"particles": 4}))


WORKFLOWS = [
    compare_with_ksampler,
    search_sampler,
    image_to_image,
    inpainting,
    rank_images,
    replay_winner,
    sd15_best_of_n,
    sd15_svdd,
    sdxl_best_of_n,
    sdxl_fk_steering,
]
