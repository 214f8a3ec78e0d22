"""The example workflows for flow models: stochastic paths and budgets on the embedded one, SD3.5 and Flux."""

from __future__ import annotations

from workflow_graph import Group, Link, Node, Workflow, note
from workflow_parts import MODEL_BLUE, NARROW, PREVIEW, SEARCH_BROWN, encode, lowered, one_search, results, text_node
from workflow_uses import JUDGE

NEED_CHECKPOINT = ("sd3_svdd", "flux_rbf")
"""Workflows that need files of the user's."""

HUB = "https://huggingface.co"


def flow_vp_svdd() -> Workflow:
    text = """
    ## SVDD on the VP path
    A flow model has no noise of its own to search with. **Set SDE** gives it some: here the
    variance-preserving path with the grid of Kim et al. (2025), small steps at high noise, then an ODE tail that
    finishes the image.

    - **path** linear stays on the flow's own path; vp puts the search at high noise, where the composition is decided.
    - **levels** are the searched steps, **tail** the steps without noise after them. They replace the sampler's steps.
    """
    method = Node("TestTimeSVDD", {"candidates": 8})
    grid = {"path": "vp", "spacing": "exp", "levels": 10, "tail": 10}
    path = Node("TestTimeSetSDE", {"search": method["search"], **grid})
    prompt = "a yellow circle left of a purple star"
    return one_search("flow_vp_svdd", prompt, text, method, path, model="flow", scheduler="simple")


def flow_budget() -> Workflow:
    text = """
    ## Fit to Budget
    Say what an image may cost, not how many particles: **Fit to Budget** chooses them, and fewer steps where the budget
    would not pay for enough particles. It goes behind any method, also behind **Set SDE**.

    - **nfe** counts forward passes per image; under CFG a step costs two.
    - **seconds** is measured on your machine before the search begins. Whichever is reached first counts.
    """
    method = Node("TestTimeSVDD", {})
    budget = Node("TestTimeFitToBudget", {"search": method["search"], "nfe": 300})
    changes = {"model": "flow", "scheduler": "simple"}
    return one_search("flow_budget", "three red triangles", text, method, budget, **changes)


def _file(kind: str, name: str, url: str) -> dict[str, str]:
    return {"name": name, "url": f"{HUB}/{url}", "directory": kind}


def _search(
    name: str, text: str, loaders: list[Node], model: Link, clip: Link, vae: Link, methods: list[Node], **changes
) -> Workflow:
    """Stock loaders, CLIPScore as the judge, and a search on a path (the last of ``methods``)."""
    judge = Node("TestTimeCLIPScore", {"clip": "verifiers/openai--clip-vit-large-patch14"}, width=360)
    prompt = text_node("a photograph of a red fox sitting left of a blue bicycle, autumn leaves", 360)
    positive = encode(clip, prompt["STRING"], "Positive prompt")
    negative = encode(clip, "", "Negative prompt")
    size = {"width": 1024, "height": 1024, "batch_size": 1}
    latent = Node("EmptySD3LatentImage", size, "Empty latent", width=NARROW)
    inputs = {
        "model": model,
        "positive": positive["CONDITIONING"],
        "negative": negative["CONDITIONING"],
        "latent_image": latent["LATENT"],
        "verifier": judge["verifier"],
        "vae": vae,
        "search": methods[-1]["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
        **changes,
    }
    sampler = Node("TestTimeSearchKSampler", inputs, width=340, lines=2, picture=PREVIEW)
    last = methods[-1]
    last.width = NARROW
    groups = [
        Group("Model, judge and prompt", [[prompt, *loaders, judge], lowered(positive, negative, latent)], MODEL_BLUE),
        Group("Method", [methods[:-1], [last]], SEARCH_BROWN, below=True),
        Group("Search", [[sampler]], SEARCH_BROWN),
        Group("", [[note(text, 340)]], below=True),
        results(vae, sampler, name),
    ]
    return Workflow(name, groups)


def sd3_svdd() -> Workflow:
    text = """
    ## Stable Diffusion 3.5, SVDD on the linear SDE
    SD3.5 needs many steps, so the search stays on its own path: **Set SDE** adds noise to every step of the
    sampler's schedule, **SVDD** tries four continuations and takes the most promising one.

    - **candidates** per step; **every** so many steps saves decodes.
    - The published noise (square, 3) suits most flows; less **norm** keeps closer to the plain sampler.
    """
    name = "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
    file = _file("checkpoints", name, f"Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/{name}")
    load = Node("CheckpointLoaderSimple", {"ckpt_name": name}, width=360, models=(file,))
    method = Node("TestTimeSVDD", {"candidates": 4, "every": 2})
    path = Node("TestTimeSetSDE", {"search": method["search"], "path": "linear", "spacing": "sampler"})
    changes = {"steps": 28, "cfg": 4.5, "scheduler": "sgm_uniform"}
    links = (load["MODEL"], load["CLIP"], load["VAE"])
    return _search("sd3_svdd", text + JUDGE, [load], *links, [method, path], **changes)


def flux_rbf() -> Workflow:
    text = """
    ## FLUX.1 schnell, Rollover Budget Forcing
    The setting of the paper: a step-distilled flow model on the **VP path** with its **exp** grid and no tail to speak
    of; 120 denoiser calls per image, never more.

    - **budget**, **chains** and **initial** particles share the calls; what a step saves, later steps may spend.
    - For FLUX.1 dev take path linear, spacing sampler, 28 steps, and put **FluxGuidance** behind the prompt.
    """
    schnell, clip_l, t5 = "flux1-schnell.safetensors", "clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors"
    encoders, ae = "comfyanonymous/flux_text_encoders/resolve/main", "ae.safetensors"
    unet_file = _file("diffusion_models", schnell, f"Comfy-Org/flux1-schnell/resolve/main/{schnell}")
    unet = Node("UNETLoader", {"unet_name": schnell, "weight_dtype": "default"}, width=360, models=(unet_file,))
    files = tuple(_file("text_encoders", name, f"{encoders}/{name}") for name in (clip_l, t5))
    inputs = {"clip_name1": clip_l, "clip_name2": t5, "type": "flux"}
    clip = Node("DualCLIPLoader", inputs, width=360, models=files)
    vae_url = f"Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/{ae}"
    vae = Node("VAELoader", {"vae_name": ae}, width=360, models=(_file("vae", ae, vae_url),))
    method = Node("TestTimeRBF", {"budget": 120, "chains": 2, "initial": 6})
    grid = {"path": "vp", "spacing": "exp", "levels": 10, "tail": 1}
    path = Node("TestTimeSetSDE", {"search": method["search"], **grid})
    changes = {"steps": 4, "cfg": 1.0, "scheduler": "simple"}
    links = (unet["MODEL"], clip["CLIP"], vae["VAE"])
    return _search("flux_rbf", text + JUDGE, [unet, clip, vae], *links, [method, path], **changes)


WORKFLOWS = [flow_vp_svdd, flow_budget, sd3_svdd, flux_rbf]
