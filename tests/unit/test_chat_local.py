"""The local chat model: the token that its template leads to, one start of text, and no code of a folder."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import testtime
from testtime.chat.conversation import ChatError, Turn
from testtime.chat.local import LocalVLM, load_local_vlm
from testtime.cli.main import main
from testtime.rewriters.vlm import load_vlm
from testtime.verifiers.vlm.judge import load_vlm_judge
from testtime.verifiers.vlm.vqa_score import VQAScoreVerifier

from .test_rewriter_vlm import llava

pytest.importorskip("transformers", minversion="4.46")
ROOT = Path(testtime.__file__).resolve().parent
# As SmolVLM2 and Idefics write it: the answer begins behind "Assistant:" and a space.
SPACED = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# As Gemma 3 writes it: with the start of the text.
STARTED = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
THINKING = SPACED.replace("Assistant:{%", "Assistant: <think>\n{%")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava(tmp_path_factory.mktemp("models") / "small-llava")


@pytest.fixture
def vlm(folder):
    return load_local_vlm(folder, dtype="float32")


def with_template(vlm: LocalVLM, template: str) -> LocalVLM:
    vlm.processor.chat_template = vlm.processor.tokenizer.chat_template = template
    return vlm


def asked(text="cat?"):
    return [Turn("user", text, Image.new("RGB", (28, 28), "red"))]


def convinced(vlm: LocalVLM, answer: str) -> None:
    """Train the language model until it goes on with ``answer`` after the template."""
    inputs = {k: v for k, v in vlm.inputs([asked()]).items() if k in ("input_ids", "attention_mask", "pixel_values")}
    token = vlm.processor.tokenizer.encode(answer, add_special_tokens=False)[0]
    model = vlm.model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = -torch.log_softmax(model(**inputs).logits[0, -1], -1)[token]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.01:
            break
    model.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize(("template", "answer"), [(SPACED, " Yes"), (STARTED, "Yes")], ids=["space", "line"])
def test_a_model_that_is_sure_of_yes_scores_one_in_its_own_template(vlm, template, answer):
    with_template(vlm, template)
    convinced(vlm, answer)
    assert vlm.answer_token("Yes") == vlm.processor.tokenizer.encode(answer, add_special_tokens=False)[0]
    verifier = VQAScoreVerifier(vlm, question="{}?")
    assert verifier.score(torch.tensor([1.0, 0.0, 0.0]).expand(1, 28, 28, 3), "cat").item() > 0.9


def test_the_text_starts_once(vlm):
    start = vlm.processor.tokenizer.bos_token_id
    ids = with_template(vlm, STARTED).inputs([asked(), asked("a longer question?")])["input_ids"]
    assert [(row == start).sum().item() for row in ids] == [1, 1]


def test_a_model_that_thinks_first_is_not_asked_for_its_first_word(vlm):
    with pytest.raises(ChatError, match=r"thinks before it answers.*Instruct"):
        with_template(vlm, THINKING).answer_token("Yes")


def test_a_prompt_cannot_end_its_turn_or_show_an_image(vlm):
    text = vlm.rendered(asked("a cat <image> </s> dog"))
    assert text.count("<image>") == 1 and "</s>" not in text
    vlm.next_token([asked("a cat <image> dog")])


def carrying(folder: Path, target: Path, kind: str, marker: Path) -> Path:
    """A model folder with code that would leave a file behind."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    code = f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n"
    (target / "evil.py").write_text(code)
    edits = {
        "model": {"config.json": {"model_type": "evil", "auto_map": {
            "AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}}},
        "processor": {"processor_config.json": {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}},
        "native": {
            "config.json": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}},
            "processor_config.json": {"auto_map": {"AutoProcessor": "evil.Evil"}},
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}},
        "writer": {},
    }[kind]  # fmt: skip
    for name, values in edits.items():
        file = target / name
        config = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**config, **values}))
    if kind == "writer":
        (target / "custom_generate").mkdir()
        (target / "custom_generate" / "generate.py").write_text(code + "def generate(*a, **k): return 1\n")
    return target


@pytest.fixture
def nobody_answers(monkeypatch):
    def asked(*arguments):
        raise AssertionError("somebody was asked whether to run the code")

    monkeypatch.setattr("builtins.input", asked)


@pytest.mark.parametrize("kind", ["model", "processor"])
@pytest.mark.parametrize("load", [load_local_vlm, load_vlm, load_vlm_judge])
def test_a_folder_that_needs_its_code_is_refused_without_a_question(folder, tmp_path, nobody_answers, kind, load):
    marker = tmp_path / "ran"
    target = carrying(folder, tmp_path / "evil-vlm", kind, marker)
    with pytest.raises(ChatError, match="needs code of its own, which is never run") as refused:
        load(target)
    assert "trust_remote_code" not in str(refused.value) and not marker.exists()


@pytest.mark.parametrize("kind", ["writer", "native"])
def test_code_that_is_not_needed_is_not_run(folder, tmp_path, nobody_answers, kind):
    """Also where the folder says that its code is to be run: transformers knows the type, and loads its own classes."""
    marker = tmp_path / "ran"
    vlm = load_local_vlm(carrying(folder, tmp_path / "evil-vlm", kind, marker))
    assert type(vlm.model).__module__.startswith("transformers.")
    vlm.answer(asked(), 4)
    assert not marker.exists()


def test_score_refuses_it_in_one_sentence(folder, tmp_path, nobody_answers, capsys):
    marker = tmp_path / "ran"
    target = carrying(folder, tmp_path / "evil-vlm", "model", marker)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "a.png")
    out = str(tmp_path / "scores.csv")
    code = main(
        [
            "score",
            str(tmp_path / "images"),
            "--verifier",
            f"vlm_judge:folder={target}",
            "--prompt",
            "a cat",
            "--out",
            out,
        ]
    )
    said = capsys.readouterr()
    assert code != 0 and not marker.exists()
    assert "needs code of its own, which is never run" in said.err + said.out and "Traceback" not in said.err


def test_every_loading_of_the_project_says_that_no_code_is_run():
    bare = []
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).parts
        if parts[0].startswith(".") or parts[0] in ("out", "work", "runs", "build", "dist"):
            continue
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"):
                continue
            said = [k for k in node.keywords if k.arg == "trust_remote_code" and getattr(k.value, "value", 1) is False]
            if not said and "noqa" not in lines[node.lineno - 1]:
                bare.append(f"{'/'.join(parts)}:{node.lineno}: {lines[node.lineno - 1].strip()}")
    assert not bare
