"""A process that is killed with -9 in the middle of a search, once per moment: ``python killed.py FOLDER [MOMENT ..]``.

It loads the embedded model once and forks a child per moment. A child searches with a journal in ``FOLDER/MOMENT`` and
ends itself with SIGKILL, which nothing can catch, at exactly that moment.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
from testtime.samplers.methods import SVDD
from testtime.samplers.run import journal as journal_module
from testtime.samplers.run.journal import Journal
from testtime.samplers.run.search import run_search
from testtime.verifiers.registry import create

PROMPTS = ["a red circle", "a blue square"]
STEPS = 8
SEARCH = SVDD(3)
MOMENTS = {
    "before the first step": 0,
    "in a model call": 3,
    "in the middle of a line": 4,
    "in the middle of the latents": 6,
    "after the last step": STEPS,
}
"""Moment -> steps that must be recoverable."""


def process():
    """The embedded diffusion model, small."""
    return shapes_process(PROMPTS, SamplingSettings(steps=STEPS, seed=7, size=(64, 64)))


def judge():
    """An embedded verifier."""
    return create("shapes_clip")


def die() -> None:
    """End this process at once, as ``kill -9`` and the kernel's out-of-memory killer do."""
    os.kill(os.getpid(), signal.SIGKILL)


def search(folder: Path, moment: str) -> None:
    """Run the search that does not come to its end."""
    searched, steps = process(), []

    def listener(record, state, images):
        steps.append(record.step)

    inner = searched.denoise

    def denoise(x, sigma, group, prompts=None):
        if moment == "before the first step" or (moment == "in a model call" and len(steps) == 3):
            die()
        return inner(x, sigma, group, prompts)

    denoise.nfe_per_call, denoise.can_encode, denoise.prompt_embedding = inner.nfe_per_call, False, None
    searched.denoise = denoise
    journal = Journal(folder)
    journal_module.SHARE = 1e9  # latents at every step, however small the model is
    if moment == "in the middle of a line":
        whole = journal._line

        def half_a_line(body):
            if body.get("record", {}).get("step") == 4:
                journal._file.write('{"record": {"step": 4, "particles": [{"id": 1')
                journal._file.flush()
                die()
            whole(body)

        journal._line = half_a_line
    if moment == "in the middle of the latents":
        replace = os.replace

        def half_a_file(source, target):
            if len(steps) == 6 and str(target).endswith(journal_module.LATENTS):
                Path(source).write_bytes(Path(source).read_bytes()[:100])
                die()
            replace(source, target)

        os.replace = half_a_file
    run_search(SEARCH, searched, judge(), PROMPTS, listener=listener, journal=journal)
    die()  # a save comes after the search: it was not reached


def main(folder: Path, moments: list[str]) -> int:
    """Fork a child per moment, one after the other; 0 where each of them was killed."""
    torch.set_num_threads(1)
    process(), judge()  # weights are read once
    for moment in moments:
        child = os.fork()
        if child == 0:
            try:
                search(folder / moment, moment)
            finally:
                os._exit(1)  # it should have been killed
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or list(MOMENTS)))
