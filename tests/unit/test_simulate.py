"""The simulation of a large batch against cases that can be told without one."""

from __future__ import annotations

import math

import pytest

from testtime.bench.simulate import KEPT, Cluster, main, simulate, table

CALM = {"spread": 0.0, "slow": 0.0, "between_losses": 0.0, "dispatch": 0.0}


def test_without_trouble_it_is_work_over_gpus():
    found = simulate(Cluster(prompts=1000, gpus=10, seconds=36.0, **CALM))
    assert found.hours == pytest.approx(1.0) == found.ideal
    assert (found.lost, found.losses) == (0.0, 0) and found.idle == pytest.approx(0.0)


def test_slow_gpus_take_fewer_rows():
    """Ten GPUs of which about a half take twice as long are worth 7.5: with small tasks nothing else is lost."""
    found = simulate(Cluster(prompts=20_000, gpus=10, seconds=1.0, **{**CALM, "slow": 1.0}))
    assert found.hours == pytest.approx(2 * found.ideal)
    mixed = simulate(Cluster(prompts=20_000, gpus=200, seconds=1.0, seed=1, **{**CALM, "slow": 0.5}))
    assert mixed.hours / mixed.ideal == pytest.approx(1 / 0.75, rel=0.06)


def test_the_driver_is_the_limit_where_it_is_slow():
    found = simulate(Cluster(prompts=5000, gpus=1000, seconds=1.0, **{**CALM, "dispatch": 0.05}))
    assert found.hours * 3600 == pytest.approx(5000 * 0.05 + 1.0, rel=1e-3)


def test_lost_work_is_what_theory_says():
    """A task of t seconds under losses every m: e^(t/m) - 1 attempts fail, each after less than t."""
    for rows in (1, 20):
        t, m = 10.0 * rows, 500.0
        cluster = Cluster(prompts=40_000, gpus=50, seconds=10.0, rows_per_task=rows,
                          **{**CALM, "between_losses": m}, absence=0.0)  # fmt: skip
        expected = (m * (math.exp(t / m) - 1) - t) / t
        assert simulate(cluster).lost == pytest.approx(expected, rel=0.12)


def test_larger_tasks_lose_more_and_end_later():
    base = {"prompts": 30_000, "gpus": 300, "between_losses": 3600.0}
    one, many = (simulate(Cluster(rows_per_task=rows, **base)) for rows in (1, 32))
    assert many.lost > 5 * one.lost and many.hours > one.hours and many.idle > one.idle


def test_doubling_the_last_tasks_shortens_the_end():
    base = {"prompts": 4000, "gpus": 400, "slow": 0.2, "slowness": 6.0, "between_losses": 0.0}
    plain, doubled = (simulate(Cluster(duplicate_last=share, **base)) for share in (0.0, 0.05))
    assert doubled.doubled > 0 and doubled.hours < plain.hours


def test_the_same_seed_is_the_same_outcome():
    assert simulate(Cluster(prompts=5000, gpus=50)) == simulate(Cluster(prompts=5000, gpus=50))
    assert simulate(Cluster(prompts=5000, gpus=50)) != simulate(Cluster(prompts=5000, gpus=50, seed=1))


def test_storage_and_report(caplog):
    assert [round(kept.terabytes(10**6), 4) for kept in KEPT] == [1.5, 0.3, 12.0, 0.0057]
    text = table(Cluster(prompts=2000, gpus=20), [1, 8])
    assert "| 8 |" in text and "rows per second" in text
    assert main(["--prompts", "500", "--gpus", "10", "--rows-per-task", "1"]) == 0
