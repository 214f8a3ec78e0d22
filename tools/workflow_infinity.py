"""The example workflows of next-scale models: Infinity plain and with TTS-VAR as published, the embedded model too."""

from __future__ import annotations

from workflow_graph import Group, Link, Node, Workflow, note
from workflow_parts import (
    MODEL_BLUE,
    NARROW,
    PREVIEW,
    RESULT_VIOLET,
    SEARCH_BROWN,
    decode,
    encode,
    lowered,
    results,
    save,
    text_node,
)

PROMPT = "a photograph of a red fox sitting left of a blue bicycle, autumn leaves"
# Not offered for download: the front end takes nothing but .safetensors. The loader says where they are from.
FILES = {"transformer": "infinity_2b_reg.pth", "vae": "infinity_vae_d32reg.pth", "text_encoder": "flan-t5-xl"}
NEED_CHECKPOINT = ("infinity_sampler", "infinity_tts_var")


def _model() -> tuple[Node, Node, Node]:
    """(loader, prompt, encoded prompt)."""
    load = Node("TestTimeLoadInfinity", dict(FILES), width=360)
    prompt = text_node(PROMPT, 360)
    encoded = Node("TestTimeInfinityTextEncode", {"clip": load["clip"], "text": prompt["STRING"]}, width=290, lines=2)
    return load, prompt, encoded


def _sampled(name: str, text: str, model: tuple[Node, Node, Node], positive: Link, **changes) -> Workflow:
    """Plain sampling with a (loader, prompt, encoded prompt)."""
    load, prompt, encoded = model
    inputs = {"infinity": load["infinity"], "positive": positive, "seed": 7, **changes, "vae": load["vae"]}
    sampler = Node("TestTimeInfinitySampler", inputs, width=340, picture=300)
    image = decode(sampler["latent"], load["vae"])
    groups = [
        Group("Model and prompt", [[load, prompt], lowered(encoded)], MODEL_BLUE),
        Group("", [[note(text, load.width)]], below=True),
        Group("Sampling", [[sampler]], SEARCH_BROWN),
        Group("Result", [[image], [save(image["IMAGE"], name, "Image", 340)]], RESULT_VIOLET),
    ]
    return Workflow(name, groups)


def infinity_sampler() -> Workflow:
    text = """
    ## Infinity
    Infinity draws an image **scale by scale**: one token, then 2 x 2, 4 x 4, ... up to 64 x 64, each from all coarser
    ones (Han et al. 2024). Thirteen passes make an image of a megapixel.

    - **tau** is the temperature: lower is cleaner and less varied.
    - **pixels** and **aspect_ratio** choose one of the sizes that the model knows.
    - Needs infinity_2b_reg.pth, infinity_vae_d32reg.pth and Flan-T5-XL; the loader says where they belong.
    """
    load, prompt, encoded = _model()
    return _sampled("infinity_sampler", text, (load, prompt, encoded), encoded["conditioning"])


def infinity_tts_var() -> Workflow:
    text = """
    ## TTS-VAR
    **Many particles while the image is small, few when it is large** (Chen et al. 2025): sixteen begin, clusters keep
    the early ones different, ImageReward chooses among the later ones, two are finished. It costs little more than
    two and a half plain images.

    - **particles** is N: images that are finished; 8 N begin.
    - **strength** is how strictly the score chooses.
    - Needs, besides Infinity: ImageReward and DINOv2; the loaders say where they belong.
    """
    name = "infinity_tts_var"
    load, prompt, encoded = _model()
    files = {"model": "ImageReward.pt", "tokenizer": "bert-base-uncased"}
    judge = Node("TestTimeImageReward", files, width=360)
    features = Node("TestTimeLoadFeatures", {"model": "facebook--dinov2-with-registers-large"}, width=360)
    method = Node("TestTimeTTSVAR", {"extractor": features["extractor"]}, width=NARROW)
    inputs = {
        "infinity": load["infinity"],
        "positive": encoded["conditioning"],
        "verifier": judge["verifier"],
        "vae": load["vae"],
        "search": method["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
    }
    sampler = Node("TestTimeInfinitySearch", inputs, width=340, lines=2, picture=PREVIEW)
    groups = [
        Group("Model, judge and prompt", [[load, judge, prompt], lowered(encoded)], MODEL_BLUE),
        Group("Method", [[note(text, 360), features], [method]], SEARCH_BROWN, below=True),
        Group("Search", [[sampler]], SEARCH_BROWN),
        results(load["vae"], sampler, name),
    ]
    return Workflow(name, groups)


def _embedded(prompt: str) -> tuple[Node, Node, Node]:
    """(loader, prompt, encoded prompt) of the embedded model."""
    load, text = Node("TestTimeLoadShapesWorldVAR", {}, width=290), text_node(prompt)
    return load, text, encode(load["clip"], text["STRING"], "Positive prompt")


DRAWN = {"cfg": 3.0, "tau": 1.0, "pixels": "0.06M"}
"""How the embedded model is sampled; it has one size, whatever ``pixels`` says."""


def var_sampler() -> Workflow:
    text = """
    ## A next-scale model
    The embedded model draws **scale by scale**: one token, 2 x 2, ... 6 x 6 and twice 8 x 8, each from all earlier
    ones. It is Infinity's architecture in a tiny size, so what works here works with Load Infinity.

    - **tau** is the temperature of the bits, **cfg** how strictly they follow the prompt.
    - Nothing to download; an image takes a fraction of a second on a processor.
    """
    load, prompt, encoded = _embedded("a purple heart")
    inputs = {**DRAWN, "batch_size": 4}
    return _sampled("var_sampler", text, (load, prompt, encoded), encoded["CONDITIONING"], **inputs)


def tts_var() -> Workflow:
    text = """
    ## TTS-VAR on the embedded model
    **Many particles while the image is small, few when it is large** (Chen et al. 2025). Sixteen begin; clusters keep
    the early ones different; the verifier chooses among the later ones; two are finished.

    - **particles** is N: images that are finished; 8 N begin.
    - **strength** is how strictly the score chooses.
    - Put Best-of-N, Random Search, SMC or FK Steering in its place to compare: all run on this model.
    """
    name = "tts_var"
    load, prompt, encoded = _embedded("an orange crescent")
    method = Node("TestTimeTTSVAR", {"extractor": load["extractor"]}, width=NARROW)
    inputs = {
        **{slot: load[slot] for slot in ("infinity", "vae", "verifier", "held_out")},
        "positive": encoded["CONDITIONING"],
        "search": method["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
        **DRAWN,
    }
    sampler = Node("TestTimeInfinitySearch", inputs, width=340, lines=2, picture=PREVIEW)
    groups = [
        Group("Model and prompt", [[load, prompt], lowered(encoded)], MODEL_BLUE),
        Group("Method", [[note(text)], [method]], SEARCH_BROWN, below=True),
        Group("Search", [[sampler]], SEARCH_BROWN),
        results(load["vae"], sampler, name),
    ]
    return Workflow(name, groups)


WORKFLOWS = [infinity_sampler, infinity_tts_var, var_sampler, tts_var]
