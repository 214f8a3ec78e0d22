"""Reading workflow files and --set: every wrong input gets one message that says what would be right."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from testtime.cli.main import main
from testtime.cli.run import check_folder
from testtime.graph.check import check_known_nodes, check_links
from testtime.graph.convert import Origin
from testtime.graph.workflow import apply_assignments, read_workflow
from testtime.installation.answers import explain_failure, explain_refusal
from testtime.installation.client import normalise_url, text_lines, unused_path, websocket_url
from testtime.installation.errors import EXIT_BAD_INPUT, BadInput

INFO = {
    "Sampler": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0}],
                "cfg": ["FLOAT", {}],
                "add_noise": ["BOOLEAN", {}],
                "scheduler": [["normal", "karras"], {}],
                "size": ["COMBO", {"options": [512, 1024]}],
                "model": ["MODEL", {}],
            },
            "optional": {"note": ["STRING", {}]},
        },
        "display_name": "The Sampler",
    },
    "Text": {"input": {"required": {"text": ["STRING", {}]}}},
}


def workflow():
    return {
        "3": {
            "class_type": "Sampler",
            "inputs": {"seed": 1, "cfg": 2.0, "model": ["4", 0]},
            "_meta": {"title": "Main"},
        },
        "4": {"class_type": "Text", "inputs": {"text": "a"}, "_meta": {"title": "v1.5 prompt"}},
        "5": {"class_type": "Text", "inputs": {"text": "b"}},
    }


@pytest.mark.parametrize("name", ["3", "Main", "main", "Sampler", "sampler"])
def test_node_is_found_by_id_title_or_class(name):
    assert apply_assignments(workflow(), [f"{name}.seed=9"], INFO)["3"]["inputs"]["seed"] == 9


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("3.seed=12", 12),
        ("3.cfg=7", 7.0),
        ("3.add_noise=false", False),
        ("3.add_noise=Yes", True),
        ("3.scheduler=karras", "karras"),
        ("3.size=1024", 1024),
        ("3.note=a = b. c", "a = b. c"),
        ("3.note=12", "12"),
    ],
)
def test_values_take_the_type_of_the_input(assignment, expected):
    name = assignment.partition("=")[0].split(".")[1]
    value = apply_assignments(workflow(), [assignment], INFO)["3"]["inputs"][name]
    assert value == expected
    assert type(value) is type(expected)


def test_title_may_contain_dots():
    assert apply_assignments(workflow(), ["v1.5 prompt.text=new"], INFO)["4"]["inputs"]["text"] == "new"


def test_the_given_workflow_is_not_changed():
    original = workflow()
    apply_assignments(original, ["3.seed=9"], INFO)
    assert original == workflow()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("3.seed", ["NODE.INPUT=VALUE"]),
        ("seed=3", ["NODE.INPUT=VALUE"]),
        ("Smapler.seed=3", ["no node has that id", "Did you mean Sampler?"]),
        ("maim.seed=3", ["Did you mean Main?"]),
        ("3.shceduler=karras", ["no input 'shceduler'", "Did you mean scheduler?"]),
        ("9.seed=3", ["no node has that id", "3 Main (Sampler): seed, cfg", "5 Text: text"]),
        ("Text.text=x", ["several nodes", "4, 5"]),
        ("3.sed=3", ["no input 'sed'", "seed, cfg, add_noise"]),
        ("3.seed=1.5", ["3.seed=1.5", "whole number"]),
        ("3.cfg=high", ["3.cfg=high", "a number"]),
        ("3.add_noise=maybe", ["true or false"]),
        ("3.model=x", ["MODEL socket"]),
    ],
)
def test_wrong_assignments_name_what_would_be_right(assignment, words):
    with pytest.raises(BadInput) as caught:
        apply_assignments(workflow(), [assignment], INFO)
    for word in words:
        assert word in str(caught.value)


def test_unknown_nodes_are_all_listed_with_their_packs():
    bad = {
        "1": {"class_type": "TestTimeSearchKSampler", "inputs": {}},
        "2": {"class_type": "Foo", "inputs": {}},
        "3": {"class_type": "Foo", "inputs": {}},
        "4": {"class_type": "Text", "inputs": {}},
    }
    with pytest.raises(BadInput) as caught:
        check_known_nodes(bad, INFO, {"Foo": Origin("foo-pack")})
    message = str(caught.value)
    assert "Foo (node 2, 3): install the pack foo-pack" in message
    assert "TestTimeSearchKSampler (node 1): of Test-Time Scaling" in message
    assert "Text" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{not json", "is not JSON (line 1, column 2"),
        ("[1, 2]", "not a ComfyUI workflow"),
        ("{}", "not a ComfyUI workflow"),
        ('{"1": {"inputs": {}}}', "not a ComfyUI workflow"),
        ('{"1": {"class_type": "A", "inputs": []}}', "not a ComfyUI workflow"),
        ('{"prompt": {"1": {"class_type": "A", "inputs": {}}}}', "not a ComfyUI workflow"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, words, capsys):
    path = tmp_path / "workflow.json"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        read_workflow(path)
    assert words in str(caught.value)
    assert main(["run", str(path)]) == EXIT_BAD_INPUT
    assert words in capsys.readouterr().err


def test_binary_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read as a text file"):
        read_workflow(path)
    with pytest.raises(BadInput, match="no such file"):
        read_workflow(tmp_path / "none.json")


def test_files_of_windows_editors_are_read(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow()), encoding="utf-8-sig")
    assert read_workflow(path) == workflow()


def test_nodes_without_inputs_and_titles_that_are_none(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text('{"1": {"class_type": "Text", "_meta": null}, "2": {"class_type": "Text", "_meta": {}}}')
    changed = apply_assignments(read_workflow(path), ["1.text=new"], INFO)
    assert changed["1"]["inputs"] == {"text": "new"} and changed["2"]["inputs"] == {}
    with pytest.raises(BadInput, match="several nodes: 1, 2"):
        apply_assignments(read_workflow(path), ["text.text=new"], INFO)


def test_links_to_nothing_and_circles_are_refused():
    check_links(workflow(), INFO)
    lost = workflow()
    lost["3"]["inputs"]["model"] = ["99", 0]
    with pytest.raises(BadInput, match=r"3 Main .Sampler.: input 'model' is linked to node 99, which is not"):
        check_links(lost, INFO)
    circle = workflow()
    circle["4"]["inputs"]["text"] = ["3", 0]
    with pytest.raises(BadInput, match=r"wait for each other: .*3 Main.* -> .*4 v1.5 prompt"):
        check_links(circle, INFO)


def test_output_folder_is_checked_before_anything_runs(tmp_path, capsys):
    check_folder(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow()))
    # No server is reached: nothing listens on port 9.
    command = ["run", str(path), "--server", "http://127.0.0.1:9", "--out", str(tmp_path / "file" / "deep")]
    assert main(command) == EXIT_BAD_INPUT
    assert "is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-3", "soon", "nan"])
def test_timeout_must_be_positive(value, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "workflow.json", f"--timeout={value}"])
    assert caught.value.code == EXIT_BAD_INPUT
    assert f"{value} is not a positive number" in capsys.readouterr().err


def test_both_formats_are_read(tmp_path):
    for content in (workflow(), {"nodes": [], "links": []}):
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(content))
        assert read_workflow(path) == content


def test_refusal_names_node_input_and_reason():
    answer = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {
            "3": {
                "class_type": "Sampler",
                "errors": [{"message": "Value -1 smaller than min of 0", "details": "seed"}],
            },
        },
    }
    assert "3 Main: Value -1 smaller than min of 0: seed" in explain_refusal(answer, workflow())
    assert "no outputs" in explain_refusal({"error": {"message": "Prompt has no outputs"}, "node_errors": {}}, {})
    assert "no reason given" in explain_refusal({}, {})


def test_addresses():
    assert normalise_url("localhost:8188/") == "http://localhost:8188"
    assert websocket_url("https://host", "me") == "wss://host/ws?clientId=me"
    for wrong in ("ftp://host", "", "http://"):
        with pytest.raises(BadInput, match=r"http://127.0.0.1:8188"):
            normalise_url(wrong)


def test_files_are_never_overwritten(tmp_path):
    assert unused_path(tmp_path / "a.png") == tmp_path / "a.png"
    (tmp_path / "a.png").touch()
    (tmp_path / "a-2.png").touch()
    assert unused_path(tmp_path / "a.png") == tmp_path / "a-3.png"


def test_text_output_may_be_a_string_or_a_list():
    assert text_lines({"text": ["a", 2]}) == ["a", "2"]
    assert text_lines({"text": "a"}) == ["a"]


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("testtime ")
    assert main([]) == EXIT_BAD_INPUT


def test_a_sentence_of_a_node_is_told_once():
    """The server repeats it for every input that the node checks itself, and calls it by that input's name."""
    sentence = "prompt is empty: say what the image should show"
    errors = [
        {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": f"{name} - {sentence}",
        }
        for name in ("steps", "max_nfe", "prompt")
    ]
    errors.append({"type": "value_smaller_than_min", "message": "Value 0 smaller than min of 1", "details": "cfg"})
    told = explain_refusal({"node_errors": {"3": {"class_type": "X", "errors": errors}}}, {})
    assert told.splitlines()[1:] == [f"  3 X: {sentence}", "  3 X: Value 0 smaller than min of 1: cfg"]


@pytest.mark.parametrize(
    ("kind", "message", "told"),
    [
        ("/opt/ComfyUI/custom_nodes/testtime.samplers.protocols.SearchError", "steps is 0", "failed: steps is 0"),
        ("torch.OutOfMemoryError", "no memory", "failed: OutOfMemoryError: no memory"),
        ("ValueError", "", "failed: ValueError"),
        (None, "", "failed: error"),
    ],
)
def test_a_failure_is_told_without_paths_of_modules(kind, message, told):
    data = {"node_id": "3", "node_type": "X", "exception_type": kind, "exception_message": message}
    assert explain_failure(data) == f"node 3 (X) {told}"


def test_a_long_failure_is_cut():
    told = explain_failure({"exception_message": "x" * 9000})
    assert len(told) < 2100 and told.endswith("(9007 characters)")


def test_long_warnings_are_cut_on_the_terminal(capsys, monkeypatch):
    """Whatever a library says in an exception, the line in the terminal stays a line; --verbose shows all of it."""
    import logging

    from testtime.cli import main as cli

    def warn(options):
        logging.getLogger("testtime").warning("the verifier failed: %s", "x" * 9000)
        return 0

    command = SimpleNamespace(main=warn, add_arguments=lambda parser: None)
    monkeypatch.setattr(cli, "command_module", lambda name: command)
    assert cli.main(["doctor"]) == 0
    short = capsys.readouterr().err
    assert "the verifier failed: xxx" in short and len(short) < 230 and "(9021 characters)" in short
    assert cli.main(["--verbose", "doctor"]) == 0
    assert len(capsys.readouterr().err) > 9000
