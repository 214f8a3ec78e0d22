"""The demo through ComfyUI: one API workflow per prompt and method, on a running server or on a headless one."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..graph.check import check_known_nodes
from ..installation.client import ComfyClient, RunResult, file_references
from ..installation.comfyui import HeadlessOptions
from ..installation.errors import WorkflowFailed
from ..installation.running import last_words, run_on, server_for
from ..models.tiny.var_pipeline import VarSettings
from ..reports.names import PLAIN
from ..samplers.method import SearchMethod
from ..samplers.methods.registry import METHODS
from ..samplers.run.trace import Trace
from ..shapes_world.captions import Prompt
from .backends import Settings
from .sections import DIFFUSION, TTS_VAR_PARTICLES, VAR, Entry

# Outputs of both loaders after the model, which comes first; the extractor is the next-scale model's alone.
CLIP, VAE, VERIFIER, HELD_OUT, EXTRACTOR = (["world", slot] for slot in range(1, 6))
# What a method's node needs besides defaults and its width.
MORE: dict[str, dict[str, Any]] = {"das": {"gradient_through": "decoder"}, "tts_var": {"extractor": EXTRACTOR}}
SIZE = 128


def default_inputs(info: dict) -> dict:
    """The default value of every widget of a node, from its definition in ``/object_info``."""
    values = {}
    for section in ("required", "optional"):
        for name, (kind, *rest) in info.get("input", {}).get(section, {}).items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if "default" in options:
                values[name] = options["default"]
            elif choices:
                values[name] = choices[0]
    return values


def explicit(kind: type[SearchMethod]) -> dict[str, Any]:
    """Settings that a node chooses by itself (0 = auto), as the class has them: both backends make the same search."""
    return {item.name: item.default for item in fields(kind) if item.name == "every"}


def build_workflow(method: str, prompt: Prompt, settings: Settings, model: str = DIFFUSION) -> dict:
    """The API workflow of one method on one prompt, without the inputs that keep their defaults."""
    row = METHODS["best_of_n" if method == PLAIN else method]
    width = {PLAIN: 1, "tts_var": TTS_VAR_PARTICLES}.get(method, settings.budget)
    call = {
        "positive": ["positive", 0],
        "vae": VAE,
        "verifier": VERIFIER,
        "held_out": HELD_OUT,
        "search": ["method", 0],
        "prompt": prompt.text,
        "seed": settings.noise_seed(prompt),
    }
    parts = {
        "positive": ("CLIPTextEncode", {"text": prompt.text, "clip": CLIP}),
        "method": (row.node, {row.method.width: width, **explicit(row.method), **MORE.get(method, {})}),
        **(_next_scale(call) if model == VAR else _diffusion(call, settings)),
        "decode": ("VAEDecode", {"samples": ["search", 1], "vae": VAE}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "finalists"}),
        "report": (
            "TestTimeSearchReport",
            {"trace": ["search", 3], "save": "picture and trace", "filename_prefix": "report"},
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in parts.items()}


def _diffusion(call: dict, settings: Settings) -> dict[str, tuple[str, dict]]:
    """The loader and the sampler of the diffusion model, with what they alone need."""
    own = {"model": ["world", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    own |= {"steps": settings.steps, "cfg": settings.cfg, "sampler_name": "euler", "scheduler": "normal", "eta": 1.0}
    return {
        "world": ("TestTimeLoadShapesWorld", {"model": "diffusion"}),
        "negative": ("CLIPTextEncode", {"text": "", "clip": CLIP}),
        "latent": ("EmptyLatentImage", {"width": SIZE, "height": SIZE, "batch_size": 1}),
        "search": ("TestTimeSearchKSampler", {**call, **own}),
    }


def _next_scale(call: dict) -> dict[str, tuple[str, dict]]:
    """The loader and the sampler of the next-scale model; its size is fixed, whatever the widgets say."""
    sampling = VarSettings()
    own = {"infinity": ["world", 0], "batch_size": 1}
    own |= {"cfg": sampling.cfg, "tau": sampling.tau, "top_p": sampling.top_p}
    return {
        "world": ("TestTimeLoadShapesWorldVAR", {}),
        "search": ("TestTimeInfinitySearch", {**call, **own}),
    }


class ComfyBackend:
    """The embedded models through ComfyUI's nodes; a context manager.

    Args:
        settings: what to run.
        url: a running ComfyUI, or None to start one without a window and stop it at the end.

    Raises:
        ServerTrouble: no ComfyUI, or one that does not answer (on entering).
        BadInput: a ComfyUI without this pack.
    """

    def __init__(self, settings: Settings, url: str | None = None):
        self.settings, self._url = settings, url
        self.where = "ComfyUI"
        self.verifier, self.held_out = settings.verifier, settings.held_out

    def __enter__(self) -> ComfyBackend:
        with ExitStack() as stack:
            url, server = stack.enter_context(server_for(self._url, HeadlessOptions(only_this_pack=True)))
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="testtime-demo-")))
            self._loop = asyncio.new_event_loop()
            stack.callback(self._loop.close)
            self._client = self._loop.run_until_complete(ComfyClient(url, last_words(server)).__aenter__())
            stack.callback(lambda: self._loop.run_until_complete(self._client.__aexit__(None, None, None)))
            self._nodes = self._loop.run_until_complete(self._client.object_info())
            self.where = (
                f"ComfyUI {server.installation.version}, headless" if server else f"ComfyUI at {self._client.url}"
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def run(self, method: str, prompt: Prompt, model: str = DIFFUSION) -> Entry:
        """See ``demo_backends.Backend.run``."""
        workflow = build_workflow(method, prompt, self.settings, model)
        check_known_nodes(workflow, self._nodes)
        for node in workflow.values():
            node["inputs"] = {**default_inputs(self._nodes[node["class_type"]]), **node["inputs"]}
        folder = self._folder / f"{model}-{method}-{prompt.task}"
        images, trace = self._loop.run_until_complete(self._outcome(workflow, folder))
        finalists = trace.finalists()
        if len(finalists) != len(images):
            raise WorkflowFailed(f"ComfyUI saved {len(images)} finalists, the trace has {len(finalists)}")
        ledger = trace.meta["ledger"]
        return Entry(
            method=method,
            prompt=prompt,
            image=images[0],
            score=finalists[0]["score"],
            held_out=finalists[0].get("held_out"),
            correct=False,
            trace=trace,
            winner=finalists[0]["id"],
            finalists=[(entry["id"], image) for entry, image in zip(finalists, images, strict=True)],
            nfe=ledger["nfe"],
            backward=ledger["backward"],
            seconds=trace.records[-1].seconds,
            model=model,
        )

    async def _outcome(self, workflow: dict, folder: Path) -> tuple[list[np.ndarray], Trace]:
        """Run a workflow; the finalists' pictures, best first, and the trace."""
        result: RunResult = await run_on(self._client, workflow, folder, quiet=True)
        saved = [path for path in result.files if path.name.startswith("finalists")]
        (report,) = file_references(result.outputs["report"])
        # The report's picture is what the node shows; its trace lies beside it under the same name.
        reference = {**report, "filename": str(Path(report["filename"]).with_suffix(".json"))}
        trace = await self._client.fetch(reference, folder)
        return [np.asarray(Image.open(path).convert("RGB")) for path in saved], Trace.from_json(
            trace.read_text("utf-8")
        )
