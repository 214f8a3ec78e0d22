"""``Refine by Edit``: a finished image is checked item by item, and what is missing is edited in."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..rewriters.base import RewriterError
from ..samplers.after.editors import plain_instruction
from ..samplers.after.refine import MOST_ITEMS, Refine, Refined, refine
from ..samplers.ledger import Ledger
from ..samplers.protocols import Rewriter, RewriteRequest, SearchError
from ..samplers.run.notes import brief
from ..samplers.sources import Sources
from ..verifiers.image_image.preservation import PreservationVerifier
from ..verifiers.vlm.checklist import ChecklistCritic
from .edit_nodes import asker_of
from .editing import MOVERS, REFERENCE, GraphEditor, Sampling
from .guidance_check import is_link, queued
from .host.compat import InterruptProcessing
from .host.live import LiveRun, place
from .host.live import store as live_store
from .host.results import HostResult, store
from .host.rewriting import ask
from .host.run import FINISH, STOP
from .host.scores import Scores
from .search_inputs import prompt_problem
from .types import CATEGORY, RewriterType, SearchType, TraceType, VerifierType

log = logging.getLogger("testtime")


class RefineByEditNode(io.ComfyNode):
    """Refine by Edit: see ``samplers.after.refine``."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeRefineByEdit",
            display_name="Refine by Edit",
            category=f"{CATEGORY}/search",
            description="Checks a finished image item by item with a vision-language model, edits what is missing, "
            "keeps the result if it is not worse, and repeats. Best with an edit model (Flux Kontext, Flux.2, "
            "Qwen-Image-Edit).",
            inputs=[
                io.Image.Input("image", tooltip="The image to refine; of a batch the first."),
                io.Model.Input("model", tooltip="The model that edits."),
                io.Clip.Input("clip", tooltip="Its text encoder: it reads the instructions."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Conditioning.Input("negative", tooltip="What to keep out, for the model."),
                VerifierType.Input(
                    "judge",
                    tooltip="Whose model checks the image: VLM Verifier, VLM Verifier (endpoint) or VLM Verifier "
                    "(loaded CLIP).",
                ),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the image should show."),
                io.String.Input(
                    "items",
                    multiline=True,
                    default="",
                    tooltip="The checklist, one thing per line, at most 12. Empty: the prompt's parts between commas.",
                ),
                io.Combo.Input(
                    "editor",
                    options=list(MOVERS),
                    default=REFERENCE,
                    tooltip="How the model sees the image. reference latent: Flux Kontext, Flux.2. reference latent "
                    "and prompt: Qwen-Image-Edit. image to image: any model; it follows the prompt, not instructions.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed for all noise. Same seed and settings, same result.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Denoising steps per edit."),
                io.Float.Input(
                    "cfg",
                    default=2.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance scale. 1.0 skips the negative prompt and halves the cost.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.KSampler.SAMPLERS),
                    default="euler",
                    tooltip="The sampler of every edit.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default="simple",
                    tooltip="How noise is removed over the steps.",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.6,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="image to image only: how much of the image may change.",
                ),
                io.Int.Input("rounds", default=4, min=1, max=64, tooltip="Edits in a row, at most."),
                io.Int.Input(
                    "candidates", default=2, min=1, max=64, tooltip="Edits tried per round; the best is kept."
                ),
                SearchType.Input(
                    "search",
                    optional=True,
                    tooltip="Makes every edit a search of its own, e.g. Best-of-N. Needs `verifier`.",
                ),
                VerifierType.Input(
                    "verifier", optional=True, tooltip="Judges the candidates of `search`, e.g. Edit Judge."
                ),
                RewriterType.Input(
                    "rewriter",
                    optional=True,
                    tooltip="Words the instructions. Without it they name what is missing.",
                ),
                io.Boolean.Input(
                    "fresh",
                    default=True,
                    optional=True,
                    tooltip="Begin with a new image after two edits that made it worse, or where most of the list is "
                    "missing.",
                ),
                io.Int.Input(
                    "max_nfe",
                    default=0,
                    min=0,
                    max=10_000_000,
                    optional=True,
                    tooltip="Stop after this many forward passes of the model and return the best so far. 0 = no "
                    "limit.",
                ),
                io.Float.Input(
                    "max_seconds",
                    default=0.0,
                    min=0.0,
                    max=1_000_000.0,
                    step=1.0,
                    optional=True,
                    tooltip="Stop after this many seconds and return the best so far. 0 = no limit.",
                ),
                io.Combo.Input(
                    "on_cancel",
                    options=[STOP, FINISH],
                    default=STOP,
                    optional=True,
                    tooltip="What Cancel does. stop: stop the workflow; Recover Search returns the best so far. finish "
                    "with best so far: go on with it.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The best image."),
                TraceType.Output(display_name="trace", tooltip="The record, for Search Report."),
                io.String.Output(display_name="text", tooltip="The checklist with what was found."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompt=None, items=None):
        if items is not None and sum(bool(line.strip()) for line in items.splitlines()) > MOST_ITEMS:
            return f"items has more than {MOST_ITEMS} lines: every image is asked about each of them"
        graph = queued()
        for entry in (graph or {}).values():
            if isinstance(entry, dict) and entry.get("class_type") == "TestTimeRefineByEdit":
                inputs = entry.get("inputs", {})
                if is_link(inputs.get("search")) and not is_link(inputs.get("verifier")):
                    return "search is connected and verifier is not: connect an Edit Judge, a search needs a judge"
        return prompt_problem(prompt)

    @classmethod
    def execute(
        cls, image, model, clip, vae, negative, judge, prompt, items, editor, seed, steps, cfg, sampler_name, scheduler,
        denoise, rounds, candidates, search=None, verifier=None, rewriter=None, fresh=True, max_nfe=0, max_seconds=0.0,
        on_cancel=STOP,
    ) -> io.NodeOutput:  # fmt: skip
        critic = ChecklistCritic(asker_of(judge), items.splitlines(), MOST_ITEMS)
        sampling = Sampling(steps, cfg, sampler_name, scheduler, denoise)
        mover = GraphEditor(model, clip, vae, negative, sampling, editor, prompt, search, verifier)
        ledger = Ledger(max_nfe or None, max_seconds or None)
        found = _live(
            Refine(rounds, candidates, fresh), image[0, ..., :3].float().cpu(), prompt, critic, mover, ledger, seed,
            _instructor(rewriter, seed), lambda result: _keep(result, vae, critic.name),
        )  # fmt: skip
        if found.status == "interrupted" and on_cancel == STOP:
            log.info("cancelled: the best so far is kept, see the Recover Search node")
            raise InterruptProcessing()
        text = told(found)
        return io.NodeOutput(found.image[None], found.trace, text, ui=ui.PreviewText(text))


def _live(
    settings: Refine, image: Tensor, prompt: str, critic: Any, editor: Any, ledger: Ledger, seed: int, instruct, keep
) -> Refined:
    """Refine under the panel's eyes; the best so far is kept whatever happens."""
    about = {"method": "refine_by_edit", "title": "Refine by Edit", "prompts": [prompt], "verifier": critic.name}
    costs = {"max_nfe": ledger.max_nfe, "max_seconds": ledger.max_seconds}
    live = LiveRun({**about, **costs}) if live_store.enabled else None
    if live is not None:
        live.process = SimpleNamespace(ledger=ledger)
    status, warnings, winners = "failed", [], None
    try:
        found = refine(
            settings, image, prompt, critic, editor, seed=seed, instruct=instruct, compare=_keeps,
            listener=live, ledger=ledger, interrupts=(InterruptProcessing,), rescue=keep,
        )  # fmt: skip
        status, warnings, winners = found.status, found.warnings, found.trace.meta.get("winners")
    except BaseException as error:
        warnings = [brief(f"{type(error).__name__}: {error}")]
        raise
    finally:
        if live is not None:
            live.finish(status, warnings, winners)
    keep(found)
    return found


def _keeps(candidates: Tensor, image: Tensor) -> Tensor:
    """How well candidates keep the rest of an image."""
    return PreservationVerifier(Sources((image,))).score(candidates)


def _instructor(rewriter: Rewriter | None, seed: int):
    """Who words instructions: the rewriter's first answer, else what failed."""
    if rewriter is None:
        return plain_instruction

    def instruct(image: Tensor, prompt: str, failed, tried) -> str:
        plain = plain_instruction(image, prompt, failed, tried)
        request = RewriteRequest(image, plain, 1, seed=(seed + len(tried)) % 2**63, sources=(image,))
        try:
            (answer,) = ask(rewriter, [request])
        except RewriterError as error:
            raise SearchError(f"rewriter {rewriter.name!r} cannot word an instruction: {error}") from error
        return answer.prompts[0] if answer.prompts else plain

    return instruct


def _keep(found: Refined, vae: Any, judge: str) -> None:
    """For Recover Search: the best image as a latent, as other searches hand theirs over."""
    with torch.no_grad():
        latent = vae.encode(found.image[None])
    entry = found.trace.meta["winners"][0]
    score = found.trace.table()[entry]["score"]
    scores = Scores(judge, [score], group=[0], particles=[entry])
    store.add(
        HostResult(
            latent, latent, scores, found.trace, found.status, tuple(found.warnings), prompt_id=place()["prompt_id"]
        )
    )


def told(found: Refined) -> str:
    """The checklist as text."""
    lines = [
        f"{'yes' if chance > 0.5 else 'no ' if chance == chance else 'n/a'}  {chance:.2f}  {item}"
        for item, chance in zip(found.items, found.chances.tolist(), strict=True)
    ]
    head = "everything is there" if found.aligned else f"ended: {found.status}"
    return "\n".join([head, *lines, *found.warnings])


NODES = [RefineByEditNode]
