"""What the search itself costs: time beside the networks' calls, and memory beside one chunk's.

    python -m testtime.bench.overhead [--particles 16] [--chunk 4] [--out bench/results/overhead.json]

Time: seconds of the whole search over the seconds inside denoiser, decoder and verifier, both of the same run.
Memory: the largest total of live tensors during a search that runs in chunks, over that of the same search with no more
particles than one chunk holds. The rest is what a population needs: its states and the previews to be compared.
"""

from __future__ import annotations

import argparse
import logging
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..samplers.method import SearchMethod
from ..samplers.methods import RBF, BeamSearch
from ..samplers.run.search import run_search
from ..shapes_world.suite import suite
from ..verifiers.registry import create
from .presets import search_for
from .provenance import RESULTS, origin, write_json
from .suite import SUITE_SEED

log = logging.getLogger("testtime")
OUT = RESULTS / "overhead.json"
DIFFUSION = ("best_of_n", "importance_sampling", "svdd", "smc", "das", "fk")
STEPS = 20


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensor storages made inside the context: ``now`` and the ``peak`` so far."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation and count the storages of what it returns."""
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor):
                self._count(item.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def searches(particles: int) -> dict[str, tuple[str, SearchMethod]]:
    """Model and search by method name, each with ``particles`` particles (or that many times plain sampling)."""
    found = {name: ("diffusion", search_for(name, particles)) for name in DIFFUSION}
    found["rbf"] = ("flow", RBF(budget=particles * STEPS, chains=1, initial=particles))
    found["beam"] = ("flow", BeamSearch(beams=particles // 2, children=2))
    return found


def run(model: str, search: SearchMethod, verifier, chunk: int | None) -> object:
    """One prompt's search."""
    prompt = suite(1, SUITE_SEED)[1].text
    process = shapes_process([prompt], SamplingSettings(model, STEPS, max_batch=chunk))
    return run_search(search, process, verifier, [prompt])


def peak(model: str, search: SearchMethod, verifier, chunk: int) -> int:
    """Largest total of live tensors during a search, in bytes."""
    with LiveTensors() as live:
        run(model, search, verifier, chunk)
    return live.peak


def measure(particles: int, chunk: int, repeats: int) -> Iterator[tuple[str, dict]]:
    """(method, figures), method by method."""
    verifier = create("shapes_preference")
    one_chunk = searches(chunk)
    for name, (model, search) in searches(particles).items():
        run(model, search, verifier, chunk)  # first calls pick and prepare kernels
        ratios, seconds = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            result = run(model, search, verifier, None)
            seconds.append(time.perf_counter() - started)
            ratios.append(result.ledger.overhead())
        row = {"model": model, "seconds": round(min(seconds), 3)}
        row["overhead"] = round(sorted(ratios)[len(ratios) // 2], 4)
        needed = peak(model, one_chunk[name][1], verifier, chunk)
        row["memory_over_chunk"] = round(peak(model, search, verifier, chunk) / needed, 4)
        log.info("%-20s overhead %.4f  memory %.3f", name, row["overhead"], row["memory_over_chunk"])
        yield name, row


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="testtime bench overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=4, help="particles per call in the memory measurement")
    parser.add_argument("--repeats", type=int, default=3, help="runs per method; the median ratio is kept")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = {"particles": options.particles, "chunk": options.chunk, "steps": STEPS, "repeats": options.repeats}
    body = origin(suite="overhead") | {"settings": settings, "cases": {}}
    for name, row in measure(options.particles, options.chunk, options.repeats):
        body["cases"][name] = row
        write_json(options.out, body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
