"""``testtime train-value``: a value network for SVDD, SMC and TTS-VAR, from samples and a verifier's scores."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..installation.errors import BadInput
from ..verifiers.named import make_verifiers

NEXT_SCALE = "next-scale"
EMBEDDED = ("diffusion", "flow", NEXT_SCALE)
RANK_PROMPTS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``testtime train-value``."""
    parser.add_argument(
        "out", type=Path, help="folder for samples, checkpoints and value.safetensors; an interrupted run resumes"
    )
    parser.add_argument("--model", choices=EMBEDDED, default="diffusion", help="embedded model to sample from")
    parser.add_argument("--pipeline", help="folder or name of a diffusers pipeline, instead of an embedded model")
    parser.add_argument(
        "--verifier",
        default="shapes_preference",
        metavar="NAME[:KEY=VALUE,...]",
        help="whose scores are learned (%(default)s)",
    )
    parser.add_argument("--prompts", type=Path, help="text file, a prompt a line; default: Shapes World's, drawn")
    parser.add_argument("--images", type=int, default=2000, help="samples to learn from (%(default)s)")
    parser.add_argument("--per-prompt", type=int, default=4, help="samples of each prompt (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a sample (%(default)s)")
    parser.add_argument("--cfg", type=float, help="guidance scale (2.5; next-scale 3)")
    parser.add_argument(
        "--eta", type=float, default=1.0, help="noise added per step when sampling, 0 = none (%(default)s)"
    )
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--sample-batch", type=int, default=50, help="samples per model call (%(default)s)")
    parser.add_argument("--train-steps", type=int, default=4000, help="(%(default)s)")
    parser.add_argument("--train-batch", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="channels of the network (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; default: the GPU where there is one")


def prompts_of(options: argparse.Namespace) -> list[str]:
    """The prompts, one per line of the file, or drawn as for the training of the embedded models."""
    if options.prompts is None:
        if options.pipeline:
            raise BadInput("--prompts is missing: a text file with a prompt a line")
        from ..shapes_world.captions import sample_prompt
        from ..shapes_world.scene import TASKS

        wanted = -(-options.images // max(1, options.per_prompt))
        return [sample_prompt(seed, TASKS[seed % len(TASKS)]).text for seed in range(wanted)]
    try:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"--prompts {options.prompts}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise BadInput(f"--prompts {options.prompts} holds no prompt: one a line is needed")
    return prompts


def _digest(prompts: Sequence[str]) -> str:
    """A few digits that change with the prompts."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12]


def process_factory(options: argparse.Namespace, device: str) -> Callable[[Sequence[str], int], Any]:
    """``(prompts, number of the first image) -> process`` of the chosen model."""
    if options.pipeline is None and options.model == NEXT_SCALE:
        from ..models.tiny.var_pipeline import VarSettings, var_process

        return lambda prompts, first: var_process(
            prompts, VarSettings(cfg=options.cfg, seed=options.seed, group_offset=first)
        )
    if options.pipeline is None:
        from ..models.tiny.pipeline import SamplingSettings, shapes_process

        side = options.size or 128
        settings = {"model": options.model, "steps": options.steps, "cfg": options.cfg, "eta": options.eta,
                    "seed": options.seed, "size": (side, side)}  # fmt: skip
        return lambda prompts, first: shapes_process(prompts, SamplingSettings(**settings, group_offset=first))
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        if importlib.util.find_spec("diffusers") is not None:
            raise BadInput(f"--pipeline needs diffusers, which is installed but cannot be imported: {error}") from error
        raise BadInput("--pipeline needs diffusers: pip install diffusers") from error
    from ..pipelines import pipeline_process

    try:
        pipe = DiffusionPipeline.from_pretrained(options.pipeline, trust_remote_code=False).to(device)
    except (OSError, ValueError) as error:
        raise BadInput(f"--pipeline {options.pipeline}: {error}") from error
    call = {"guidance_scale": options.cfg}
    if options.size:
        call |= {"height": options.size, "width": options.size}

    def make(prompts: Sequence[str], first: int):
        settings = {"steps": options.steps, "eta": options.eta, "seed": options.seed, "group_offset": first}
        return pipeline_process(pipe, prompts, **settings, **call)

    return make


def collected(options: argparse.Namespace, make: Callable, verifier: Any, prompts: list[str], about: dict) -> Any:
    """The samples, from the folder or drawn; goes on where an earlier run of the same settings stopped."""
    from tqdm import tqdm

    from ..values.rollouts import collect
    from ..values.scale_rollouts import collect_scalewise

    source = collect_scalewise if options.pipeline is None and options.model == NEXT_SCALE else collect
    with tqdm(total=options.images, desc="samples") as bar:
        return source(
            make,
            verifier,
            prompts,
            options.images,
            options.out / "rollouts",
            batch=options.sample_batch,
            per_prompt=options.per_prompt,
            about={**about, "prompts": _digest(prompts) if options.prompts else "drawn"},
            progress=lambda done, _: bar.update(done - bar.n),
        )


def verdict(about: dict[str, Any]) -> str:
    """What the network is good for, in words."""
    levels = ", ".join(f"{time}: {share:.2f}" for time, share in about["explained"].items())
    text = f"share of the score that it explains at noise level {levels}"
    value, preview = about.get("ranks") or {}, about.get("preview_ranks") or {}
    pairs = [f"{time}: {value[time]:.2f} ({preview[time]:.2f})" for time in value if time in preview]
    return text + (f"; rank correlation within a prompt (of previews) {', '.join(pairs)}" if pairs else "")


def main(options: argparse.Namespace) -> int:
    """Collect samples, train, write the network; goes on where an earlier run of the same settings stopped."""
    import torch
    from tqdm import tqdm

    from ..samplers.protocols import SearchError
    from ..values.ranks import caveat_of, preview_ranks
    from ..values.training import CHECKED_TIMES, TrainingSettings, held_out_prompts, train

    settings = TrainingSettings(
        steps=options.train_steps,
        batch=options.train_batch,
        learning_rate=options.learning_rate,
        width=options.width,
        seed=options.seed,
    )
    next_scale = options.pipeline is None and options.model == NEXT_SCALE
    options.cfg = (3.0 if next_scale else 2.5) if options.cfg is None else options.cfg
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = options.pipeline or f"Shapes World, {options.model}"
    names = ("cfg", "seed") if next_scale else ("steps", "cfg", "eta", "size", "seed")
    about = {"model": model, **{name: getattr(options, name) for name in names}}
    try:
        settings.check()
        prompts = prompts_of(options)
        (verifier,) = make_verifiers([options.verifier]).values()
        make = process_factory(options, device)
        data = collected(options, make, verifier, prompts, about)
        with tqdm(total=settings.steps, desc="training") as bar:

            def show(step: int, _: int, error: float) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(error=f"{error:.3f}")

            network = train(data, settings, options.out, about={**about, "verifier": verifier.name}, device=device,
                            progress=show)  # fmt: skip
        if network.about["ranks"]:  # prompts with several samples: what previews make of them, to compare with
            asked = [prompts[number] for number in held_out_prompts(data, settings.held_out)[:RANK_PROMPTS]]
            network.about["preview_ranks"] = preview_ranks(make, verifier, asked, CHECKED_TIMES)
            network.save(options.out / "value.safetensors")
    except SearchError as error:
        raise BadInput(str(error)) from error
    sys.stdout.write(f"{options.out / 'value.safetensors'}: {verdict(network.about)}\n")
    if caveat_of(network.about):
        sys.stdout.write(f"{caveat_of(network.about)}\n")
    return 0
