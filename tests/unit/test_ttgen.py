"""TTGen on a closed-form model whose data depend on the prompt: choices, costs, rounds, fall-backs, combinations."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.after.replay import replay_of
from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering, TTGen
from testtime.samplers.plan import Plan
from testtime.samplers.processes.denoise import Denoised
from testtime.samplers.processes.kernel import VE
from testtime.samplers.processes.sharing import SharedRows
from testtime.samplers.protocols import Interrupted, Rewrite, SearchError
from testtime.samplers.rewriting import Rewriting, Rounds
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace

from . import oracles

STEPS = 8
TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1), "target")


class Prompted:
    """``E[x0 | x]`` of N(m, 0.25) data, where a prompt is its mean m: "m=0.5"; the original means 0."""

    nfe_per_call = 1
    can_encode = True
    interpolant = VE()

    def __init__(self):
        self.known, self.calls, self.rows = {}, 0, 0

    def encode(self, texts):
        for text in texts:
            assert text not in self.known, "encoded twice"
            self.known[text] = float(text.removeprefix("m="))

    def __call__(self, x, sigma, group, prompts=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        means = torch.tensor([0.0 if text is None else self.known[text] for text in prompts or [None] * len(x)])
        pull = 0.25 / (0.25 + sigma * sigma)
        return Denoised(means[:, None].to(x) + pull * (x - means[:, None].to(x)), len(x))

    def prompt_embedding(self, group):
        return None


class Canned:
    """A rewriter that always proposes the same, or does what ``action(call number)`` says."""

    name = "canned"

    def __init__(self, *prompts, action=None):
        self.prompts, self.action, self.requests = prompts, action, []

    def rewrite(self, requests):
        answers = []
        for request in requests:
            self.requests.append(request)
            answer = self.action(len(self.requests)) if self.action else None
            answers.append(answer or Rewrite(self.prompts[: request.count], ("closeness",)))
        return answers


NEAR, FAR = "m=1.0", "m=-2.0"


def prompted(steps=STEPS, groups=2, seed=3, eta=0.0):
    made = oracles.process(Prompted(), steps, groups, seed, eta=eta, dim=3)
    made.__class__ = oracles.KeyedProcess
    made.streams = oracles.Streams(seed)
    return made


def run(search, verifier=TARGET, process=None, **options):
    process = process or prompted()
    return run_search(search, process, verifier, ["p"] * process.groups, **options)


def steps_of(result):
    return [record for record in result.trace.records if record.phase == "search"]


def test_best_is_at_least_direct_is_at_least_worst():
    rewriter = Canned(NEAR, FAR)
    scores = {}
    for choice in ("best", "worst"):
        result = run(TTGen(rewriter, 2, injection_step=STEPS, keep_winner=False, choice=choice))
        for record in steps_of(result)[:-1]:
            for group in (0, 1):
                mine = [e for e in record.particles if e["group"] == group]
                assert len(mine) == 3 and [e["prompt"] for e in mine] == [None, NEAR, FAR]
                (won,) = [e for e in mine if e["selected"]]
                assert won["score"] == (max if choice == "best" else min)(e["score"] for e in mine)
        scores[choice] = result.scores
    direct = run(BestOfN(1)).scores
    assert (scores["best"] > direct).all() and (direct > scores["worst"]).all()


def test_without_rewrites_it_is_plain_sampling():
    plain = run(BestOfN(1))
    for rewriter, injection in ((Canned(action=lambda _: Rewrite(aligned=True)), STEPS), (Canned(NEAR), 0)):
        result = run(TTGen(rewriter, 2, injection_step=injection))
        assert torch.equal(result.latents, plain.latents)
        assert result.ledger.nfe == plain.ledger.nfe
    assert torch.equal(run(TTGen(Canned(NEAR), 1, injection_step=0), process=prompted(eta=1.0)).latents,
                       run(BestOfN(1), process=prompted(eta=1.0)).latents)  # fmt: skip


@pytest.mark.parametrize(("injection", "interval", "start"), [(5, 1, 1), (5, 2, 1), (6, 3, 2), (8, 5, 1)])
def test_costs_are_the_formulas(injection, interval, start):
    rewriter, m = Canned(NEAR, FAR, "m=0.3"), 3
    search = TTGen(rewriter, m, injection, start, interval, keep_winner=False)
    process = prompted(groups=1)
    result = run(search, process=process)
    rounds = injection - start + 1
    assert result.ledger.nfe == STEPS + rounds * m == process.denoise.rows
    assert result.ledger.rewriter_calls == math.ceil(rounds / interval) == len(rewriter.requests)
    assert result.ledger.decodes == rounds * (m + 1) + 1 == result.ledger.verifier_images
    assert [r.step for r in rewriter.requests] == list(range(start, injection + 1, interval))
    # One call for the original and one for all rewrites, however many trajectories there are.
    assert process.denoise.calls == STEPS + rounds


def test_candidates_of_all_trajectories_and_images_share_one_call():
    process = prompted(groups=2)
    run(TTGen(Canned(NEAR, FAR), 2, injection_step=3, particles=2), process=process)
    assert process.denoise.calls == STEPS + 3
    assert process.denoise.rows == 4 * (STEPS + 3 * 2)


def test_trajectories_are_what_they_would_be_alone():
    several = run(TTGen(Canned(NEAR, FAR), 2, injection_step=4, particles=3))
    lone = run(TTGen(Canned(NEAR, FAR), 2, injection_step=4))
    first = next(e for e in several.trace.records[-1].particles if e["slot"] == 0 and e["group"] == 0)
    row = several.particles.index(first["id"])
    assert torch.allclose(several.finalists[row], lone.latents[0])
    assert len(several.finalists) == 6 and (several.scores[:1] >= several.scores[1:3]).all()


def test_noise_does_not_disturb_the_choice_and_repeats():
    results = [run(TTGen(Canned(NEAR, FAR), 2, 5), process=prompted(eta=1.0)) for _ in range(2)]
    assert torch.equal(results[0].latents, results[1].latents)
    assert results[0].trace.to_json().split('"seconds"')[0] == results[1].trace.to_json().split('"seconds"')[0]
    assert (results[0].scores > run(BestOfN(1), process=prompted(eta=1.0)).scores).all()


def test_rewriter_sees_preview_prompt_history_and_progress():
    rewriter = Canned(NEAR, FAR)
    result = run(TTGen(rewriter, 2, injection_step=3, keep_winner=False), process=prompted(groups=1))
    first, second, third = rewriter.requests
    assert (first.prompt, first.count, first.step, first.steps, first.history) == ("p", 2, 1, STEPS, ())
    assert [(a.prompt, a.step) for a in second.history] == [(NEAR, 1), (FAR, 1)]
    tried = {e["prompt"]: e["score"] for e in steps_of(result)[0].particles}
    assert [a.score for a in second.history] == [tried[NEAR], tried[FAR]]
    assert len(third.history) == 4 and len({r.seed for r in rewriter.requests}) == 3


def test_trace_tells_what_was_missing_and_what_was_tried():
    result = run(TTGen(Canned(NEAR, FAR), 2, injection_step=2))
    again = Trace.from_json(result.trace.to_json())
    assert again.meta["rewriter"] == "canned"
    first = again.records[0]
    assert first.rewrites[0] == {
        "group": 0, "slot": 0, "missing": ["closeness"], "prompts": [NEAR, FAR], "aligned": False, "failed": False,
        "note": "", "calls": 1,
    }  # fmt: skip
    assert [entry["group"] for entry in first.rewrites] == [0, 1]
    assert not again.records[3].rewrites
    assert all(e["prompt"] is None for e in again.records[-1].particles)


def test_winner_competes_again_in_the_place_of_a_new_prompt():
    rounds = iter([("m=0.9", "m=0.1"), ("m=0.2", "m=0.3"), ("m=0.4", "m=1.0")])
    rewriter = Canned(action=lambda _: Rewrite(next(rounds)))
    result = run(TTGen(rewriter, 2, injection_step=3), process=prompted(groups=1))
    tried = [[e["prompt"] for e in record.particles] for record in steps_of(result)[:3]]
    assert tried == [[None, "m=0.9", "m=0.1"], [None, "m=0.9", "m=0.2"], [None, "m=0.9", "m=0.4"]]


def test_without_the_original_only_rewrites_compete():
    result = run(TTGen(Canned(NEAR, FAR), 2, 2, keep_original=False, keep_winner=False))
    assert [e["prompt"] for e in steps_of(result)[0].particles] == [NEAR, FAR] * 2
    assert [e["prompt"] for e in steps_of(result)[2].particles] == [None] * 2


def test_last_best_prompt_may_go_on_after_injection():
    result = run(TTGen(Canned(NEAR), 1, 2, after="last_best"))
    assert [e["prompt"] for e in steps_of(result)[-1].particles] == [NEAR] * 2
    assert result.ledger.nfe == 2 * (STEPS + 2)
    assert (result.scores > run(TTGen(Canned(NEAR), 1, 2)).scores).all()


@pytest.mark.parametrize("kind", ["aligned", "failed"])
def test_patience(kind):
    answer = Rewrite(aligned=True) if kind == "aligned" else Rewrite(failed=True, note="down", calls=3)
    rewriter = Canned(action=lambda _: answer)
    result = run(TTGen(rewriter, 2, STEPS, patience=2), process=prompted(groups=1))
    assert len(rewriter.requests) == 2
    assert result.ledger.rewriter_calls == 2 * answer.calls
    assert result.ledger.rewriter_failures == (2 if kind == "failed" else 0)
    assert bool(result.warnings) == (kind == "failed")
    assert torch.equal(result.latents, run(BestOfN(1), process=prompted(groups=1)).latents)


def test_a_failed_round_goes_on_with_the_last_prompts():
    rewriter = Canned(NEAR, action=lambda n: Rewrite(failed=True, note="down") if n == 2 else None)
    result = run(TTGen(rewriter, 1, 3), process=prompted(groups=1))
    assert [len(record.particles) for record in steps_of(result)[:4]] == [2, 2, 2, 1]
    assert "going on with its last prompts" in result.warnings[0]


def test_a_greedy_rewriter_is_held_to_m():
    rewriter = Canned(action=lambda _: Rewrite((*tuple(f"m={k / 100}" for k in range(500)), "m=0.0")))
    result = run(TTGen(rewriter, 3, 1), process=prompted(groups=1))
    assert len(steps_of(result)[0].particles) == 4


def test_prompts_whose_previews_cannot_be_scored_do_not_win():
    blind = oracles.FunctionVerifier(lambda x: torch.where(x.mean(1) > 0.5, math.nan, x.mean(1)), "blind")
    for choice in ("best", "worst"):
        result = run(TTGen(Canned("m=3.0"), 1, STEPS, choice=choice), blind)
        for record in steps_of(result):
            for entry in record.particles:
                alone = sum(e["group"] == entry["group"] for e in record.particles) == 1
                assert alone or entry["score"] is not None or not entry["selected"]


@pytest.mark.parametrize("budget", range(1, 30, 4))
def test_budget_ends_it_with_the_best_so_far(budget):
    if budget < 2:
        with pytest.raises(SearchError, match="does not pay for the first step"):
            run(TTGen(Canned(NEAR, FAR), 2, 4), max_nfe=budget)
        return
    result = run(TTGen(Canned(NEAR, FAR), 2, 4), max_nfe=budget)
    assert result.ledger.nfe <= budget and torch.isfinite(result.latents).all()
    assert result.status == ("complete" if budget >= 2 * (STEPS + 8) else "budget")


def test_cancel_while_the_rewriter_thinks_keeps_the_best_so_far():
    def cancel(number):
        if number == 3:
            raise Interrupted

    result = run(TTGen(Canned(NEAR, action=cancel), 1, 4), process=prompted(groups=1))
    assert result.status == "interrupted" and torch.isfinite(result.latents).all()


def test_winners_replay_with_their_prompts():
    result = run(TTGen(Canned(NEAR, FAR), 2, 4, particles=2), process=prompted(eta=1.0))
    replayed = run(replay_of(result.trace, group=1), process=prompted(eta=1.0))
    assert torch.allclose(replayed.latents[0], result.latents[1])
    with pytest.raises(SearchError, match="clip is missing"):
        run(replay_of(result.trace), process=oracles.keyed(STEPS))


@pytest.mark.parametrize(
    "search",
    [SVDD(3), SVDD(4, every=2), SMC(4, ess_threshold=1.5, start=0.0), FKSteering(4, start=0.0, end=1.0, every=2)],
    ids=lambda search: f"{search.name}-{search.every}",
)
def test_reprompting_inside_a_particle_search(search):
    """Costs no forward pass more, tries the rewrites, keeps the books, and finds better images on this model."""
    process = prompted(eta=1.0)
    plain = run(search, process=prompted(eta=1.0))
    rewriter = Canned(NEAR, FAR)
    wrapped = Plan(search, rewriting=Rewriting(rewriter, 2, Rounds(1, 6)))
    result = run(wrapped, process=process)
    assert result.ledger.nfe == plain.ledger.nfe == process.denoise.rows
    assert result.trace.meta["method"] == search.name and result.trace.meta["rewriter"] == "canned"
    tried = {entry.get("prompt") for record in result.trace.records for entry in record.particles}
    assert tried == {None, NEAR, FAR}
    assert all(e["prompt"] is None for e in result.trace.records[-1].particles)
    assert result.ledger.rewriter_calls == len(rewriter.requests) > 0
    assert sum(len(record.rewrites) for record in result.trace.records) == len(rewriter.requests)
    assert (result.latents - 1).abs().mean() < (plain.latents - 1).abs().mean()
    replayed = run(replay_of(result.trace, group=1), process=prompted(eta=1.0))
    assert torch.allclose(replayed.latents[0], result.latents[1])


def test_reprompting_asks_once_per_family_and_not_between_rounds():
    rewriter = Canned(NEAR, FAR)
    run(Plan(SVDD(3), rewriting=Rewriting(rewriter, 2, Rounds(1, 6, interval=3))), process=prompted(eta=1.0, groups=1))
    assert [request.step for request in rewriter.requests] == [1, 4]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (TTGen(), "rewriter is missing"),
        (TTGen(Canned(), 0), "rewrites is 0"),
        (TTGen(Canned(), injection_step=-1), "injection_step is -1"),
        (TTGen(Canned(), interval=0), "interval is 0"),
        (TTGen(Canned(), start_step=0), "start_step is 0"),
        (TTGen(Canned(), patience=0), "patience is 0"),
        (TTGen(Canned(), particles=0), "particles is 0"),
        (TTGen(Canned(), choice="fair"), "choice is 'fair'"),
        (TTGen(Canned(), after="never"), "after is 'never'"),
        (Plan(DAS(2), rewriting=Rewriting(Canned())), "follows gradients"),
        (Plan(SVDD(2), rewriting=Rewriting()), "rewriter is missing"),
        (Plan(SVDD(0), rewriting=Rewriting(Canned())), "candidates is 0"),
    ],
)
def test_wrong_settings_are_refused(search, message):
    with pytest.raises(SearchError, match=message):
        run(search, process=prompted(eta=1.0))


def test_a_model_without_prompts_is_refused():
    for search in (TTGen(Canned(NEAR)), Plan(SVDD(2), rewriting=Rewriting(Canned(NEAR)))):
        with pytest.raises(SearchError, match="clip is missing"):
            run(search, process=oracles.keyed(STEPS))


def test_shared_rows_are_those_of_equal_state_and_key():
    shared = SharedRows()
    x = torch.tensor([[1.0], [2.0], [1.0], [1.0]])
    plan = shared.plan(x, 0.5, torch.tensor([0, 0, 0, 1]))
    assert plan.new.tolist() == [0, 1, 3]
    assert shared.complete(plan, 10 * x[plan.new]).tolist() == [[10.0], [20.0], [10.0], [10.0]]
    later = shared.plan(torch.tensor([[2.0], [3.0], [2.0]]), 0.5)
    assert later.new.tolist() == [1]
    assert shared.complete(later, torch.tensor([[30.0]])).tolist() == [[20.0], [30.0], [20.0]]
    assert shared.plan(x, 0.4).new.tolist() == [0, 1]  # another noise level: nothing is known
    nothing = shared.plan(x[:1], 0.4)
    assert nothing.new.tolist() == [0]
