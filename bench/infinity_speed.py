"""Plain sampling against the published Infinity code: seconds and memory, same weights, same machine, float32.

    INFINITY_PATH=CHECKOUT python -m testtime.bench.infinity_speed [--batches 1 8] [--out FILE]

Needs a checkout of github.com/FoundationVision/Infinity, and this repository's own checkout (its tests know how to run
the published code without a GPU). Both sample the same prompts with guidance up to the last code map; decoding, which
is the same network, is left out. Rounds of the two alternate, and the ratio of each pair counts: a slow moment of the
machine then hits both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..models.infinity.config import RELEASED, InfinityConfig, config_from_shapes
from ..models.infinity.loading import assign, convert_transformer
from ..models.infinity.packed import pack
from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.sampling import ScaleSampling
from ..models.infinity.scale_state import Decoder
from ..models.infinity.schedules import ScaleSchedule, schedule_for
from ..models.infinity.text import TextFeatures
from ..models.infinity.transformer import Infinity
from ..samplers.processes.streams import Streams
from ..samplers.protocols import SearchError
from .provenance import RESULTS, module_of_tests, origin, write_json

CFG, TAU, TOP_P = 3.0, 0.5, 0.97
TOKENS = 20  # of each prompt
CASES = {
    # The embedded model's sizes with the published pooling, which has a head per 128 text channels.
    "embedded sizes": InfinityConfig(6, 192, 4, bits=16, text_width=192, text_length=32, pool_heads=1, hidden=768),
    "125M": RELEASED["layer12"],
}


def reference_module():
    """``tests/unit/infinity_reference.py``. SearchError where the published code is not named."""
    module = module_of_tests("unit/infinity_reference.py")
    if not module.PATH:
        raise SearchError("INFINITY_PATH is not set: name a checkout of github.com/FoundationVision/Infinity")
    return module


def prompts(config: InfinityConfig, batch: int) -> list[torch.Tensor]:
    """Random text features ``[TOKENS, Ct]`` per image."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(TOKENS, config.text_width, generator=generator) for _ in range(batch)]


class Published:
    """The published sampler."""

    def __init__(self, config: InfinityConfig, batch: int, schedule: ScaleSchedule, reference):
        self._open = reference.reference_modules()
        infinity, vae = self._open.__enter__()
        self.model = reference.build(infinity, config, 2)
        reference.redraw(self.model, seed=1)
        d = config.code_dim
        self.auto = vae.vae_model(
            None, "dynamic", d, 2**d, patch_size=16, encoder_ch_mult=[1, 1, 1, 1, 1], decoder_ch_mult=[1, 1, 1, 1, 1]
        )  # fmt: skip
        self.auto.decode = lambda total: torch.zeros(len(total), 3, 1, 1)
        self.schedule, self.prompts = schedule, prompts(config, batch)

    @torch.no_grad()
    def sample(self) -> None:
        """One batch."""
        lengths = [TOKENS] * len(self.prompts)
        cumulative = torch.arange(len(self.prompts) + 1, dtype=torch.int32) * TOKENS
        self.model.rng = torch.Generator()
        self.model.autoregressive_infer_cfg(
            vae=self.auto,
            scale_schedule=[(1, h, w) for h, w in self.schedule.grids],
            label_B_or_BLT=(torch.cat(self.prompts), lengths, cumulative, TOKENS),
            B=len(self.prompts),
            g_seed=7,
            cfg_list=[CFG] * len(self.schedule),
            tau_list=[TAU] * len(self.schedule),
            top_k=900,
            top_p=TOP_P,
            returns_vemb=1,
            cfg_insertion_layer=[0],
            vae_type=1,
            ret_img=True,
            inference_mode=True,
        )

    def close(self) -> None:
        """Take the stand-ins for its dependencies away again."""
        self._open.__exit__(None, None, None)


class Ours:
    """``ScalewiseProcess`` over the same weights."""

    def __init__(self, config: InfinityConfig, batch: int, schedule: ScaleSchedule, state: dict | None = None):
        self.model = Infinity(config).eval().requires_grad_(False)
        if state is not None:
            converted, unknown = convert_transformer(state, config)
            assign(self.model, converted, "published", unknown)
            self.model.requires_grad_(False)
        pack(self.model)
        self.features, self.schedule, self.batch = TextFeatures.stack(prompts(config, batch)), schedule, batch

    @torch.no_grad()
    def sample(self) -> None:
        """One batch, prompts prepared anew as the published code does."""
        process = ScalewiseProcess(
            self.model,
            self.model.prompt(self.features),
            self.schedule,
            Decoder(lambda total: total),
            self.batch,
            Streams(7),
            sampling=ScaleSampling(CFG, TAU, TOP_P),
        )
        state = process.start(1)
        for _ in range(process.steps):
            state, _ = process.advance(state)


def seconds_of(sampler) -> float:
    """Wall-clock seconds of one batch."""
    started = time.perf_counter()
    sampler.sample()
    return time.perf_counter() - started


def compare(config: InfinityConfig, batch: int, rounds: int) -> dict:
    """Seconds of both, alternating; the ratio is the median of the rounds' ratios."""
    schedule = schedule_for(1.0, "0.06M")
    published = Published(config, batch, schedule, reference_module())
    try:
        state = {name: value.detach() for name, value in published.model.state_dict().items()}
        ours = Ours(config_from_shapes({n: tuple(v.shape) for n, v in state.items()}), batch, schedule, state)
        seconds_of(published), seconds_of(ours)
        pairs = [(seconds_of(published), seconds_of(ours)) for _ in range(rounds)]
    finally:
        published.close()
    return {
        "published_seconds": round(statistics.median(theirs for theirs, _ in pairs), 3),
        "our_seconds": round(statistics.median(mine for _, mine in pairs), 3),
        "times_faster": round(statistics.median(theirs / mine for theirs, mine in pairs), 3),
    }


def _peak(which: str, name: str, batch: int, answer) -> None:
    """In a process of its own: bytes that its memory grows by, at the most, while it samples."""
    schedule, config = schedule_for(1.0, "0.06M"), CASES[name]
    torch.set_num_threads(1)
    sampler: Ours | Published
    if which == "ours":
        sampler = Ours(config, batch, schedule)
    else:
        sampler = Published(config, batch, schedule, reference_module())
    sampler.sample()  # what is allocated once and kept does not count
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    sampler.sample()
    answer.put(_status("VmHWM") - before)


def _status(field: str) -> int:
    """A size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_mib(which: str, name: str, batch: int) -> float | None:
    """Growth of a fresh process's peak memory while it samples one batch, in MiB; None where the system cannot say."""
    if not sys.platform.startswith("linux"):
        return None
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak, args=(which, name, batch, answer))
    process.start()
    value = answer.get()
    process.join()
    return round(value / 2**20, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="testtime bench infinity_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "infinity-speed.json")
    options = parser.parse_args(arguments)
    reference_module()
    cases = {}
    for name in options.cases:
        for batch in options.batches:
            entry = compare(CASES[name], batch, options.rounds)
            entry |= {f"{which}_mib": peak_mib(which, name, batch) for which in ("published", "ours")}
            cases[f"{name}, batch {batch}"] = entry
            print(f"{name}, batch {batch}: {entry}", flush=True)
    reference = "github.com/FoundationVision/Infinity, float32, 521 tokens, guidance 3, without decoding"
    write_json(options.out, origin(reference=reference) | {"python": platform.python_version(), "cases": cases})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
