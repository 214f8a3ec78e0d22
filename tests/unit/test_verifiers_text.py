"""What verifiers read of a prompt: the words, without the syntax of prompt boxes, cleaned as CLIP's authors do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from testtime.chat.syntax import plain
from testtime.verifiers.base import VerifierError, check_prompts
from testtime.verifiers.embedded import ShapesCLIPVerifier
from testtime.verifiers.objects.requirements import parse
from testtime.verifiers.text import cleaned

TEXTS = json.loads((Path(__file__).parent / "official_facts.json").read_text(encoding="utf-8"))["texts"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a (two dogs:1.2) BREAK a cat", "a two dogs, a cat"),
        ("((a (b):1.3):0.5)", "a b"),
        ("(masterpiece:1.1), cat, embedding:easynegative", "masterpiece, cat"),
        (r"smile \(yes\)", "smile (yes)"),
        ("(ratio 3:4)", "ratio 3"),  # what ComfyUI reads
        ("(a:b) c", "a:b c"),
        ("<lora:detail:0.8> a cat", "a cat"),
        ("cat BREAK", "cat"),
        ("(open", "(open"),
        ("closed)", "closed)"),
    ],
)
def test_syntax_is_not_read(prompt, said):
    assert plain(prompt) == said


def test_reading_twice_is_reading_once():
    """An ensemble hands its members what it has read itself."""
    (once,) = check_prompts(r"smile \(yes\) (x:1.2)", 1, "rank")
    assert check_prompts([once], 1, "clip_score") == ["smile (yes) x"]


@pytest.mark.parametrize("prompt", ["a  cat,, and\na dog", "break a leg", "3:4", "", "a\u201ccat\u201d"])
def test_a_prompt_without_syntax_stays_to_the_letter(prompt):
    assert plain(prompt) is prompt


@pytest.mark.parametrize(
    "prompt", ["(" * 100_000, "()" * 100_000, "(a:1.2" * 50_000, "\n" * 100_000 + "(", ", " * 100_000 + "BREAK",
               "(" * 50_000 + "a" + ":1)" * 50_000, "embedding:" * 50_000, "<lora:" * 50_000]
)  # fmt: skip
def test_time_grows_with_length_alone(prompt):
    begun = time.perf_counter()
    plain(prompt)
    assert time.perf_counter() - begun < 2


def test_verifiers_and_the_parser_of_objects_read_the_same():
    images = torch.rand(2, 192, 192, 3, generator=torch.Generator().manual_seed(0))
    verifier = ShapesCLIPVerifier()
    torch.testing.assert_close(verifier.score(images, "(a red circle:1.3)"), verifier.score(images, "a red circle"))
    assert parse("(two dogs:1.2) BREAK a red ball") == parse("two dogs, a red ball")


def test_a_prompt_of_syntax_alone_is_empty():
    with pytest.raises(VerifierError, match=r"embedding:foo.*nothing is left"):
        check_prompts("embedding:foo", 1, "clip_score")
    assert check_prompts("embedding:foo", 2, "jpeg", required=False) == ["", ""]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ftfy", [True, False])
def test_cleaning_is_that_of_the_published_tokenizers(text, ftfy, monkeypatch):
    """Numbers of HPSv2's own tokenizer, see ``bench.official.facts``; with ftfy and without."""
    if ftfy:
        pytest.importorskip("ftfy", reason="ftfy is not installed; the pack's own cleaning is tested without it")
    else:
        monkeypatch.setitem(sys.modules, "ftfy", None)
    assert cleaned(text) == TEXTS[text]
