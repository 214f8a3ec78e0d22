"""One search over workers: the same bits for any number of them, whoever dies and whenever."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from testtime.samplers.methods import DAS, RBF, SMC, SVDD, TTSVAR, BestOfN, FKSteering, TTGen
from testtime.samplers.methods.tts_var import PopulationPlan
from testtime.samplers.plan import Plan
from testtime.samplers.protocols import Rewrite, SearchError, Verifier
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha
from testtime.samplers.workers import WorkersLost
from testtime.scale.recipes import Recipe, digest_of
from testtime.scale.rows.local import InlineLink, LocalWorkers
from testtime.scale.rows.server import Server, small
from testtime.scale.rows.share import GUIDED, RowWorkers
from testtime.scale.rows.wire import Message, pack, unpack
from testtime.verifiers.embedded import ShapesFeatures

pytestmark = pytest.mark.slow

PROMPTS = ["a red star", "two blue rings"]
ALPHA = Alpha(0.5, "relative")
SHORT = {"steps": 4, "size": 64}
KINDS = {"diffusion": {**SHORT}, "flow": {**SHORT, "model": "flow"}, "next-scale": {"model": "var"}}
METHODS = {
    "diffusion": [BestOfN(3), SVDD(3), SMC(4, alpha=ALPHA, ess_threshold=1.5), FKSteering(4, alpha=ALPHA, every=2),
                  DAS(2, alpha=ALPHA, start=0.5)],
    "flow": [SMC(3, alpha=ALPHA), RBF(budget=20, chains=2, initial=3), SVDD(3)],
    "next-scale": [BestOfN(3), SMC(4, alpha=ALPHA, ess_threshold=1.5), FKSteering(4, alpha=ALPHA, every=2),
                   TTSVAR(1, plan=PopulationPlan(4, {3: 3}, {4: 3, 6: 2}), extractor=ShapesFeatures())],
}  # fmt: skip
CASES = [(kind, method) for kind, methods in METHODS.items() for method in methods]
every_case = pytest.mark.parametrize(("kind", "method"), CASES, ids=[f"{kind}-{method.name}" for kind, method in CASES])


def recipe(kind: str, **more) -> Recipe:
    return Recipe("shapes", {**KINDS[kind], **more})


def search(kind, method, workers, prompts=PROMPTS, **options):
    made = recipe(kind).make(prompts, 3)
    plan = Plan(method, workers=workers)
    return run_search(plan, made.process, made.verifier, prompts, held_out=made.held_out, **options)


def inline(kind, count, rows=2, dies=lambda worker, number: False, **more):
    """Workers in this process; ``dies(worker, number of its question)``."""
    links = [InlineLink(f"w{k}", Server, lambda number, k=k: dies(k, number)) for k in range(count)]
    return RowWorkers(links, recipe(kind, **more), rows)


def same(one, two):
    """Identical bits, scores, tree and costs."""
    assert torch.equal(one.finalists, two.finalists) and torch.equal(one.latents, two.latents)
    assert torch.equal(one.scores, two.scores) and one.particles == two.particles
    assert one.held_out is None or torch.equal(one.held_out, two.held_out)
    for mine, yours in zip(one.trace.records, two.trace.records, strict=True):
        assert replace(mine, seconds=0) == replace(yours, seconds=0)
    costs = [result.ledger.to_dict() for result in (one, two)]
    for cost in costs:
        for name in ("seconds", "total_seconds"):
            cost.pop(name)
    assert costs[0] == costs[1]


@every_case
def test_any_number_of_workers_gives_the_same_search(kind, method):
    results = [search(kind, method, inline(kind, count)) for count in (1, 2, 4)]
    for result in results:
        assert result.status == "complete"
        assert (GUIDED in result.warnings) == (method.name == "das")
    same(results[0], results[1])
    same(results[0], results[2])
    books = results[2].trace.meta["devices"]
    assert books["rows_per_call"] == 2 and len(books["rows"]) > 1


@pytest.mark.parametrize("method", METHODS["diffusion"][:4], ids=lambda method: method.name)
def test_it_is_what_one_process_with_the_same_rows_per_call_finds(method):
    made = recipe("diffusion", max_batch=2).make(PROMPTS, 3)
    alone = run_search(method, made.process, made.verifier, PROMPTS, held_out=made.held_out)
    shared = search("diffusion", method, inline("diffusion", 3))
    assert torch.equal(alone.finalists, shared.finalists) and torch.equal(alone.scores, shared.scores)
    assert alone.ledger.nfe == shared.ledger.nfe and alone.ledger.decodes == shared.ledger.decodes
    assert steered(alone) == steered(shared)


def steered(result):
    """Records without the held-out scores, which the driver gives all at once."""
    return [
        [{key: value for key, value in entry.items() if key != "held_out"} for entry in record.particles]
        for record in result.trace.records
    ]


def test_one_image_of_a_next_scale_model_is_what_one_process_finds():
    made = recipe("next-scale").make(PROMPTS[:1], 3)
    method = METHODS["next-scale"][3]
    alone = run_search(method, made.process, made.verifier, PROMPTS[:1])
    shared = search("next-scale", method, inline("next-scale", 2, rows=8), PROMPTS[:1])
    assert torch.equal(alone.finalists, shared.finalists)
    assert steered(alone) == steered(shared)
    assert math.isclose(alone.ledger.flops, shared.ledger.flops)


@pytest.mark.slow
@every_case
def test_a_worker_that_dies_changes_nothing(kind, method):
    whole = search(kind, method, inline(kind, 2))
    counting = inline(kind, 1)
    search(kind, method, counting)
    total = counting.pool.links[0].asked
    for at in (2, total // 2, total - 1):
        one = search(kind, method, inline(kind, 1, dies=lambda worker, number, at=at: number == at))
        same(whole, one)
        assert one.trace.meta["devices"]["restarts"] == {"w0": 1}
    both = search(kind, method, inline(kind, 2, dies=lambda worker, number: number == 3))
    same(whole, both)


def test_a_worker_that_is_gone_for_good_leaves_its_rows_to_the_others():
    whole = search("diffusion", SMC(4), inline("diffusion", 2))
    alone = search("diffusion", SMC(4), inline("diffusion", 2, dies=lambda worker, number: worker == 1 and number > 4))
    same(whole, alone)


def test_a_call_that_ends_every_worker_ends_the_search_with_the_best_so_far():
    class Poisoned(InlineLink):
        """Dies of every look and prediction after the sixth question."""

        def ask(self, data):
            if self.asked >= 6 and unpack(data).kind != "open":
                self._server = None
            return super().ask(data)

    links = [Poisoned(f"w{k}", Server) for k in range(2)]
    result = search("diffusion", SMC(4), RowWorkers(links, recipe("diffusion"), 4))
    assert result.status == "interrupted"
    assert any("ended 3 workers one after the other; returning the best so far" in text for text in result.warnings)
    assert result.latents.shape[0] == 2
    with pytest.raises(WorkersLost, match="no worker starts"):
        search("diffusion", BestOfN(2), inline("diffusion", 2, dies=lambda worker, number: True))


def test_budgets_refuse_as_in_one_process():
    for method in (BestOfN(4), SMC(4)):
        made = recipe("diffusion").make(PROMPTS, 3)
        alone = run_search(method, made.process, made.verifier, PROMPTS, max_nfe=40)
        shared = search("diffusion", method, inline("diffusion", 2), max_nfe=40)
        assert alone.status == shared.status == "budget"
        assert len(alone.trace.records) == len(shared.trace.records)


class Fixed:
    name = "fixed"

    def rewrite(self, requests):
        return [Rewrite(("a red star and a ring", "a big red star")) for _ in requests]


def test_prompts_of_particles_travel_with_their_rows():
    method = TTGen(Fixed(), 2, 2)
    results = [search("diffusion", method, inline("diffusion", count)) for count in (1, 3)]
    same(*results)
    prompts = {entry["prompt"] for record in results[0].trace.records for entry in record.particles}
    assert len(prompts) > 1
    made = recipe("diffusion").make(PROMPTS, 3)
    alone = run_search(method, made.process, made.verifier, PROMPTS)
    assert torch.allclose(alone.latents, results[0].latents, atol=1e-3)


class Comparing(Verifier):
    """Ranks the images of a call, so it must be shown all at once."""

    name, relative = "comparing", True

    def score(self, images, prompts, context=None):
        return images.mean((1, 2, 3)).double().argsort().argsort().double()


def test_a_judge_that_compares_is_shown_all_images_by_the_driver():
    found = []
    for workers in (None, inline("diffusion", 2)):
        made = recipe("diffusion", max_batch=2).make(PROMPTS, 3)
        if workers is not None:
            made = replace(made, verifier=Comparing())
            with pytest.raises(
                SearchError, match="its verifier is 'shapes_preference', that of the driver 'comparing'"
            ):
                run_search(Plan(SMC(4), workers=workers), made.process, made.verifier, PROMPTS)
        links = [InlineLink(f"w{k}", lambda: Server(comparing)) for k in range(2)]
        plan = Plan(SMC(4), workers=None if workers is None else RowWorkers(links, recipe("diffusion"), 2))
        found.append(run_search(plan, made.process, Comparing(), PROMPTS))
    assert torch.equal(found[0].scores, found[1].scores)


def comparing(prompts, seed):
    return replace(recipe("diffusion").make(prompts, seed), verifier=Comparing())


# ---------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("kind", ["diffusion", "next-scale"])
def test_processes_of_which_one_is_killed_at_the_start_in_the_middle_and_before_the_end(kind):
    method = SMC(4, alpha=ALPHA, ess_threshold=1.5)
    expected = search(kind, method, inline(kind, 2))
    steps = expected.trace.records[-1].steps
    with LocalWorkers(recipe(kind), 2, 2) as workers:
        same(expected, search(kind, method, workers))
        for at in (1, steps // 2, steps - 1):

            def kill(record, state, images, at=at):
                if record.step == at and record.phase == "search":
                    os.kill(workers.pool.links[0].process.pid, signal.SIGKILL)

            result = search(kind, method, workers, listener=kill)
            same(expected, result)
            assert result.trace.meta["devices"]["restarts"] == {"worker-0": 1}
        left = [link.process.pid for link in workers.pool.links]
    time.sleep(0.1)
    for process in left:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_bytes_on_the_way_of_a_step_are_those_of_the_rows():
    """``n x (2 for predict, + 1 per look) x latent bytes``, and small pictures."""
    result = search("diffusion", SMC(8), inline("diffusion", 2, rows=4))
    books = result.trace.meta["devices"]
    latent = 4 * 8 * 8 * 4
    rows = result.ledger.nfe // 2
    looked = result.ledger.verifier_images
    expected = rows * 2 * latent + looked * (latent + 64 * 64 * 3)
    held_out = len(result.finalists) * (latent + 64 * 64 * 3 * 4)
    assert expected + held_out < books["bytes"] < 1.15 * (expected + held_out)


# ---------------------------------------------------------------------------------------------- who is let in


def changed(key, value):
    class Other(Server):
        def answer(self, asked):
            told = super().answer(asked)
            if asked.kind != "open":
                return told
            return Message(
                told.kind, {**told.values, "identity": {**told.values["identity"], key: value}}, told.tensors
            )

    return Other


@pytest.mark.parametrize(
    ("key", "value"), [("pack", "0.0.9"), ("torch", "2.3.0"), ("weights", "0123"), ("verifier", None)]
)
@pytest.mark.parametrize("which", [0, 1])
def test_workers_of_another_version_or_other_weights_are_refused(key, value, which):
    kinds = [Server, Server]
    kinds[which] = changed(key, value)
    workers = RowWorkers([InlineLink(f"w{k}", kind) for k, kind in enumerate(kinds)], recipe("diffusion"), 2)
    with pytest.raises(SearchError, match=rf"w\d is refused: its {key} is "):
        search("diffusion", BestOfN(2), workers)


def test_other_weights_of_the_same_files_are_found_by_a_prediction():
    def other(prompts, seed):
        made = recipe("diffusion").make(prompts, seed)
        made.process.denoise.cfg = 2.51  # as another patch of the same files would show
        return made

    workers = RowWorkers([InlineLink("w0", Server), InlineLink("w1", lambda: Server(other))], recipe("diffusion"), 2)
    with pytest.raises(SearchError, match=r"w\d is refused: its network predicts something else of the same noise"):
        search("diffusion", BestOfN(2), workers)


def test_other_devices_are_told_of():
    links = [InlineLink("w0", Server), InlineLink("w1", changed("device", "NVIDIA H100"))]
    result = search("diffusion", BestOfN(2), RowWorkers(links, recipe("diffusion"), 2))
    assert any("different devices (NVIDIA H100, cpu)" in text for text in result.warnings)


def test_a_worker_without_the_model_files_says_so(tmp_path):
    workers = RowWorkers([InlineLink("w0", Server)], Recipe("diffusers", {"folder": str(tmp_path / "none")}), 2)
    made = recipe("diffusion").make(PROMPTS, 3)
    with pytest.raises(SearchError, match=r"none is no diffusers folder: it has no model_index.json"):
        run_search(Plan(BestOfN(2), workers=workers), made.process, made.verifier, PROMPTS)
    with pytest.raises(SearchError, match=r"model file .*none.safetensors cannot be read on this worker"):
        digest_of([tmp_path / "none.safetensors"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Recipe("sd15"), "factory is 'sd15': choose shapes, diffusers, or name a function"),
        (Recipe("no.such.module:x"), "cannot be imported on this worker"),
        (Recipe("shapes", {"stepps": 3}), "shapes has no setting 'stepps'"),
    ],
)
def test_wrong_recipes(given, words):
    with pytest.raises(SearchError, match=words):
        given.make(PROMPTS)


def test_wrong_counts_and_processes():
    with pytest.raises(SearchError, match="count is 0"):
        LocalWorkers(recipe("diffusion"), 0)
    with pytest.raises(SearchError, match="rows_per_call is -1"):
        LocalWorkers(recipe("diffusion"), 1, -1)


# ---------------------------------------------------------------------------------------------- messages


def test_messages_keep_types_and_bits():
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.tensor([True, False]),
        "c": torch.arange(4),
        "d": torch.rand(2).double(),
    }
    told = unpack(pack(Message("look", {"p": ["ä", None], "x": 0.1}, tensors)))
    assert told.kind == "look" and told.values == {"p": ["ä", None], "x": 0.1}
    for name, tensor in tensors.items():
        assert told.tensors[name].dtype == tensor.dtype and torch.equal(told.tensors[name], tensor)
    for wrong in (b"", b"x" * 40, pack(Message("a"))[:-1]):
        with pytest.raises(ValueError, match="not a message"):
            unpack(wrong)


def test_small_pictures():
    assert small(torch.rand(2, 1024, 768, 3)).shape == (2, 256, 192, 3)
    assert small(torch.full((1, 8, 8, 3), torch.nan)).max() == 0
