"""The example workflows for videos: Wan 2.2 by both of its models, HunyuanVideo, and LTX-2 with its sound."""

from __future__ import annotations

from workflow_graph import Group, Link, Node, Workflow, note
from workflow_parts import (
    MODEL_BLUE,
    NARROW,
    PREVIEW,
    RESULT_VIOLET,
    SEARCH_BROWN,
    START_GREEN,
    decode,
    encode,
    text_node,
)
from workflow_uses import JUDGE

NEED_CHECKPOINT = ("wan22_t2v", "wan22_i2v", "hunyuan_video", "ltx2_t2v")
"""Workflows that need files of the user's."""

HUB = "https://huggingface.co"
WAN = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
PROMPT = "a red fox walks from left to right through tall grass, the camera follows it, morning light"


def _file(kind: str, name: str, url: str) -> dict[str, str]:
    return {"name": name, "url": url, "directory": kind}


def unet(name: str, url: str = f"{WAN}/diffusion_models") -> Node:
    """Load Diffusion Model."""
    file = _file("diffusion_models", name, f"{url}/{name}")
    return Node("UNETLoader", {"unet_name": name, "weight_dtype": "default"}, width=NARROW, models=(file,))


def lora(model: Link, name: str) -> Node:
    """The LoRA of four steps."""
    file = _file("loras", name, f"{WAN}/loras/{name}")
    return Node("LoraLoaderModelOnly", {"model": model, "lora_name": name}, "4-step LoRA", width=NARROW, models=(file,))


def shifted(model: Link, shift: float) -> Node:
    """ModelSamplingSD3."""
    return Node("ModelSamplingSD3", {"model": model, "shift": shift}, width=NARROW)


def judged() -> tuple[Node, Node]:
    """CLIPScore, and the frames that it sees."""
    clip = Node("TestTimeCLIPScore", {"clip": "verifiers/openai--clip-vit-large-patch14"}, width=NARROW)
    return clip, Node("TestTimeFramesVerifier", {"verifier": clip["verifier"], "frames": 5}, width=NARROW)


def sampled(guider: Link, sigmas: Link, latent: Link, sampler: Node) -> list[Node]:
    """The search as a stock sampler: noise, Search Sampler, Sampler Custom Advanced."""
    noise = Node("RandomNoise", {"noise_seed": 7}, width=NARROW)
    inputs = {
        "noise": noise["NOISE"],
        "guider": guider,
        "sampler": sampler["sampler"],
        "sigmas": sigmas,
        "latent_image": latent,
    }
    return [noise, Node("SamplerCustomAdvanced", inputs, width=280, picture=PREVIEW)]


def shown(name: str, best: Node, fps: float, audio: Link | None = None, *more: Node) -> Group:
    """Create Video and Save Video behind a decoder."""
    inputs = {"images": best["IMAGE"], "fps": fps} | ({} if audio is None else {"audio": audio})
    video = Node("CreateVideo", inputs, width=best.width)
    save = Node("SaveVideo", {"video": video["VIDEO"], "filename_prefix": f"video/{name}"}, width=250, picture=260)
    return Group("Result", [[best, *more, video], [save]], RESULT_VIOLET)


def search_of(method: Node, verifier: Link, vae: Link, prompt: Link, eta: float = 0.0) -> Node:
    """Search Sampler."""
    inputs = {"verifier": verifier, "vae": vae, "search": method["search"], "prompt": prompt, "eta": eta}
    return Node("TestTimeSearchSampler", inputs, width=280, lines=2)


def _wan(name: str, kind: str, lora_version: str, boundary: float, text: str) -> Workflow:
    """Both models of Wan 2.2 with their 4-step LoRAs, one search over the whole schedule."""
    names = [f"wan2.2_{kind}_{half}_noise_14B_fp8_scaled.safetensors" for half in ("high", "low")]
    loras = [f"wan2.2_{kind}_lightx2v_4steps_lora_{lora_version}_{half}_noise.safetensors" for half in ("high", "low")]
    nets = [unet(one) for one in names]
    patched = [lora(net["MODEL"], one) for net, one in zip(nets, loras, strict=True)]
    high, low = (shifted(one["MODEL"], 5.0) for one in patched)
    t5, file = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"
    url = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/{t5}"
    clip = Node("CLIPLoader", {"clip_name": t5, "type": "wan"}, width=NARROW, models=(_file("text_encoders", t5, url),))
    vae = Node("VAELoader", {"vae_name": file}, width=NARROW, models=(_file("vae", file, f"{WAN}/vae/{file}"),))
    prompt = text_node(PROMPT)
    positive = encode(clip["CLIP"], prompt["STRING"], "Positive prompt")
    negative = encode(clip["CLIP"], "static, blurry, subtitles, deformed, worst quality", "Negative prompt")
    conditions = {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}
    size = {"width": 640, "height": 640, "length": 81, "batch_size": 1}
    if kind == "i2v":
        picture = Node("LoadImage", {"image": "example.png"}, width=NARROW, picture=260)
        latent = Node(
            "WanImageToVideo", {**conditions, "vae": vae["VAE"], "start_image": picture["IMAGE"], **size}, width=NARROW
        )
        conditions = {name: latent[name] for name in ("positive", "negative")}
        start, samples = [picture], latent["latent"]
    else:
        latent = Node("EmptyHunyuanLatentVideo", size, "Empty latent video", width=NARROW)
        start, samples = [], latent["LATENT"]
    inputs = {"model_high": high["MODEL"], "model_low": low["MODEL"], **conditions, "boundary": boundary}
    guider = Node("TestTimeTwoExpertGuider", inputs, width=NARROW)
    steps = {"model": high["MODEL"], "scheduler": "simple", "steps": 4, "denoise": 1.0}
    sigmas = Node("BasicScheduler", steps, width=NARROW)
    score, frames = judged()
    method = Node("TestTimeBestOfN", {"particles": 4}, width=NARROW)
    sampler = search_of(method, frames["verifier"], vae["VAE"], prompt["STRING"])
    noise, run = sampled(guider["guider"], sigmas["SIGMAS"], samples, sampler)
    best = decode(run["output"], vae["VAE"], "Decode the best")
    groups = [
        Group("Prompt and models", [[prompt, clip, vae, *nets], [positive, negative, *patched]], MODEL_BLUE),
        Group("Judge and method", [[note(text + JUDGE), score], [*start, frames, method]], SEARCH_BROWN, below=True),
        Group("Schedule", [[high, low, latent, guider, sigmas]], START_GREEN),
        Group("Search", [[run, sampler, noise]], SEARCH_BROWN),
        shown(name, best, 16.0),
    ]
    return Workflow(name, groups)


def wan22_t2v() -> Workflow:
    text = """
    ## Wan 2.2, text to video
    Four clips, the best is kept. Wan 2.2 14B is two models: **Two-Expert Guider** puts both under one search. All
    clips go through the high noise model before the low noise model is loaded.

    - **particles**: each costs as much as one plain video.
    - **boundary** .875 is where the second model takes over: after two of the four steps.
    """
    return _wan("wan22_t2v", "t2v", "v1.1", 0.875, text)


def wan22_i2v() -> Workflow:
    text = """
    ## Wan 2.2, image to video
    As *Wan 2.2 - Text to video*, from a picture of yours: WanImageToVideo gives it to both models. The first frame is
    the same in every clip.

    - Put **Motion Verifier** beside the judge (in **Verifier Ensemble**) against clips that stand still.
    """
    return _wan("wan22_i2v", "i2v", "v1", 0.9, text)


def hunyuan_video() -> Workflow:
    text = """
    ## HunyuanVideo
    Four clips, the best is kept. One is finished before the next is begun: what is there when you press Cancel is
    in **Recover Search**.

    - **particles**: each costs as much as one plain video.
    - The guidance of this model is a number that it reads: **FluxGuidance**, and no negative prompt.
    """
    name, repository = "hunyuan_video", f"{HUB}/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"
    net = unet("hunyuan_video_t2v_720p_bf16.safetensors", f"{repository}/diffusion_models")
    model = shifted(net["MODEL"], 7.0)
    clip_l, llama = "clip_l.safetensors", "llava_llama3_fp8_scaled.safetensors"
    files = (
        _file("text_encoders", clip_l, f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/{clip_l}"),
        _file("text_encoders", llama, f"{repository}/text_encoders/{llama}"),
    )
    inputs = {"clip_name1": clip_l, "clip_name2": llama, "type": "hunyuan_video"}
    clip = Node("DualCLIPLoader", inputs, width=NARROW, models=files)
    file = "hunyuan_video_vae_bf16.safetensors"
    vae = Node("VAELoader", {"vae_name": file}, width=NARROW, models=(_file("vae", file, f"{repository}/vae/{file}"),))
    prompt = text_node(PROMPT)
    positive = encode(clip["CLIP"], prompt["STRING"], "Prompt")
    guidance = Node("FluxGuidance", {"conditioning": positive["CONDITIONING"], "guidance": 6.0}, width=NARROW)
    guider = Node("BasicGuider", {"model": model["MODEL"], "conditioning": guidance["CONDITIONING"]}, width=NARROW)
    steps = {"model": model["MODEL"], "scheduler": "simple", "steps": 20, "denoise": 1.0}
    sigmas = Node("BasicScheduler", steps, width=NARROW)
    size = {"width": 848, "height": 480, "length": 73, "batch_size": 1}
    latent = Node("EmptyHunyuanLatentVideo", size, "Empty latent video", width=NARROW)
    score, frames = judged()
    method = Node("TestTimeBestOfN", {"particles": 4}, width=NARROW)
    sampler = search_of(method, frames["verifier"], vae["VAE"], prompt["STRING"])
    noise, run = sampled(guider["GUIDER"], sigmas["SIGMAS"], latent["LATENT"], sampler)
    best = decode(run["output"], vae["VAE"], "Decode the best")
    groups = [
        Group("Prompt and model", [[prompt, clip, net, vae], [positive, guidance, model]], MODEL_BLUE),
        Group("Judge and method", [[note(text + JUDGE), score], [frames, method]], SEARCH_BROWN, below=True),
        Group("Schedule", [[latent, guider, sigmas]], START_GREEN),
        Group("Search", [[run, sampler, noise]], SEARCH_BROWN),
        shown(name, best, 24.0),
    ]
    return Workflow(name, groups)


def ltx2_t2v() -> Workflow:
    text = """
    ## LTX-2, video and sound
    Four clips of the distilled model in eight steps, the best is kept, with its sound. No verifier hears: the sound is
    made and saved, and judged by nobody.

    - Needs a ComfyUI that has LTX-2's nodes.
    - For the second stage (upscaler and three more steps) go on from the winner in the stock nodes.
    """
    name, file = "ltx2_t2v", "ltx-2-19b-distilled.safetensors"
    gemma = "gemma_3_12B_it_fp4_mixed.safetensors"
    checkpoint = _file("checkpoints", file, f"{HUB}/Lightricks/LTX-2/resolve/main/{file}")
    url = f"{HUB}/Comfy-Org/ltx-2/resolve/main/split_files/text_encoders/{gemma}"
    load = Node("CheckpointLoaderSimple", {"ckpt_name": file}, width=NARROW, models=(checkpoint,))
    inputs = {"text_encoder": gemma, "ckpt_name": file}
    clip = Node("LTXAVTextEncoderLoader", inputs, width=NARROW, models=(_file("text_encoders", gemma, url),))
    ears = Node("LTXVAudioVAELoader", {"ckpt_name": file}, width=NARROW)
    prompt = text_node(PROMPT + ", birdsong")
    positive = encode(clip["CLIP"], prompt["STRING"], "Positive prompt")
    negative = encode(clip["CLIP"], "", "Negative prompt")
    both = {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"], "frame_rate": 25.0}
    paced = Node("LTXVConditioning", both, width=NARROW)
    size = {"width": 768, "height": 512, "length": 121, "batch_size": 1}
    picture = Node("EmptyLTXVLatentVideo", size, width=NARROW)
    audio = {"frames_number": 121, "frame_rate": 25, "batch_size": 1, "audio_vae": ears["Audio VAE"]}
    sound = Node("LTXVEmptyLatentAudio", audio, width=NARROW)
    pack = Node("LTXVConcatAVLatent", {"video_latent": picture[0], "audio_latent": sound[0]}, width=NARROW)
    guider = Node(
        "CFGGuider",
        {"model": load["MODEL"], "positive": paced["positive"], "negative": paced["negative"], "cfg": 1.0},
        width=NARROW,
    )
    levels = "1., 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
    sigmas = Node("ManualSigmas", {"sigmas": levels}, width=NARROW, picture=30)
    score, frames = judged()
    method = Node("TestTimeBestOfN", {"particles": 4}, width=NARROW)
    sampler = search_of(method, frames["verifier"], load["VAE"], prompt["STRING"])
    noise, run = sampled(guider["GUIDER"], sigmas["SIGMAS"], pack[0], sampler)
    apart = Node("LTXVSeparateAVLatent", {"av_latent": run["output"]}, width=225)
    best = decode(apart["video_latent"], load["VAE"], "Decode the best")
    heard = Node("LTXVAudioVAEDecode", {"samples": apart["audio_latent"], "audio_vae": ears["Audio VAE"]}, width=225)
    groups = [
        Group("Prompt and model", [[prompt, load, clip, ears], [positive, negative, paced]], MODEL_BLUE),
        Group("Judge and method", [[note(text + JUDGE), score], [frames, method]], SEARCH_BROWN, below=True),
        Group("Schedule", [[picture, sound, pack, guider, sigmas]], START_GREEN),
        Group("Search", [[run, sampler, noise, apart]], SEARCH_BROWN),
        shown(name, best, 25.0, heard["Audio"], heard),
    ]
    return Workflow(name, groups)


WORKFLOWS = [wan22_t2v, wan22_i2v, hunyuan_video, ltx2_t2v]
