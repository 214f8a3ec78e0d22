"""Tables and pictures of benchmark results: what is written into the pages, and when they count as out of date."""

from __future__ import annotations

import json

import numpy as np
import pytest

from testtime.bench import results_files, tables
from testtime.bench.plots import COLOURED, THEMES, look, spread
from testtime.bench.results_files import load_folder, load_results, paired_gain
from testtime.reports.names import method_name
from testtime.samplers.methods import METHODS
from testtime.shapes_world.scene import TASKS

README = "# Pack\n\n<!-- bench:shapes-diffusion -->\n<!-- /bench -->\n\nafter\n"
PER_TASK = 20


def row(method: str, budget: int, correct: str, **changes) -> dict:
    """A row as the benchmark writes it, from its verdicts."""
    shares = np.array([float(v) for v in correct]).reshape(len(TASKS), -1).mean(1)
    overall = float(shares.mean())
    return {
        "method": method, "budget": budget, "nfe_per_image": 40.0 * budget, "backward_nfe_per_image": 0.0,
        "overall": overall, "overall_ci": [overall - 0.05, overall + 0.05],
        "tasks": dict(zip(TASKS, shares.tolist(), strict=True)),
        "reward": 0.3 + overall / 2, "held_out": 0.4 + overall / 3, "optimism": 0.01,
        "seconds_per_image": 0.1 * budget, "overhead": 1.02, "verdicts": correct, **changes,
    }  # fmt: skip


def verdicts(share: float) -> str:
    """The first ``share`` of every task's prompts are right."""
    right = round(share * PER_TASK)
    return ("1" * right + "0" * (PER_TASK - right)) * len(TASKS)


ROWS = (
    row("das", 16, verdicts(0.8)),
    row("best_of_n", 16, verdicts(0.6)),
    row("best_of_n", 4, verdicts(0.5)),
    row("das", 4, verdicts(0.5)),
    row("plain", 1, verdicts(0.4)),
)


@pytest.fixture
def checkout(tmp_path):
    """``checkout(rows=..., readme=...)``: a folder with results and pages; returns it."""

    def make(rows=ROWS, readme=README, name="shapes-diffusion", **more):
        (tmp_path / "bench" / "results").mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs").mkdir(exist_ok=True)
        body = {"suite": "shapes", "commit": "abc1234", "machine": "a machine", "rows": list(rows), **more}
        body["settings"] = {"steps": 20, "cfg": 4.0, "verifier": "one", "held_out": "two", "prompts_per_task": PER_TASK}
        (tmp_path / "bench" / "results" / f"{name}.json").write_text(json.dumps(body))
        (tmp_path / "README.md").write_text(readme)
        return tmp_path

    return make


def cells(page: str, start: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_are_sorted_by_method_and_budget(checkout):
    found = load_folder(checkout() / "bench" / "results")["shapes-diffusion"]
    assert [(r["method"], r["budget"]) for r in found.rows] == [
        ("plain", 1), ("best_of_n", 4), ("best_of_n", 16), ("das", 4), ("das", 16),
    ]  # fmt: skip
    assert found.budgets == [1, 4, 16] and found.methods == ["plain", "best_of_n", "das"]


@pytest.mark.slow
def test_the_page_says_what_was_measured(checkout):
    pytest.importorskip("matplotlib")
    root = checkout()
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    assert page.startswith("# Pack\n\n<!-- bench:shapes-diffusion -->\n") and page.endswith(
        "<!-- /bench -->\n\nafter\n"
    )
    assert cells(page, "correct images in %") == ["correct images in %", "1x", "4x", "16x"]
    assert cells(page, "Plain sampling")[1:] == ["40.0 (35.0 to 45.0)", "", ""]
    # The best of a budget is in bold, both where two are equal, none where there is only one.
    assert cells(page, "DAS")[1:] == ["", "**50.0 (45.0 to 55.0)**", "**80.0 (75.0 to 85.0)**"]
    assert cells(page, "Best-of-N")[1:] == ["", "**50.0 (45.0 to 55.0)**", "60.0 (55.0 to 65.0)"]
    by_task = page[page.index("| at 16x") :]
    assert cells(by_task, "DAS")[1] == "**80.0**" and cells(by_task, "DAS")[7].startswith("+20.0 (")
    assert "| Plain sampling | 40.0 |" in by_task and "20 prompts per task, 20 steps, cfg 4" in page
    assert "a machine, commit `abc1234`" in page


def test_written_pages_are_up_to_date_until_the_results_change(checkout):
    pytest.importorskip("matplotlib")
    root = checkout()
    assert tables.main(["--root", str(root), "--check"]) == 1
    assert (root / "README.md").read_text() == README  # checking changes nothing
    assert tables.main(["--root", str(root)]) == 0
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert tables.main(["--root", str(root), "--check"]) == 0
    assert tables.main(["--root", str(root)]) == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    checkout([*ROWS, row("smc", 4, verdicts(0.45))], (root / "README.md").read_text())
    assert tables.update(root, check=True) == [
        "README.md", "docs/images/shapes-diffusion.svg", "docs/images/shapes-diffusion-dark.svg",
    ]  # fmt: skip


def test_only_the_picture_changes_where_the_page_does_not_show_the_figure(checkout):
    pytest.importorskip("matplotlib")
    root = checkout()
    tables.main(["--root", str(root)])
    checkout([{**r, "optimism": 0.02} for r in ROWS], (root / "README.md").read_text())
    assert [name for name in tables.update(root, check=True) if not name.startswith("docs/images")] == []


def test_full_blocks_in_docs_and_blocks_without_results(checkout):
    pytest.importorskip("matplotlib")
    root = checkout()
    unknown = "<!-- bench:later -->\nas it was\n<!-- /bench -->\n"
    (root / "docs" / "numbers.md").write_text(f"<!-- bench:shapes-diffusion full -->\n<!-- /bench -->\n{unknown}")
    tables.main(["--root", str(root)])
    page = (root / "docs" / "numbers.md").read_text()
    assert page.count("\n| ") == 2 + len(ROWS) and page.endswith(unknown)
    assert "<picture>" not in page and "| DAS | 16x | 640 | 0 | 80.0 (75.0 to 85.0) |" in page
    (root / "docs" / "numbers.md").write_text("<!-- bench:shapes-diffusion -->\n<!-- /bench -->\n")
    tables.main(["--root", str(root)])
    assert 'src="images/shapes-diffusion.svg"' in (root / "docs" / "numbers.md").read_text()


def test_a_block_that_is_not_closed_is_an_error_and_nothing_is_written(checkout):
    for readme in ("<!-- bench:shapes-diffusion -->\n", "<!-- bench:shapes-diffusion -->\n" + README):
        root = checkout(readme=readme)
        assert tables.main(["--root", str(root)]) == 1
        assert (root / "README.md").read_text() == readme
        with pytest.raises(ValueError, match=r"README.md: .*not closed"):
            tables.update(root, check=True)


def test_without_results_nothing_is_out_of_date(tmp_path):
    (tmp_path / "README.md").write_text(README)
    assert tables.main(["--root", str(tmp_path), "--check"]) == 0


def test_rows_with_few_figures_still_make_tables(checkout):
    pytest.importorskip("matplotlib")
    bare = [{key: r[key] for key in results_files.NEEDED} for r in ROWS]
    root = checkout(bare)
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    assert "against Best-of-N" not in page and "| DAS | - | - | - |" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json is not JSON"),
        ("[]", "x.json has no list 'rows'"),
        ('{"rows": [{"method": "das", "budget": 4}]}', "x.json, row 0 lacks nfe_per_image, overall, overall_ci"),
    ],
)
def test_bad_results_are_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_results(tmp_path / "x.json")


def test_the_paired_interval_knows_that_prompts_are_the_same():
    """Same share of right images each: always the same prompts, or quite different ones."""
    weaker = row("best_of_n", 4, verdicts(0.5))
    gain, low, high = paired_gain(row("das", 4, verdicts(0.6)), weaker)
    assert gain == pytest.approx(0.1) and 0 < low < gain < high < 0.2
    turned = "".join(verdicts(0.6)[i : i + PER_TASK][::-1] for i in range(0, len(TASKS) * PER_TASK, PER_TASK))
    gain, wide_low, wide_high = paired_gain(row("das", 4, turned), weaker)
    assert gain == pytest.approx(0.1) and wide_low < 0 and wide_high - wide_low > 1.8 * (high - low)
    assert paired_gain(weaker, weaker) is None and paired_gain(weaker, None) is None
    assert paired_gain(row("das", 4, verdicts(0.6), verdicts="101"), weaker) is None


def test_the_paired_interval_covers_the_truth():
    """Prompt-wise independent verdicts of known probability: 95 % intervals hold the true difference about as often."""
    rng, held, runs = np.random.default_rng(3), 0, 200
    for _ in range(runs):
        first, second = rng.random((len(TASKS), 40)) < 0.6, rng.random((len(TASKS), 40)) < 0.5
        text = ["".join("01"[int(v)] for v in table.flatten()) for table in (first, second)]
        _, low, high = paired_gain(row("das", 4, text[0]), row("best_of_n", 4, text[1]), resamples=500)
        held += low <= 0.1 <= high
    assert 0.89 <= held / runs <= 0.99


def test_labels_are_apart_ordered_inside_and_near():
    assert spread([5.0, 1.0], 1.0, 0, 10) == [5.0, 1.0]
    assert spread([5.0, 5.0, 5.0], 1.0, 0, 10) == [4.0, 5.0, 6.0]
    assert spread([0.0, 0.1], 1.0, 0, 10) == pytest.approx([0.0, 1.0])
    assert spread([9.9, 10.0, 10.0], 1.0, 0, 10) == pytest.approx([8.0, 9.0, 10.0])
    wanted = np.random.default_rng(0).uniform(0, 10, 12).tolist()
    places = spread(wanted, 0.7, 0, 10)
    order = np.argsort(wanted)
    assert (np.diff(np.array(places)[order]) >= 0.7 - 1e-9).all()
    assert min(places) >= 0 and max(places) <= 10


def test_every_method_has_its_own_look():
    changed = [
        "ttgen_worst",
        "svdd_reprompted",
        "svdd_ode",
        "svdd_linear",
        "svdd_vp",
        "smc_ode",
        "smc_linear",
        "rbf_vp",
    ]
    assert not any("_" in method_name(method) for method in changed)
    for theme in THEMES.values():
        looks = [look(method, theme) for method in (*METHODS, *changed, "of_my_own")]
        assert len(set(looks)) == len(looks)
        assert len({look(method, theme)[0] for method in COLOURED[:6]}) == 6
    assert set(COLOURED) <= set(METHODS)


def test_both_pictures_are_written_with_their_texts(checkout):
    pytest.importorskip("matplotlib")
    from testtime.bench.plots import draw, save_plots

    results = load_folder(checkout() / "bench" / "results")["shapes-diffusion"]
    figure = draw(results)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(labels) == ["Best-of-N", "DAS", "Plain sampling"] and len(figure.axes) == 2
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["40\n1x", "160\n4x", "640\n16x"]
    light, dark = save_plots(results, checkout() / "docs" / "images")
    assert light.read_text() != dark.read_text() and results.digest() in dark.read_text()


def test_files_with_cases_become_one_table(checkout):
    pytest.importorskip("matplotlib")
    root = checkout(readme="<!-- bench:overhead -->\n<!-- /bench -->\n")
    cases = {"svdd": {"seconds": 2.5, "overhead": 1.0021, "ci": [1, 2]}, "rbf": {"overhead": 0.00123, "bits": 7}}
    cases["drawing"] = {"pointed": {"frames": 60}}
    body = {"suite": "overhead", "commit": "abc1234", "machine": "a machine", "settings": {"chunk": 4}, "cases": cases}
    (root / "bench" / "results" / "overhead.json").write_text(json.dumps(body))
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    assert cells(page, "") == ["", "seconds", "overhead", "bits"]
    assert (
        "\n|  | pointed: frames |\n| --- | ---: |\n| drawing | 60 |\n" in page
    )  # has nothing in common with the others
    assert cells(page, "SVDD") == ["SVDD", "2.5", "1.002", "-"]
    assert cells(page, "Rollover Budget Forcing") == ["Rollover Budget Forcing", "-", "0.00123", "7"]
    assert "Chunk 4. Measured on a machine, commit `abc1234`." in page
    assert tables.main(["--root", str(root), "--check"]) == 0


def test_suites_about_rewards_show_them_with_intervals(checkout):
    """Curves are of the reward; one budget alone is a table without a picture; labels of ten budgets do not collide."""
    pytest.importorskip("matplotlib")
    from testtime.bench.plots import apart, draw

    rows = [{**r, "reward_ci": [r["reward"] - 0.125, r["reward"] + 0.125], "diversity": 0.25} for r in ROWS]
    readme = (
        "<!-- bench:shapes-diffusion picture -->\n<!-- /bench -->\n<!-- bench:shapes-diffusion -->\n<!-- /bench -->\n"
    )
    root = checkout(rows, readme)
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    first, second = page.split("<!-- /bench -->\n")[:2]
    assert "<picture>" in first and "|" not in first and 'alt="Reward against' in first
    reward = rows[0]["reward"]
    assert f"{reward:.3f} ({reward - 0.125:.3f} to {reward + 0.125:.3f})" in second and "| diversity |" in second
    figure = draw(load_folder(root / "bench" / "results")["shapes-diffusion"])
    assert figure.axes[0].get_title(loc="left").startswith("Reward")
    assert apart(range(1, 11)) == [1, 2, 3, 5, 7, 10] and apart([1, 4, 8, 16]) == [1, 4, 8, 16]
    for file in (root / "docs" / "images").iterdir():
        file.unlink()
    root = checkout([r for r in rows if r["budget"] in (1, 16)], readme)
    assert tables.main(["--root", str(root)]) == 0
    assert "<picture>" not in (root / "README.md").read_text() and not list((root / "docs" / "images").iterdir())


def test_the_readme_of_this_pack_is_up_to_date():
    if not load_folder(tables.ROOT / "bench" / "results"):
        pytest.skip("no benchmark results yet")
    assert tables.update(tables.ROOT, check=True) == []


def test_details_are_shown_where_most_methods_were_measured(checkout):
    rows = [*ROWS, row("best_of_n", 32, verdicts(0.9))]
    folder = checkout(rows)
    assert load_folder(folder / "bench" / "results")["shapes-diffusion"].fullest_budget == 16


def test_parts_and_steps_of_a_file_have_blocks_of_their_own(checkout):
    pytest.importorskip("matplotlib")
    readme = "<!-- bench:x late -->\n<!-- /bench -->\n<!-- bench:x early -->\n<!-- /bench -->\n"
    readme += "<!-- bench:x steps -->\n<!-- /bench -->\n"
    late = [
        row("scores only", 2, verdicts(0.5), gflop_per_image=7.25),
        row("tts_var", 2, verdicts(0.7), gflop_per_image=9.5, diversity=0.3),
    ]
    early = [{"scale": 0, "best": 0.125, "note": None}, {"scale": 1, "best": 0.001, "note": "good"}]
    curves = {
        "prompts": 3,
        "by_step": {"ttgen": {"one": [0.0, 0.5], "two": [0.1, 0.2]}, "direct": {"one": [0, 0.3], "two": [0, 0.1]}},
    }
    root = checkout(readme=readme, name="x", late=late, early=early, curves=curves)
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    assert cells(page, "scores only")[1:] == ["50.0 (45.0 to 55.0)", "0.550", "0.567", "80", "7.2", "0.20"]
    assert cells(page, "late")[-2:] == ["GFLOP", "seconds"]  # what only some rows have is left out
    assert cells(page, "scale") == ["scale", "best", "note"] and cells(page, "1") == ["1", "0.001", "good"]
    assert 'src="docs/images/x-steps.svg"' in page and (root / "docs" / "images" / "x-steps-dark.svg").exists()
    # Other curves: the pictures are out of date, the pages are not.
    curves["by_step"]["ttgen"]["one"][1] = 0.6
    checkout(readme=page, name="x", late=late, early=early, curves=curves)
    assert set(tables.update(root, check=True)) == {
        f"docs/images/x{kind}{ending}.svg" for kind in ("", "-steps") for ending in ("", "-dark")
    }  # fmt: skip


def test_agreement_has_a_picture(checkout):
    pytest.importorskip("matplotlib")
    consistency = [
        {
            "scale": k,
            "side": k + 1,
            "best_is_the_same": 0.3 + k / 10,
            "rank_correlation": k / 7,
            "spread_of_copies": 1 - k / 7,
        }
        for k in range(8)
    ]
    previews = [
        {"preview_side": side, "scale": k, "decode_cost": side**2 / 64, "rank_correlation": -0.1 + side / 8}
        for side in (4, 6)
        for k in range(7)
    ]
    readme = "<!-- bench:x agreement -->\n<!-- /bench -->\n<!-- bench:x previews -->\n<!-- /bench -->\n"
    root = checkout(readme=readme, name="x", consistency=consistency, previews=previews)
    assert tables.main(["--root", str(root)]) == 0 and tables.update(root, check=True) == []
    page, drawn = (root / "README.md").read_text(), (root / "docs" / "images" / "x-agreement.svg").read_text()
    assert 'src="docs/images/x-agreement.svg"' in page and cells(page, "4")[1:3] == ["0", "0.25"]
    assert "6 codes a side" in drawn and "rank correlation" in drawn and "spread of copies" in drawn
    previews[0]["rank_correlation"] = 0.9
    checkout(readme=page, name="x", consistency=consistency, previews=previews)
    assert "docs/images/x-agreement-dark.svg" in tables.update(root, check=True)


def test_an_unknown_part_is_named(checkout):
    root = checkout(readme="<!-- bench:shapes-diffusion lambda -->\n<!-- /bench -->\n")
    with pytest.raises(
        ValueError, match="shapes-diffusion lambda: there is no such part, choose one of full, overview"
    ):
        tables.update(root, check=True)


def test_where_passes_differ_in_size_flops_are_the_budget(checkout):
    pytest.importorskip("matplotlib")
    rows = [{**r, "gflop_per_image": 2.6 * r["budget"]} for r in ROWS]
    root = checkout(rows)
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    assert cells(page, "correct images in %")[1:] == ["N = 1", "N = 4", "N = 16"] and "| at N = 16 |" in page
    by_task = page[page.index("| at N = 16") :]
    assert cells(by_task, "at N = 16")[-2] == "GFLOP" and cells(by_task, "DAS")[-2] == "41.6"
    drawn = (root / "docs" / "images" / "shapes-diffusion.svg").read_text()
    assert "GFLOP per image" in drawn and "forward passes" not in drawn
