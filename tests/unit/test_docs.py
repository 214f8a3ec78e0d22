"""The documentation: links lead somewhere, code blocks run, every method and verifier is described."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import testtime
from testtime.models.tiny.loading import WEIGHTS
from testtime.samplers.methods.registry import ROWS
from testtime.verifiers import registry

pytestmark = pytest.mark.docs

ROOT = Path(testtime.__file__).resolve().parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_no_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|work|tmp)/|localhost", text), "a path of somebody's machine"


@pytest.mark.parametrize("name", ["docs/library.md", "docs/scale.md"])
@pytest.mark.skipif(not (WEIGHTS / "diffusion.safetensors").exists(), reason="the generators' weights are not there")
def test_code_blocks_run(name, capsys):
    blocks = re.findall(r"```python\n(.*?)```", read(name), re.DOTALL)
    assert blocks
    scope: dict = {"__name__": "documentation"}
    for block in blocks:  # one after the other, as somebody would paste them
        exec(compile(block, name, "exec"), scope)  # noqa: S102
    assert capsys.readouterr().out


def test_every_method_is_described():
    tool = load_tool("build_docs")
    page = read("docs/methods.md")
    assert page.split("<!-- methods -->\n")[1].split("\n<!-- /methods -->")[0] == tool.method_table(), (
        "run tools/build_docs.py"
    )
    for row in ROWS:
        assert f"\n## {row.title}\n" in page


def test_every_verifier_is_described():
    table = re.findall(r"^\| `(\w+)` \|", read("docs/verifiers.md").split("## The included")[0], re.MULTILINE)
    assert sorted(table) == registry.names()


def test_every_feature_of_models_is_in_their_list():
    from ..host.test_features import FEATURES

    page = read("docs/models.md")
    assert all(f"\n- {name}\n" in page for name in FEATURES)


def test_every_image_model_is_in_its_table():
    """As tests/host/zoo_models.py has it, refusals word by word; tools/build_models.py writes the page."""
    from ..host.zoo_models import ZOO

    rows = [line.split(" | ") for line in read("docs/models.md").splitlines() if line.startswith("| ")]
    table = {row[0].removeprefix("| "): row for row in rows}
    assert len({model.title for model in ZOO.values()}) == len(ZOO)
    for model in ZOO.values():
        row = table[model.title]
        assert row[1] == f"`{model.family}`"
        if model.refusal:
            assert row[2].removesuffix(" |") == model.refusal
        else:
            assert row[-2] == ("no" if model.no_gradient else "yes")
