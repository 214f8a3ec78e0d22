"""Defaults on short schedules and by kind of model: where methods decide, how much noise is drawn, what is said."""

from __future__ import annotations

from itertools import pairwise

import pytest

from testtime.samplers import few_steps
from testtime.samplers.few_steps import DISTILLED, RENOISING, UNDISTILLED, Setting
from testtime.samplers.methods import SMC, SVDD, BeamSearch, BestOfN, FKSteering, ImportanceSampling, RandomSearch
from testtime.samplers.movers import JOINT, MOST_PAUSES, NEVER, joint, runs_of
from testtime.samplers.outline import NoiseOutline
from testtime.samplers.plan import Plan
from testtime.samplers.prepare import prepare
from testtime.samplers.processes.kernel import VE, Flow, transition_variance
from testtime.samplers.processes.schedules import flow_schedule, karras
from testtime.samplers.processes.stock import AtLevels, native
from testtime.samplers.protocols import SearchError

from . import oracles
from .searches import SHARP, run


def outline(steps, flow=True):
    sigmas = flow_schedule(steps) if flow else karras(steps)
    return NoiseOutline(Flow() if flow else VE(), sigmas.tolist(), 0.0)


def prepared(search, steps, eta=None, flow=True, **setting):
    return prepare(search, outline(steps, flow), eta, nfe_per_call=1, setting=Setting(**setting))


@pytest.mark.parametrize(
    ("steps", "points", "branching", "joints"),
    [
        (2, [], [], []),
        (3, [1], [1], []),
        (4, [1, 2], [1, 2], [2]),
        (6, [2, 3, 4], [1, 2, 3, 4], [2, 3]),
        (8, [2, 4, 6], [1, 2, 3, 4, 5, 6], [2, 4]),
    ],
)
def test_decision_points_by_number_of_steps(steps, points, branching, joints):
    assert few_steps.points(steps) == points
    assert few_steps.branching(steps) == branching
    assert few_steps.joints(steps) == joints


@pytest.mark.parametrize("steps", range(3, 12))
def test_points_lie_within_the_schedule(steps):
    points = few_steps.points(steps)
    assert points == sorted(set(points)) and points[0] >= 1 and points[-1] <= steps - 2


@pytest.mark.parametrize("method", [FKSteering, ImportanceSampling, SMC])
def test_methods_take_them_where_nothing_was_given(method):
    assert method(4, every=0).resampling_steps(8) == [2, 4, 6]
    assert method(4, every=0).resampling_steps(20) == method(4).resampling_steps(20)
    assert method(4, every=0, start=0.4, end=0.6).resampling_steps(8) == [4]
    assert method(4, every=1, start=0.0, end=1.0).resampling_steps(8) == [0, 1, 2, 3, 4, 5, 6]


def test_svdd_and_beam_search_leave_the_first_and_the_last_move_alone():
    process = oracles.keyed(steps=6, flow=True)
    assert SVDD(3, every=0).branching_steps(process) == {1, 2, 3, 4}
    assert [BeamSearch(2, 3, auto=True).children_at(process, i) for i in range(6)] == [1, 3, 3, 3, 3, 1]
    assert [BeamSearch(2, 3).children_at(process, i) for i in range(5)] == [3] * 5


def test_the_score_is_phased_in_where_particles_are_chosen():
    assert few_steps.tempered([1, 2], 4) == pytest.approx([0.0, 2**0.5 - 1, 1.0, 1.0])
    values = few_steps.tempered([2, 4, 6], 8)
    assert values[:2] == [0.0, 0.0] and values[6:] == [1.0, 1.0] and values[2] == values[3]
    # An SMC of 4 steps has all of the score counted at its last choice; by steps .41 of it would be left.
    result = run(SMC(4, alpha=SHARP, every=0), process=oracles.keyed(steps=4, flow=True))
    told = [record.inverse_temperature for record in result.trace.records]
    assert [row[0] if row else None for row in told[1:3]] == pytest.approx([(2**0.5 - 1) / 0.3, 1 / 0.3])


@pytest.mark.parametrize(
    ("sampler", "steps", "setting", "kind"),
    [
        (None, 20, Setting(7.0), UNDISTILLED),
        (None, 20, Setting(1.0), UNDISTILLED),
        (None, 8, Setting(5.0), UNDISTILLED),
        ("res_multistep", 8, Setting(1.0), DISTILLED),
        (None, 9, Setting(1.0), DISTILLED),
        (None, 10, Setting(1.0), UNDISTILLED),
        (None, 8, Setting(), UNDISTILLED),
        ("lcm", 4, Setting(1.0), RENOISING),
        ("euler_ancestral", 20, Setting(7.0), RENOISING),
        ("euler", 4, Setting(1.5, samples_as_lcm=True), RENOISING),
    ],
)
def test_kinds_of_models(sampler, steps, setting, kind):
    assert few_steps.kind_of(sampler, steps, setting) == kind


@pytest.mark.parametrize(
    ("search", "steps", "cfg", "eta"),
    [
        (BestOfN(4), 20, 7.0, 0.0),
        (RandomSearch(4), 20, 7.0, 0.0),
        (FKSteering(4), 20, 7.0, 1.0),
        (SVDD(4), 8, 5.0, 0.5),
        (FKSteering(1), 20, 7.0, 0.0),
    ],
)
def test_auto_noise_of_slow_models(search, steps, cfg, eta):
    made = prepared(Plan(search), steps, cfg=cfg)
    assert made.eta == eta
    assert len(made.notes) == 1 and f"{steps} steps" in made.notes[0] and f"{eta:g}" in made.notes[0]


def test_auto_noise_of_step_distilled_models_is_drawn_where_particles_are_chosen():
    made = prepared(Plan(FKSteering(4, every=0)), 8, cfg=1.0)
    sigmas = outline(8).sigmas
    assert made.eta == AtLevels(0.5, (sigmas[2], sigmas[4], sigmas[6]))
    assert "step-distilled model, 8 steps: 0.5 at steps 2, 4, 6" in made.notes[0]
    drawn = [made.eta.variance(Flow(), high, low) > 0 for high, low in pairwise(sigmas)]
    assert drawn == [False, False, True, False, True, False, True, False]


def test_a_sampler_keeps_its_own_noise_and_explicit_settings_win():
    assert prepared(Plan(FKSteering(4), sampler="lcm"), 8).eta == native("lcm")
    assert prepared(Plan(BestOfN(4), sampler="euler_ancestral"), 20).eta == native("euler_ancestral")
    assert prepared(Plan(BestOfN(4), sampler="dpmpp_2m"), 20).eta == native("dpmpp_2m")
    assert prepared(Plan(FKSteering(4), sampler="dpmpp_2m"), 20).eta == native("dpmpp_2m", 1.0)
    assert prepared(Plan(FKSteering(4)), 8, eta=0.3, cfg=1.0).eta == 0.3
    assert prepared(Plan(FKSteering(4)), 8, eta=0.3).notes == ()


@pytest.mark.parametrize("search", [FKSteering(4), SMC(2), SVDD(2), BeamSearch(2, 2)], ids=lambda search: search.name)
@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps_leave_nothing_to_choose_on_the_way(search, steps):
    with pytest.raises(SearchError, match=rf"steps is {steps}: {search.title} .* use Best-of-N"):
        prepared(Plan(search), steps)
    assert prepared(Plan(BestOfN(4)), steps).eta == 0.0


def test_a_method_that_hardly_decides_says_so_before_the_run():
    assert prepared(Plan(FKSteering(4)), 4).warnings == (
        "FK Steering decides once in 4 steps: Best-of-N costs the same",
    )
    assert prepared(Plan(FKSteering(4, every=0)), 4).warnings == ()
    early = FKSteering(4, start=0.0, end=0.1, every=1)
    assert "above 80% noise only" in prepared(Plan(early), 20).warnings[0]
    result = run(FKSteering(4, alpha=SHARP), process=oracles.keyed(steps=4, flow=True))
    assert "FK Steering decides once in 4 steps: Best-of-N costs the same" in result.warnings


class Foreign:
    """A sampler that the kernel does not have."""

    name, native, pauses = "heun", None, True

    def __init__(self, clones):
        self.clones = clones


def test_joints_of_short_schedules():
    made = prepared(Plan(FKSteering(4, every=0), sampler=Foreign(JOINT)), 8)
    assert made.runs.stops == (2, 4) and made.runs.joints
    assert made.plan.method.resampling_steps(8) == [2, 4]
    assert made.eta == AtLevels(0.7, tuple(outline(8).sigmas[i] for i in (2, 4)))
    with pytest.raises(SearchError, match="clones of a run of heun never separate"):
        prepared(Plan(FKSteering(4, every=0), sampler=Foreign(NEVER)), 8)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_a_joint_draws_as_much_noise_as_the_kernel_would(eta):
    for high, low in ((14.6, 3.0), (2.0, 1.0), (1.0, 0.9)):
        drawn = low**2 - joint(high, low, eta) ** 2
        assert drawn == pytest.approx(transition_variance(VE(), high, low, eta), abs=1e-12)


def test_how_often_and_how_early_a_run_can_be_parted():
    def made(*points):
        return runs_of(FKSteering(4, points=points), Foreign(JOINT), outline(12)).stops

    most = tuple(range(1, MOST_PAUSES + 1))
    assert made(*most) == most  # the first part may be one step long
    with pytest.raises(SearchError, match=f"decides at {MOST_PAUSES + 1} steps.* at {MOST_PAUSES} at most"):
        made(*most, MOST_PAUSES + 1)
    with pytest.raises(SearchError, match="decides at step 0, where nothing is drawn yet"):
        made(0, 4)


def test_a_run_that_cannot_pause_is_not_asked_to():
    halving, sampler = RandomSearch(4), Foreign(NEVER)
    assert runs_of(halving, sampler, outline(20)).stops == (10,)
    sampler.pauses = False
    assert runs_of(halving, sampler, outline(20)).stops == ()
