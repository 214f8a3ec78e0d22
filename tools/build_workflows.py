"""Write the example workflows: ``python tools/build_workflows.py [NAME ...] [--thumbnails]``.

The workflows of the ``workflow_*.py`` beside it are written in UI format to ``workflows/`` and in API format to
``workflows/api/``. Node definitions come from a ComfyUI that is started headless with this pack alone, or from
``--server``. ``--thumbnails`` also runs the workflows of the embedded model and makes each one's picture for the
template browser. ``--check`` writes nothing and fails where a file is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

import workflow_flow
import workflow_hand
import workflow_infinity
import workflow_methods
import workflow_models
import workflow_ttgen
import workflow_uses
import workflow_video
from thumbnails import card, thumbnail
from workflow_graph import dump
from workflow_names import NEEDS, TITLES

from testtime.installation.comfyui import HeadlessOptions
from testtime.installation.running import server_for

PARTS = (
    workflow_methods,
    workflow_flow,
    workflow_uses,
    workflow_hand,
    workflow_infinity,
    workflow_ttgen,
    workflow_video,
    workflow_models,
)
DESCRIPTIONS = {function.__name__: function for part in PARTS for function in part.WORKFLOWS}
"""Every workflow by its short name; ``TITLES`` has those that users see in ComfyUI's template browser."""
NEED_CHECKPOINT = {name for part in PARTS for name in getattr(part, "NEED_CHECKPOINT", ())}
FOLDER = Path(__file__).resolve().parent.parent / "workflows"


def files(object_info: dict, names: list[str]) -> dict[Path, str]:
    """Text of every file of the workflows called ``names``: both formats. Those that need a newer host are left out."""
    result = {}
    for name in names:
        workflow = DESCRIPTIONS[name]()
        if missing := workflow.unknown(object_info):
            print(f"{name} is left as it is: this ComfyUI has no {', '.join(missing)}")
            continue
        result[FOLDER / f"{TITLES[name]}.json"] = dump(workflow.ui(object_info))
        result[FOLDER / "api" / f"{name}.json"] = dump(workflow.api(object_info))
    return result


def differences(expected: dict[Path, str]) -> list[str]:
    """What is wrong with the files, one line each; empty when all is well."""
    lines = []
    for path, text in expected.items():
        if not path.exists():
            lines.append(f"{path.relative_to(FOLDER)} is missing")
        elif path.read_text(encoding="utf-8") != text:
            lines.append(f"{path.relative_to(FOLDER)} is not what the description gives")
    return lines + [f"{path.relative_to(FOLDER)} has no description" for path in strangers()]


def strangers() -> list[Path]:
    """Files of workflows that are not described."""
    shown = {TITLES[name] for name in DESCRIPTIONS}
    found = [path for pattern in ("*.json", "*.jpg") for path in FOLDER.glob(pattern) if path.stem not in shown]
    return sorted(found + [path for path in FOLDER.glob("api/*.json") if path.stem not in DESCRIPTIONS])


def make_picture(name: str, url: str) -> None:
    """Write the picture of a workflow."""
    target = FOLDER / f"{TITLES[name]}.jpg"
    if name in NEED_CHECKPOINT:
        card(*TITLES[name].removesuffix(NEEDS).strip().split(" - "), target)
    else:
        thumbnail(FOLDER / "api" / f"{name}.json", url, target)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows to write; default: all")
    parser.add_argument("--thumbnails", action="store_true", help="also run them and make their pictures")
    parser.add_argument("--check", action="store_true", help="only compare the files with what would be written")
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI to use")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(DESCRIPTIONS))
    if unknown:
        parser.error(f"no workflow called {', '.join(unknown)}; there are {', '.join(DESCRIPTIONS)}")
    names = options.names or list(DESCRIPTIONS)
    with server_for(options.server, HeadlessOptions(only_this_pack=True)) as (url, _):
        with urllib.request.urlopen(url + "/object_info", timeout=60) as response:
            expected = files(json.load(response), names)
        if options.check:
            wrong = differences(expected)
            raise SystemExit("\n".join(wrong) or 0)
        for path, text in expected.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for path in strangers():
            path.unlink()
        if options.thumbnails:
            for name in names:
                make_picture(name, url)


if __name__ == "__main__":
    main()
