"""TTS-VAR: plans, potentials, the law of its resampling, its costs, on next-scale and on diffusion processes."""

import math

import pytest
import torch

from testtime.models.infinity.flops import decode_flops, scale_flops
from testtime.models.infinity.schedules import ScaleSchedule
from testtime.samplers.after.replay import replay_of
from testtime.samplers.methods import TTSVAR
from testtime.samplers.methods.population_plan import PLANS, PopulationPlan, default_plan, scores_plan
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search

from . import oracles
from .scale_world import Brightness, networks, process
from .searches import TARGET


class Patches:
    """Sixteen patches of an image as tokens."""

    name = "patches"

    def tokens(self, images):
        n, h, w, c = images.shape
        return images.view(n, 4, h // 4, 4, w // 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 16, -1)


class Same(Patches):
    def tokens(self, images):
        return torch.ones(len(images), 16, 3)


PLAN = PopulationPlan(4, {1: 3}, {3: 2, 4: 1})


@pytest.fixture(scope="module")
def nets():
    return networks()


def search(**settings):
    return TTSVAR(**{"particles": 2, "plan": PLAN, "extractor": Patches(), **settings})


def populations(result, groups=1):
    return [len(record.particles) // groups for record in result.trace.records if record.step > 0]


def test_published_populations():
    """What the published code draws each of the 13 scales with (its batch list is what is left after a selection)."""
    assert PLANS[13].populations(13) == [8, 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1]
    listed = PopulationPlan.from_batches([8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1], [2, 5], [6, 9], 13)
    assert listed.populations(13) == PLANS[13].populations(13)


@pytest.mark.parametrize("steps", [6, 7, 8, 10, 12, 13, 20, 50])
def test_default_plans_fit(steps):
    plan = default_plan(steps)
    plan.check(steps)
    sizes = plan.populations(steps)
    assert sizes[0] == 8 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PopulationPlan(4, {2: 3}, {2: 2}), "scale 2 is clustered and resampled"),
        (PopulationPlan(4, {1: 6}, {}), "rises from 4 N to 6 N at scale 1"),
        (PopulationPlan(4, {}, {5: 1}), "selection after scale 5: with 6 scales"),
        (PopulationPlan(4, {}, {2: 0}), "rises|fall"),
    ],
)
def test_plans_that_cannot_work(nets, plan, message):
    with pytest.raises(SearchError, match=message):
        run_search(search(plan=plan), process(nets), Brightness(), ["a"])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([4, 4, 2], "3 numbers for 6 scales"),
        ([4, 3, 3, 4, 1, 1], "rises from 3 to 4 at scale 3"),
        ([4, 3, 2, 2, 1, 1], "falls from 3 to 2 at scale 2, where nothing selects"),
    ],
)
def test_batch_lists_that_cannot_work(batches, message):
    with pytest.raises(SearchError, match=message):
        PopulationPlan.from_batches(batches, [1], [3, 4], 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "particles is 0"),
        ({"potential": "mean"}, "value, max, sum, diff"),
        ({"features": "umap"}, "pca"),
        ({"strength": -1.0}, "lambda"),
        ({"strength": math.nan}, "lambda"),
        ({"history": "none"}, "selection"),
        ({"extractor": None}, "no feature extractor"),
        ({"cluster_side": -1}, "cluster_side is -1"),
    ],
)
def test_bad_settings(nets, settings, message):
    with pytest.raises(SearchError, match=message):
        run_search(search(**settings), process(nets), Brightness(), ["a"])


def test_verifier_is_needed(nets):
    with pytest.raises(SearchError, match="judge"):
        run_search(search(), process(nets), None, ["a"])


def test_population_shrinks_as_planned(nets):
    result = run_search(search(), process(nets, groups=2), Brightness(), ["a", "b"])
    assert populations(result, 2) == [8, 8, 6, 6, 4, 2]
    assert result.latents.shape == (2, 8, 8, 8) and result.status == "complete"
    assert [r.phase for r in result.trace.records][-1] == "final"


def test_only_what_is_looked_at_is_decoded(nets):
    """Decodes and scores happen at selections and at the end, once each: 8 + 6 + 4 + 2 decodes, no clusters scored."""
    proc = process(nets, preview=4)
    result = run_search(search(), proc, Brightness(), ["a"])
    assert result.ledger.decodes == 8 + 6 + 4 + 2
    assert result.ledger.verifier_images == 6 + 4 + 2
    expected = sum(size * 2 for size in [8, 8, 6, 6, 4, 2])
    assert result.ledger.nfe == expected


@pytest.mark.parametrize(
    ("potential", "history", "images"),
    [
        ("diff", "selection", 6 + 6 + 4 + 2),
        ("max", "selection", 8 + 6 + 6 + 4 + 2),
        ("sum", "all", 8 + 8 + 6 + 6 + 4 + 2),
    ],
)
def test_histories_are_scored_and_paid_for(nets, potential, history, images):
    result = run_search(search(potential=potential, history=history), process(nets), Brightness(), ["a"])
    assert result.ledger.verifier_images == images


def test_potentials_by_hand():
    past = torch.tensor([[0.1, 0.5, 0.3], [0.4, 0.2, 0.2], [0.9, 0.1, -math.inf]], dtype=torch.float64)
    expected = {"value": [0.3, 0.2], "diff": [-0.2, 0.0], "max": [0.5, 0.4], "sum": [0.9, 0.8]}
    for potential, values in expected.items():
        value = search(potential=potential).log_potential(past)
        assert value[:2].tolist() == pytest.approx(values) and value[2] == -math.inf
    assert search(potential="diff").log_potential(past[:, :1])[:2].tolist() == pytest.approx([0.1, 0.4])


def test_rejected_scores_of_the_past_do_not_count():
    past = torch.tensor([[-math.inf, 0.5], [0.4, 0.2]], dtype=torch.float64)
    assert search(potential="sum").log_potential(past).tolist() == pytest.approx([0.5, 0.6])
    assert search(potential="diff").log_potential(past).tolist() == pytest.approx([0.0, -0.2])


def test_survivors_follow_the_weights(nets):
    """Over many seeds the survivors of one resampling are distributed as softmax(lambda r)."""
    from testtime.samplers.run.session import Session

    proc = process(nets)
    past = torch.tensor([[0.0], [0.1], [0.2], [0.4]], dtype=torch.float64)
    rule, counts = search(strength=5.0), torch.zeros(4)
    session = Session(proc, Brightness(), ["a"])
    for step in range(400):
        counts += torch.bincount(rule._resample(session, past, 5, step), minlength=4)
    expected = torch.softmax(5.0 * past[:, 0], 0)
    error = (counts / 2000 - expected).abs() / (expected * (1 - expected) / 2000).sqrt()
    assert error.max() < 4


def test_strength_zero_leaves_selection_to_chance_but_not_to_rejected_scores(nets):
    from testtime.samplers.run.session import Session

    past = torch.tensor([[5.0], [-math.inf], [0.0]], dtype=torch.float64)
    rows = search(strength=0.0)._resample(Session(process(nets), Brightness(), ["a"]), past, 300, 0)
    counts = torch.bincount(rows, minlength=3)
    assert counts[1] == 0 and counts.min() == 0 and counts[0] > 100 and counts[2] > 100


def test_clones_separate(nets):
    plan = PopulationPlan(4, {}, {1: 4})
    result = run_search(search(plan=plan, strength=1000.0), process(nets), Brightness(), ["a"])
    record = result.trace.records[3]
    assert len({entry["parent"] for entry in record.particles}) < 8  # hard selection made copies
    maps = result.finalists.flatten(1)
    assert torch.cdist(maps, maps).add(1e9 * torch.eye(8)).min() > 0.1


def test_clusters_keep_different_images_and_their_streams(nets):
    plan = PopulationPlan(4, {1: 2}, {})
    result = run_search(search(plan=plan), process(nets), Brightness(), ["a"])
    kept = [e for e in result.trace.records[2].particles if e["selected"]]
    assert len(kept) == 4
    children = {e["parent"]: e["slot"] for e in result.trace.records[3].particles}
    assert children == {e["id"]: e["slot"] for e in kept}


def test_images_that_are_only_clustered_may_be_smaller(nets):
    """Eight clustered ones of 4 x 4 codes, six and four scored ones of 8 x 8, two finished ones."""
    seen = []

    class Watching(Patches):
        def tokens(self, images):
            seen.append(images.shape)
            return super().tokens(images)

    proc = process(nets)
    result = run_search(search(cluster_side=4, extractor=Watching()), proc, Brightness(), ["a"])
    assert seen == [(8, 16, 16, 3)]
    config = proc.decoder.config
    assert result.ledger.decode_flops == 8 * decode_flops(config, 4, 4) + 12 * decode_flops(config, 8, 8)
    assert result.ledger.decodes == 20 and torch.isfinite(result.scores).all()


def test_diffusion_models_decode_at_one_size_only():
    proc = oracles.keyed()
    with pytest.raises(SearchError, match="cluster_side is 4: only next-scale models"):
        run_search(
            TTSVAR(2, PopulationPlan(4, {0: 3}, {1: 2}), Patches(), cluster_side=4), proc, TARGET, ["p"] * proc.groups
        )


def test_identical_features_are_warned_of(nets):
    result = run_search(search(extractor=Same()), process(nets), Brightness(), ["a"])
    assert any("fewer than 6 different images" in warning for warning in result.warnings)
    assert result.status == "complete"


def test_winner_is_replayed_alone(nets):
    result = run_search(search(), process(nets), Brightness(), ["a"])
    again = run_search(replay_of(result.trace, result.particles[0]), process(nets), Brightness(), ["a"])
    assert torch.allclose(again.latents, result.latents, atol=1e-5)


def test_chunks_change_nothing(nets):
    whole = run_search(search(), process(nets), Brightness(), ["a"])
    parts = run_search(search(), process(nets, chunk=3), Brightness(), ["a"])
    assert torch.allclose(whole.latents, parts.latents, atol=1e-5) and whole.particles == parts.particles


def test_cache_stays_below_that_of_the_widest_scale(nets):
    proc = process(nets)
    sizes, held = [8, 8, 6, 6, 4, 2], []
    proc.between = lambda: None
    original = proc.advance

    def watched(state, shift=None):
        moved = original(state, shift)
        held.append(moved[0].cache.bytes())
        return moved

    proc.advance = watched
    run_search(search(), proc, Brightness(), ["a"])
    # Reserved up to the next selection, never for the whole image.
    ahead = [1, 1, 3, 3, 4]
    assert held[:5] == [proc.memory(size, until) for size, until in zip(sizes, ahead, strict=False)] and held[5] == 0


def test_budget_and_the_best_so_far(nets):
    result = run_search(search(), process(nets), Brightness(), ["a"], max_nfe=60)
    assert result.status == "budget" and result.ledger.nfe <= 60
    assert torch.isfinite(result.scores).all()


def test_it_runs_on_diffusion():
    proc = oracles.keyed()
    plan = default_plan(proc.steps) if proc.steps >= 6 else PopulationPlan(4, {0: 3}, {1: 2})

    class Own(Patches):
        def tokens(self, images):
            return images.reshape(len(images), 1, -1)

    result = run_search(TTSVAR(2, plan, Own()), proc, TARGET, ["p"] * proc.groups)
    assert result.status == "complete"
    assert populations(result, proc.groups) == [2 * size for size in plan.populations(proc.steps)]
    alone = run_search(TTSVAR(1, PopulationPlan(1, {}, {})), oracles.keyed(), TARGET, ["p"] * proc.groups)
    assert float(result.scores.max()) >= float(alone.scores.max()) - 1e-9


def test_top_keeps_the_best_each_once(nets):
    """Hand-made scores with ties and rejected ones, two groups: the order of particles stays, nothing is re-seeded."""
    from testtime.samplers.run.session import Session

    bad = -math.inf
    past = torch.tensor([0.1, 0.5, 0.5, bad, 0.2, bad, 0.3, bad], dtype=torch.float64)[:, None]
    session = Session(process(nets, groups=2), Brightness(), ["a", "b"])
    rule = search(selection="top", strength=0.0)
    assert rule._top(session, past, 2).tolist() == [1, 2, 4, 6] and not session.warnings
    assert rule._top(session, past, 3).tolist() == [0, 1, 2, 4, 5, 6]  # the first rejected one fills the place
    assert "fewer than 3 particles have a finite score" in session.warnings[0]


def test_survivors_of_top_keep_their_noise(nets):
    plan = PopulationPlan(4, {}, {1: 2})
    result = run_search(search(plan=plan, selection="top"), process(nets), Brightness(), ["a"])
    kept = [entry for entry in result.trace.records[2].particles if entry["selected"]]
    children = {entry["parent"]: entry["slot"] for entry in result.trace.records[3].particles}
    assert len(kept) == 4 and children == {entry["id"]: entry["slot"] for entry in kept}
    scores = sorted(entry["score"] for entry in result.trace.records[2].particles)
    assert sorted(entry["score"] for entry in kept) == scores[4:]


@pytest.mark.parametrize(
    ("grids", "plan", "images"),
    [
        ((1, 2, 3, 4, 5, 6, 8, 8), "published", 1.81),
        ((1, 2, 3, 4, 5, 6, 8, 8), "scores", 2.16),
        ((1, 2, 3, 4, 6, 8, 10, 13, 16), PopulationPlan(8, {1: 6, 2: 4}, {3: 2, 5: 1}), 1.28),
        ((1, 2, 3, 4, 6, 8, 10, 13, 16), PopulationPlan(8, {1: 6, 2: 4}, {4: 2, 5: 1}), 1.37),
    ],
)
def test_cost_of_drawing_in_images(grids, plan, images):
    """FLOPs of the transformer for N = 1 over those of one image, on the embedded sizes."""
    from testtime.models.tiny.var import TRANSFORMER

    schedule = ScaleSchedule.square(*grids)
    costs = [scale_flops(TRANSFORMER, schedule, scale, 20, 2) for scale in range(len(grids))]
    sizes = TTSVAR(1, plan).populations(len(grids))
    drawn = sum(size * cost for size, cost in zip(sizes, costs, strict=True)) / sum(costs)
    assert drawn == pytest.approx(images, abs=0.03)


def test_plans_by_name(nets):
    assert scores_plan(13) == PopulationPlan(8, {}, {6: 2, 9: 1})
    assert TTSVAR(2, "scores").populations(8) == [16, 16, 16, 16, 4, 4, 2, 2]
    with pytest.raises(SearchError, match="plan is 'late': choose one of published, scores"):
        run_search(search(plan="late"), process(nets), Brightness(), ["a"])
    with pytest.raises(SearchError, match=r"selection is 'best': choose one of .*multinomial.*top"):
        run_search(search(selection="best"), process(nets), Brightness(), ["a"])


def test_scores_and_top_find_the_best_of_all(nets):
    """A judge that sees the first scale alone, which decides all: no later copy or cluster can matter."""

    proc = process(nets)
    maps = proc.advance(proc.start(16))[0].x
    planted = torch.sigmoid(maps.flatten(1).sum(1))
    real = proc.preview

    def preview(state, side=None):
        images = real(state, side)
        images[:, 0, 0, 0] = planted[state.slot]  # "top" leaves every particle its slot
        return images

    class Corner(Brightness):
        def score(self, images, prompts, context=None):
            return images[:, 0, 0, 0].double()

    proc.preview = preview
    result = run_search(TTSVAR(2, "scores", selection="top"), proc, Corner(), ["a"])
    assert float(result.scores[0]) == pytest.approx(float(planted.max()), abs=1e-6)


def test_clusters_by_codes_need_no_decode(nets):
    """Only scored and finished images are decoded; the clusters are those of the code maps."""
    plan = PopulationPlan(4, {1: 3}, {3: 2, 4: 1})
    by_codes = search(plan=plan, cluster_by="codes", extractor=None)
    result = run_search(by_codes, process(nets), Brightness(), ["a"])
    assert result.ledger.decodes == 6 + 4 + 2 == by_codes.verifications(process(nets))
    assert len([e for e in result.trace.records[2].particles if e["selected"]]) == 6
    proc = oracles.keyed()
    with pytest.raises(SearchError, match=r"clusters by codes need a next-scale model: on this .* set cluster_by of"):
        run_search(TTSVAR(2, PopulationPlan(4, {0: 3}, {1: 2}), cluster_by="codes"), proc, TARGET, ["p"] * proc.groups)
    with pytest.raises(SearchError, match="no feature extractor"):
        run_search(search(extractor=None), process(nets), Brightness(), ["a"])
