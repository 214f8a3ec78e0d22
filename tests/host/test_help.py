"""Help pages and translations: none is missing, all are what the tool writes, and a real ComfyUI serves them."""

from __future__ import annotations

import importlib.util
import json
import re
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.docs]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("build_help", ROOT / "tools" / "build_help.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(tool):
    return tool.schemas()


def test_every_node_has_a_page_that_names_every_input(found, tool):
    for schema in found:
        file = ROOT / "web" / "docs" / f"{schema.node_id}.md"
        assert file.exists(), (
            f"{schema.node_id} has no page: add it to tools/locales/help.json, run tools/build_help.py"
        )
        text = file.read_text(encoding="utf-8")
        for slot in schema.inputs or ():
            assert f"| `{slot.id}`" in text, f"{file.name} lacks {slot.id}: run tools/build_help.py"
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == {schema.node_id for schema in found}
    assert set(tool.help_texts()) == {schema.node_id for schema in found}


def test_what_people_wrote_is_more_than_the_description(found, tool):
    texts = tool.help_texts()
    for schema in found:
        text = texts[schema.node_id]
        assert len(text["use"]) > 30 and len(text["example"]) > 15
        assert text["use"] not in schema.description


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_node_and_input_is_in_every_language(found, language):
    defined = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(defined) == {schema.node_id for schema in found}
    for schema in found:
        mine = defined[schema.node_id]
        assert mine["display_name"] and mine["description"]
        assert set(mine["inputs"]) == {slot.id for slot in schema.inputs or ()}
        for slot in schema.inputs or ():
            assert mine["inputs"][slot.id].get("tooltip"), f"{schema.node_id}.{slot.id} has no tooltip"
        assert len(mine["outputs"]) == len(schema.outputs or ())


def test_every_text_has_a_german_one(found, tool):
    words = tool.catalogue("de")
    missing = [text for text in tool.texts_of(found) if text not in words]
    assert not missing, f"add to tools/locales/de.json and run tools/build_help.py: {missing}"


def test_pages_and_texts_of_what_is_gone_are_noticed(found, tool, tmp_path, monkeypatch):
    assert not tool.abandoned(tool.files(found)) and not tool.unused(found, "de"), "run tools/build_help.py"
    (tmp_path / "web" / "docs").mkdir(parents=True)
    (tmp_path / "web" / "docs" / "TestTimeThatWas.md").touch()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert [path.stem for path in tool.abandoned(tool.files(found))] == ["TestTimeThatWas"]
    monkeypatch.setattr(tool, "catalogue", lambda language: {"said no more": "nicht mehr gesagt"})
    assert tool.unused(found, "de") == ["said no more"]


def test_the_section_of_templates_has_a_name_in_the_folders_that_people_get():
    """Cloned, the folder has the repository's name; installed from the registry, the project's."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = re.search(r'^name = "(.+)"', text, re.MULTILINE)[1]
    repository = re.search(r'^Repository = ".+/(.+)"', text, re.MULTILINE)[1]
    for language in ("en", "de"):
        said = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
        assert set(said["templateWorkflows"]["category"]) == {project, repository}
    (section,) = set(said["templateWorkflows"]["category"].values())
    assert f"*{section}*" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_files_are_what_the_tool_writes(found, tool):
    for path, text in tool.files(found).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is out of date: run tools/build_help.py"


def test_nothing_in_a_translation_is_markup_for_the_front_end():
    """vue-i18n reads braces, @, | and $ as its own; they only appear quoted."""
    for file in (ROOT / "locales").glob("*/*.json"):
        for text in re.findall(r'"(?:[^"\\]|\\.)*"', file.read_text(encoding="utf-8")):
            rest = re.sub(r"\{'[{}@|$]'\}", "", json.loads(text))
            assert not set(rest) & set("{}@|$"), (file.name, text)


def test_comfyui_serves_them(comfy_server):
    def get(path: str) -> str:
        with urllib.request.urlopen(comfy_server.url + path, timeout=60) as response:
            return response.read().decode()

    served = json.loads(get("/i18n"))
    assert served["de"]["nodeDefs"]["TestTimeBestOfN"]["description"].startswith("Erzeugt N Bilder")
    assert served["de"]["settings"]["TestTime_Live"]["name"] == "Suchen zeigen, während sie laufen"
    assert served["en"]["nodeCategories"]["verifiers"] == "verifiers"
    module = json.loads(get("/object_info/TestTimeBestOfN"))["TestTimeBestOfN"]["python_module"]
    page = get(f"/extensions/{module.split('.')[1]}/docs/TestTimeBestOfN.md")  # the address that the front end asks for
    assert page.startswith("# Best-of-N")
