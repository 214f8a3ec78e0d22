"""What docs/security.md promises of the code as a whole, read from the code."""

from __future__ import annotations

import ast

import pytest

from .test_architecture import MODULES

TRAINING = "models/tiny/train/"  # scripts of ours on files of ours, not shipped


def calls(*names: str) -> list[tuple[str, ast.Call]]:
    """(module, call) of every call whose name ends with one of ``names``, such as ``torch.load``."""
    found = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if any(name == wanted or name.endswith(f".{wanted}") for wanted in names):
                    found.append((f"{module}:{node.lineno}", node))
    return found


def says(call: ast.Call, name: str, value) -> bool:
    """Whether a call has the keyword ``name=value``, written out."""
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def test_no_pickle_is_executed():
    safe = [place for place, _ in calls("safetensors.torch.load")]  # holds numbers only
    loads = [found for found in calls("torch.load") if found[0] not in safe]
    assert loads
    assert [place for place, call in loads if not says(call, "weights_only", True)] == []
    assert calls("pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "dill.load") == []


@pytest.mark.parametrize("name", ["eval", "exec", "os.system", "os.popen", "compile"])
def test_no_text_becomes_code(name):
    found = [place for place, call in calls(name) if ast.unparse(call.func) == name]
    assert found == []


def test_no_shell():
    assert [place for place, call in calls("Popen", "run", "check_output") if says(call, "shell", True)] == []


def test_numpy_files_hold_no_objects():
    assert [place for place, call in calls("np.load") if says(call, "allow_pickle", True)] == []
