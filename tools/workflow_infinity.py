"""The example workflows of Infinity: plain, and TTS-VAR as published."""

from __future__ import annotations

from workflow_graph import Group, Node, Workflow, note
from workflow_parts import MODEL_BLUE, RESULT_VIOLET, SEARCH_BROWN, decode, lowered, results, save, text_node

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


def infinity_sampler() -> Workflow:
    text = """
    ## Infinity
    Infinity draws an image **scale by scale**: one token, then 2 x 2, 4 x 4, ... up to 64 x 64, each from all coarser
    ones (Han et al. 2024). Thirteen passes make an image of a megapixel.

    - **tau** is the temperature: lower is cleaner and less varied.
    - **pixels** and **aspect_ratio** choose one of the sizes that the model knows.
    - Needs infinity_2b_reg.pth, infinity_vae_d32reg.pth and Flan-T5-XL; the loader says where they belong.
    """
    name = "infinity_sampler"
    load, prompt, encoded = _model()
    inputs = {"infinity": load["infinity"], "positive": encoded["conditioning"], "seed": 7, "vae": load["vae"]}
    sampler = Node("TestTimeInfinitySampler", inputs, width=340, picture=300)
    image = decode(sampler["latent"], load["vae"])
    groups = [
        Group("", [[note(text)]]),
        Group("Model and prompt", [[load, prompt], lowered(encoded)], MODEL_BLUE),
        Group("Sampling", [[sampler]], SEARCH_BROWN),
        Group("Result", [[image], [save(image["IMAGE"], name, "Image", 340)]], RESULT_VIOLET),
    ]
    return Workflow(name, groups)


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
    features = Node("TestTimeDINOv2Features", {"model": "facebook--dinov2-with-registers-large"}, width=320)
    method = Node("TestTimeTTSVAR", {"extractor": features["extractor"]}, width=320)
    inputs = {
        "infinity": load["infinity"],
        "positive": encoded["conditioning"],
        "verifier": judge["verifier"],
        "vae": load["vae"],
        "search": method["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
    }
    sampler = Node("TestTimeInfinitySearch", inputs, width=340, lines=2)
    groups = [
        Group("", [[note(text)]]),
        Group("Model, judge and prompt", [[load, judge, prompt], lowered(encoded)], MODEL_BLUE),
        Group("Search", [lowered(features, method), [sampler]], SEARCH_BROWN),
        results(load["vae"], sampler, name),
    ]
    return Workflow(name, groups)


WORKFLOWS = [infinity_sampler, infinity_tts_var]
