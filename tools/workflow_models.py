"""The example workflows for the models that people run most: Z-Image-Turbo, FLUX.2 Klein, Qwen-Image and its editor.

File names, folders and addresses are those of ComfyUI's own templates, so the front end offers what is missing. All are
step-distilled: few steps at cfg 1, on the sampler of the template, and methods that choose among whole images.
"""

from __future__ import annotations

from workflow_graph import Group, Link, Node, Workflow, note
from workflow_parts import (
    MODEL_BLUE,
    NARROW,
    PREVIEW,
    SEARCH_BROWN,
    START_GREEN,
    best_only,
    encode,
    lowered,
    results,
    text_node,
)

HUB = "https://huggingface.co"
VLM = "verifiers/Qwen--Qwen3-VL-4B-Instruct"
PICKSCORE = """
    The judge is PickScore. Put [yuvalkirstain/PickScore_v1](https://huggingface.co/yuvalkirstain/PickScore_v1) into
    `models/verifiers/PickScore_v1`, or take another verifier.
"""
ASKED = """
    The judge asks a vision-language model. Put
    [Qwen/Qwen3-VL-4B-Instruct](https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct) into
    `models/verifiers/Qwen--Qwen3-VL-4B-Instruct`, or choose another one in the node.
"""
WIDTH = 360


def _file(folder: str, name: str, place: str) -> dict[str, str]:
    """A file as the front end wants it in ``properties.models``; ``place`` is its folder on the hub."""
    return {"name": name, "url": f"{HUB}/{place}/{name}", "directory": folder}


def _loaders(unet: tuple[str, str], clip: tuple[str, str], kind: str, vae: tuple[str, str]) -> list[Node]:
    """Stock loaders of the three files, each (name, folder on the hub); ``kind`` as CLIPLoader names it."""
    files = [_file("diffusion_models", *unet), _file("text_encoders", *clip), _file("vae", *vae)]
    inputs = [{"unet_name": unet[0]}, {"clip_name": clip[0], "type": kind}, {"vae_name": vae[0]}]
    kinds = ("UNETLoader", "CLIPLoader", "VAELoader")
    return [Node(kinds[k], inputs[k], width=WIDTH, models=(files[k],)) for k in range(3)]


def _lora(model: Link, name: str, place: str) -> Node:
    """The LoRA that makes a model a few-step one."""
    return Node(
        "LoraLoaderModelOnly", {"model": model, "lora_name": name}, width=WIDTH, models=(_file("loras", name, place),)
    )


def _shifted(model: Link, shift: float) -> Node:
    return Node("ModelSamplingAuraFlow", {"model": model, "shift": shift}, width=WIDTH)


def _none_of(positive: Node) -> Node:
    """No negative prompt: at cfg 1 it is never computed."""
    return Node("ConditioningZeroOut", {"conditioning": positive["CONDITIONING"]}, "No negative prompt", width=290)


def z_image_turbo_random_search() -> Workflow:
    text = """
    ## Z-Image-Turbo, Random Search
    Eight steps, cfg 1, the sampler of ComfyUI's template. A step-distilled model has no noise of its own to search
    with, so the search compares **eight starts** and drops the worse half halfway through.

    - **halvings** 0.5: at half of the steps; 0.25, 0.5 drops twice and costs less.
    - **eta** stays on auto: the steps are those of the sampler.
    """
    unet, clip, vae = _loaders(
        ("z_image_turbo_bf16.safetensors", "Comfy-Org/z_image_turbo/resolve/main/split_files/diffusion_models"),
        ("qwen_3_4b.safetensors", "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders"),
        "lumina2",
        ("ae.safetensors", "Comfy-Org/z_image_turbo/resolve/main/split_files/vae"),
    )
    model = _shifted(unet["MODEL"], 3.0)
    method = Node("TestTimeRandomSearch", {"particles": 8, "halvings": "0.5"})
    judge = Node("TestTimePickScore", {"model": "verifiers/PickScore_v1"}, width=WIDTH)
    prompt = text_node("A fisherman in a yellow raincoat mends a net on a pier at dawn, gulls behind him", WIDTH)
    positive = encode(clip["CLIP"], prompt["STRING"], "Positive prompt")
    negative = _none_of(positive)
    size = {"width": 1024, "height": 1024, "batch_size": 1}
    latent = Node("EmptySD3LatentImage", size, "Empty latent", width=NARROW)
    sampler = _search_ksampler(
        model["MODEL"], positive, negative, latent["LATENT"], vae, judge, method, prompt,
        steps=8, cfg=1.0, sampler_name="res_multistep", scheduler="simple",
    )  # fmt: skip
    name = "z_image_turbo_random_search"
    models = [prompt, unet, clip, vae, model, judge]
    return _workflow(name, text + PICKSCORE, models, [positive, negative, latent], method, sampler, vae)


def qwen_image_zero_order() -> Workflow:
    text = """
    ## Qwen-Image with Lightning, Zero-Order Search
    Eight steps by the Lightning LoRA. **Zero-Order Search** turns the start noise of the best image a little and tries
    again: the judge, who can read, climbs towards the text on the sign.

    - **rounds** x **neighbours** images in all, and **start** to begin with.
    - Without the LoRA: 20 steps, cfg 4, and any method; particles then branch, too.
    """
    hub = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
    unet, clip, vae = _loaders(
        ("qwen_image_fp8_e4m3fn.safetensors", f"{hub}/diffusion_models"),
        ("qwen_2.5_vl_7b_fp8_scaled.safetensors", f"{hub}/text_encoders"),
        "qwen_image",
        ("qwen_image_vae.safetensors", f"{hub}/vae"),
    )
    lora = _lora(
        unet["MODEL"], "Qwen-Image-Lightning-8steps-V1.0.safetensors", "lightx2v/Qwen-Image-Lightning/resolve/main"
    )
    model = _shifted(lora["MODEL"], 3.1)
    method = Node("TestTimeZeroOrderSearch", {"neighbours": 4, "rounds": 2, "start": 4})
    judge = Node("TestTimeVLM", {"model": VLM, "rubric": "yes_no"}, width=WIDTH)
    prompt = text_node('A shop window at night with the neon sign "FRESH FIGS 3 FOR 2", two cats below it', WIDTH)
    positive = encode(clip["CLIP"], prompt["STRING"], "Positive prompt")
    negative = _none_of(positive)
    size = {"width": 1328, "height": 1328, "batch_size": 1}
    latent = Node("EmptySD3LatentImage", size, "Empty latent", width=NARROW)
    sampler = _search_ksampler(
        model["MODEL"], positive, negative, latent["LATENT"], vae, judge, method, prompt,
        steps=8, cfg=1.0, sampler_name="euler", scheduler="simple",
    )  # fmt: skip
    models = [prompt, unet, lora, model, clip, vae, judge]
    return _workflow("qwen_image_zero_order", text + ASKED, models, [positive, negative, latent], method, sampler, vae)


def qwen_edit_best_of_n() -> Workflow:
    text = """
    ## Qwen-Image-Edit, Best-of-N
    Edits differ most in what they change by the way. **Edit Judge** sees source and result and asks whether the
    instruction is carried out, nothing else changed, and the result looks right; the best of four edits is kept.

    - The source is found in the reference latent that the text encoder makes with the VAE.
    - Four steps by the Lightning LoRA, cfg 1. Without it: 20 steps, cfg 4.
    """
    hub = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
    unet, clip, vae = _loaders(
        (
            "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
            "Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models",
        ),
        ("qwen_2.5_vl_7b_fp8_scaled.safetensors", f"{hub}/text_encoders"),
        "qwen_image",
        ("qwen_image_vae.safetensors", f"{hub}/vae"),
    )
    lora = _lora(
        unet["MODEL"],
        "Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors",
        "lightx2v/Qwen-Image-Lightning/resolve/main/Qwen-Image-Edit-2509",
    )
    model = _shifted(lora["MODEL"], 3.0)
    method = Node("TestTimeBestOfN", {"particles": 4})
    asked = Node("TestTimeVLM", {"model": VLM, "rubric": "yes_no"}, width=WIDTH)
    judge = Node("TestTimeEditJudge", {"judge": asked["verifier"]}, width=WIDTH, lines=2)
    prompt = text_node("Make it a rainy night, keep everything else as it is", WIDTH)
    picture = Node("LoadImage", {"image": "example.png"}, "Image to edit", width=290, picture=260)
    scaled = Node("FluxKontextImageScale", {"image": picture["IMAGE"]}, width=290)
    told = {"clip": clip["CLIP"], "vae": vae["VAE"], "image1": scaled["IMAGE"]}
    positive = Node(
        "TextEncodeQwenImageEditPlus", {**told, "prompt": prompt["STRING"]}, "Instruction", width=290, lines=2
    )
    negative = _none_of(positive)
    latent = Node("VAEEncode", {"pixels": scaled["IMAGE"], "vae": vae["VAE"]}, "Size of the edit", width=NARROW)
    sampler = _search_ksampler(
        model["MODEL"], positive, negative, latent["LATENT"], vae, judge, method, prompt,
        steps=4, cfg=1.0, sampler_name="euler", scheduler="simple",
    )  # fmt: skip
    models = [prompt, unet, lora, model, clip, vae, asked, judge]
    columns = [picture, scaled, positive, negative, latent]
    return _workflow("qwen_edit_best_of_n", text + ASKED, models, columns, method, sampler, vae)


def flux2_klein_best_of_n() -> Workflow:
    text = """
    ## FLUX.2 Klein, Best-of-N
    The distilled 4B model makes an image in four steps. That leaves little to decide on the way, so the plainest search
    does: **four images, the best is kept**. Search Sampler takes the place of the sampler in ComfyUI's template.

    - **KSamplerSelect** says whose steps are made.
    - The base model (20 steps, cfg 5) has room for SVDD or SMC.
    """
    unet, clip, vae = _loaders(
        ("flux-2-klein-4b.safetensors", "Comfy-Org/flux2-klein/resolve/main/split_files/diffusion_models"),
        ("qwen_3_4b.safetensors", "Comfy-Org/flux2-klein/resolve/main/split_files/text_encoders"),
        "flux2",
        ("flux2-vae.safetensors", "Comfy-Org/flux2-dev/resolve/main/split_files/vae"),
    )
    method = Node("TestTimeBestOfN", {"particles": 4})
    judge = Node("TestTimePickScore", {"model": "verifiers/PickScore_v1"}, width=WIDTH)
    prompt = text_node("A hedgehog wearing a tiny party hat surrounded by confetti, flash photography", WIDTH)
    positive = encode(clip["CLIP"], prompt["STRING"], "Positive prompt")
    negative = _none_of(positive)
    conds = {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}
    guider = Node("CFGGuider", {"model": unet["MODEL"], **conds, "cfg": 1.0}, width=290)
    latent = Node(
        "EmptyFlux2LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, "Empty latent", width=NARROW
    )
    sigmas = Node("Flux2Scheduler", {"steps": 4, "width": 1024, "height": 1024})
    noise = Node("RandomNoise", {"noise_seed": 7})
    select = Node("KSamplerSelect", {"sampler_name": "euler"})
    judged = {"verifier": judge["verifier"], "vae": vae["VAE"], "prompt": prompt["STRING"]}
    search = Node(
        "TestTimeSearchSampler",
        {**judged, "search": method["search"], "sampler": select["SAMPLER"]},
        width=340,
        lines=2,
    )
    parts = {"noise": noise["NOISE"], "guider": guider["GUIDER"], "sampler": search["sampler"]}
    run = Node(
        "SamplerCustomAdvanced", {**parts, "sigmas": sigmas["SIGMAS"], "latent_image": latent["LATENT"]}, width=290
    )
    name = "flux2_klein_best_of_n"
    method.width = select.width = noise.width = NARROW
    guider.width = sigmas.width = run.width = 340
    groups = [
        Group(
            "Model, judge and prompt",
            [[prompt, unet, clip, vae, judge], lowered(positive, negative, latent)],
            MODEL_BLUE,
        ),
        Group("Method", [[], [method, select, noise]], SEARCH_BROWN, below=True),
        Group("Search", [[search, guider]], SEARCH_BROWN),
        Group("Sampling", [[sigmas, run]], START_GREEN, below=True),
        best_only(vae["VAE"], run["output"], name),
        Group("", [[note(text + PICKSCORE, 340)]], below=True),
    ]
    return Workflow(name, groups)


def _search_ksampler(
    model: Link,
    positive: Node,
    negative: Node,
    latent: Link,
    vae: Node,
    judge: Node,
    method: Node,
    prompt: Node,
    **more,
) -> Node:
    inputs = {
        "model": model,
        "positive": positive["CONDITIONING"],
        "negative": negative["CONDITIONING"],
        "latent_image": latent,
        "verifier": judge["verifier"],
        "vae": vae["VAE"],
        "search": method["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
        **more,
    }
    return Node("TestTimeSearchKSampler", inputs, width=340, lines=2, picture=PREVIEW)


def _workflow(
    name: str, text: str, models: list[Node], prompts: list[Node], method: Node, sampler: Node, vae: Node
) -> Workflow:
    """Loaders and judge, prompts and latent with the method below, the search, and its results."""
    method.width = NARROW
    groups = [
        Group("Model, judge and prompt", [models, lowered(*prompts)], MODEL_BLUE),
        Group("Method", [[], [method]], SEARCH_BROWN, below=True),
        Group("Search", [[sampler]], SEARCH_BROWN),
        Group("", [[note(text, 340)]], below=True),
        results(vae["VAE"], sampler, name),
    ]
    return Workflow(name, groups)


WORKFLOWS = [z_image_turbo_random_search, flux2_klein_best_of_n, qwen_image_zero_order, qwen_edit_best_of_n]
NEED_CHECKPOINT = tuple(function.__name__ for function in WORKFLOWS)
"""Workflows that need files of the user's."""
