"""Make ``docs/images/hero.png`` from real searches on the included diffusion model and put it into README.md.

    .venv/bin/python tools/build_hero.py            # a minute or two; needs Chromium

Tasks and seeds are named below and everything that comes out is shown: nothing is picked by its result. A tick means
exactly what the prompt asks for, so that a visitor who counts comes to the same verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import sys
import tempfile
from html import escape
from itertools import product
from pathlib import Path

from build_docs import README, ROOT, fill  # beside this file
from PIL import Image

HERO = ROOT / "docs" / "images" / "hero.png"
METHODS = ("plain", "best_of_n", "svdd", "fk")
TASKS = ("two_object", "counting", "color_attr")  # in which one can count what is asked for
SEEDS = (0, 1)
WIDTH = 1280
STYLE = """
body { margin: 0; padding: 0; background: #fbfaf7; color: #1d2129;
  font: 17px/1.3 system-ui, "Segoe UI", Roboto, sans-serif; }
main { width: 1280px; box-sizing: border-box; padding: 30px 30px 22px; }
.grid { display: grid; grid-template-columns: 168px repeat(var(--columns), 1fr); gap: 12px 12px; align-items: center; }
.prompt { font-size: 15.5px; font-weight: 550; text-align: center; align-self: end; padding: 0 2px 2px; }
.name { font-size: 20px; font-weight: 680; letter-spacing: -0.01em; }
.fine { color: #626a76; font-size: 14.5px; font-weight: 450; }
.right { color: #14804a; font-weight: 680; }
figure { margin: 0; position: relative; border-radius: 12px;
  padding: 5px; background: #fff; border: 1px solid #e3e0d8; }
figure.good { border-color: #14804a; box-shadow: 0 0 0 1px #14804a; }
img { display: block; width: 100%; aspect-ratio: 1; border-radius: 8px; }
figure b { position: absolute; top: 10px; right: 10px; width: 25px; height: 25px; border-radius: 50%; color: #fff;
  display: grid; place-items: center; font-size: 15px; box-shadow: 0 1px 4px #0005; background: #c2362b; }
figure.good b { background: #14804a; }
"""


def results() -> list[dict]:
    """A row per prompt and method: text, image (PNG), whether it is right, forward passes."""
    from testtime.demo.backends import LibraryBackend, Settings, judge
    from testtime.shapes_world.captions import sample_prompt

    rows, networks = [], None
    for seed in SEEDS:
        backend = LibraryBackend(Settings(seed=seed), networks)
        networks = backend.networks
        for task, method in product(TASKS, METHODS):
            prompt = sample_prompt(seed, task)
            entry = backend.run(method, prompt)
            png = io.BytesIO()
            Image.fromarray(entry.image).save(png, "PNG")
            right = judge(entry.image, prompt)
            rows.append(
                {"text": prompt.text, "method": method, "image": png.getvalue(), "right": right, "nfe": entry.nfe}
            )
    return rows


def picture(row: dict) -> str:
    """One result as HTML."""
    data = base64.b64encode(row["image"]).decode()
    kind, mark = ("good", "&#10003;") if row["right"] else ("bad", "&#10007;")
    return f"<figure class={kind}><img src='data:image/png;base64,{data}'><b>{mark}</b></figure>"


def html(rows: list[dict]) -> str:
    """The hero as a page."""
    from testtime.reports.names import method_name

    prompts = list(dict.fromkeys(row["text"] for row in rows))
    table = {(row["method"], row["text"]): row for row in rows}
    plain = table["plain", prompts[0]]["nfe"]
    cells = ["<div></div>", *(f"<div class=prompt>{escape(text)}</div>" for text in prompts)]
    for method in METHODS:
        mine = [table[method, text] for text in prompts]
        times = round(sum(row["nfe"] for row in mine) / len(mine) / plain, 1)
        cost = "one sample" if method == "plain" else f"{times:g} &times; the passes"
        right = sum(row["right"] for row in mine)
        cells.append(
            f"<div><div class=name>{method_name(method)}</div><div class=fine>{cost}</div>"
            f"<div class=fine><span class=right>{right}</span> of {len(mine)} right</div></div>"
        )
        cells += [picture(row) for row in mine]
    grid = f"<div class=grid style='--columns:{len(prompts)}'>{''.join(cells)}</div>"
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><main>{grid}</main>"


def caption() -> str:
    """The README's lines for the picture."""
    from testtime.demo.backends import Settings
    from testtime.reports.names import task_name

    alt = "The same prompts drawn by plain sampling and by three searches, each marked right or wrong"
    tasks = ", ".join(task_name(task).lower() for task in TASKS)
    seeds = " and ".join(map(str, SEEDS))
    return (
        f"![{alt}](docs/images/hero.png)\n\n"
        f"*The included diffusion model on two prompts from each of three tasks ({tasks}), seeds {seeds}, "
        f"{Settings().steps} steps. Right means exactly what the prompt asks for, as counted by an evaluator that no "
        f"search can see. Made by `tools/build_hero.py`, no cherry-picking.*"
    )


async def shoot(page: Path, target: Path) -> None:
    """Photograph the page's content at twice its size."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Browser

    async with Browser(width=WIDTH, height=900) as browser:
        await browser.open(page.as_uri())
        await browser.wait_for("[...document.images].length && [...document.images].every(image => image.complete)")
        height = await browser.run("document.querySelector('main').offsetHeight")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1.5}
        shot = await browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERO)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "hero.html"
        page.write_text(html(results()), encoding="utf-8")
        asyncio.run(shoot(page, options.out))
    if options.out == HERO:
        text = README.read_text(encoding="utf-8")
        README.write_text(fill(text, "hero", caption()), encoding="utf-8")
    sys.stdout.write(f"{options.out}\n")


if __name__ == "__main__":
    main()
