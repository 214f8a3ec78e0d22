"""The example workflows with rewritten prompts: TTGen on the embedded model and with the paper's settings, SVDD."""

from __future__ import annotations

from workflow_graph import Group, Node, Workflow, note
from workflow_parts import (
    MODEL_BLUE,
    NARROW,
    PREVIEW,
    SEARCH_BROWN,
    World,
    encode,
    lowered,
    one_search,
    results,
    text_node,
)
from workflow_uses import SD15

NEED_CHECKPOINT = ("sd15_ttgen",)


def ttgen() -> Workflow:
    text = """
    ## TTGen
    While the image forms, a **rewriter** looks at the preview of each early step and proposes prompts aimed at what is
    missing. The one whose preview fits the **original** prompt best makes the step (Qiao et al.).

    - **Shapes World Rewriter** needs no model. For real images take Prompt Rewriter (local VLM) or (endpoint).
    - **rewrites** is M, **injection_step** the last step with rewrites, **interval** saves calls of the rewriter.
    - **eta** 0 as in the paper: the prompt, not the noise, makes the difference.
    """
    world = World("a photo of a ring and a triangle")
    rewriter = Node("TestTimeShapesRewriter", {})
    inputs = {"rewriter": rewriter["rewriter"], "clip": world.load["clip"], "rewrites": 3, "injection_step": 10}
    method = Node("TestTimeTTGen", inputs)
    return one_search("ttgen", world, text, rewriter, method, eta=0.0, seed=2)


def svdd_reprompted() -> Workflow:
    text = """
    ## SVDD with rewritten prompts
    **Add Prompt Rewriting** puts the rewriter into another search: the four continuations that SVDD tries at a step now
    differ in their prompt too, one under the original and three under rewrites. No further model calls.

    - Goes with every method that branches or resamples: SVDD, SMC, FK Steering, Beam Search.
    - **interval** 2 asks the rewriter at every other step.
    """
    world = World("a red square and a blue ring")
    rewriter = Node("TestTimeShapesRewriter", {})
    svdd = Node("TestTimeSVDD", {"candidates": 4})
    inputs = {"search": svdd["search"], "rewriter": rewriter["rewriter"], "clip": world.load["clip"], "interval": 2}
    method = Node("TestTimeAddRewriting", inputs)
    return one_search("svdd_reprompted", world, text, rewriter, svdd, method, seed=3)


def sd15_ttgen() -> Workflow:
    text = """
    ## Stable Diffusion 1.5, TTGen
    The paper's settings: DDIM with 50 steps (scheduler ddim_uniform, **eta** 0), CFG 7.5, rewrites until step 20.

    - **Prompt Rewriter (endpoint)** asks a vision-language model behind an OpenAI-compatible server: vLLM, Ollama,
    llama.cpp. A key comes from the environment variable TESTTIME_API_KEY. Prompt Rewriter (local VLM) takes a model
    folder in its place.
    - When the server does not answer, the image is finished with the original prompt.
    - The judge is CLIPScore. Put
    [openai/clip-vit-large-patch14](https://huggingface.co/openai/clip-vit-large-patch14) into
    `models/verifiers/openai--clip-vit-large-patch14`.
    """
    load = SD15.load()
    judge = Node("TestTimeCLIPScore", {"clip": "verifiers/openai--clip-vit-large-patch14"}, width=360)
    prompt = text_node("a photograph of a red fox sitting left of a blue bicycle, autumn leaves", 360)
    positive = encode(load["CLIP"], prompt["STRING"], "Positive prompt")
    negative = encode(load["CLIP"], "", "Negative prompt")
    size = {"width": SD15.side, "height": SD15.side, "batch_size": 1}
    latent = Node("EmptyLatentImage", size, "Empty latent", NARROW)
    rewriter = Node("TestTimeEndpointRewriter", {"model": "Qwen/Qwen3-VL-4B-Instruct"}, width=360)
    inputs = {"rewriter": rewriter["rewriter"], "clip": load["CLIP"], "interval": 2}
    method = Node("TestTimeTTGen", inputs, width=NARROW)
    sampling = {
        "model": load["MODEL"],
        "positive": positive["CONDITIONING"],
        "negative": negative["CONDITIONING"],
        "latent_image": latent["LATENT"],
        "verifier": judge["verifier"],
        "vae": load["VAE"],
        "search": method["search"],
        "prompt": prompt["STRING"],
        "seed": 7,
        "steps": 50,
        "cfg": SD15.cfg,
        "scheduler": "ddim_uniform",
        "eta": 0.0,
    }
    sampler = Node("TestTimeSearchKSampler", sampling, width=340, lines=2, picture=PREVIEW)
    groups = [
        Group("Model, judge and prompt", [[load, judge, prompt], lowered(positive, negative)], MODEL_BLUE),
        Group("Method", [[rewriter], [method, latent]], SEARCH_BROWN, below=True),
        Group("Search", [[sampler]], SEARCH_BROWN),
        Group("", [[note(text, 340)]], below=True),
        results(load["VAE"], sampler, "sd15_ttgen"),
    ]
    return Workflow("sd15_ttgen", groups)


WORKFLOWS = [ttgen, svdd_reprompted, sd15_ttgen]
