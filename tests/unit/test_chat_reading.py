"""Answers of models, malformed in every way: read, or refused in the pack's own words, and never for longer than this.

``TESTTIME_FUZZ=2000`` tries as many; every case is a function of its number, so that a failure can be run again alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time

import pytest

from testtime.chat.client import _Unreadable, read_reply
from testtime.chat.conversation import NotUnderstood, Reply, shown, writable
from testtime.chat.reading import answer_in, last_object, loosely_parsed
from testtime.chat.syntax import carried_over, embeddings, plain
from testtime.rewriters.parsing import parse, usable
from testtime.verifiers.vlm.endpoint import chance_of_yes, read
from testtime.verifiers.vlm.rubric import AXES, OVERALL, RUBRICS, read_unified, read_yes_no

COUNT = int(os.environ.get("TESTTIME_FUZZ", "150"))
SLOWEST = 1.0  # seconds of the processor
GRADES = json.dumps({name: {"explanation": "because", "score": 7} for name in (*AXES, OVERALL)})
REWRITES = json.dumps({"aligned": False, "missing": ["a fox"], "prompts": ["a red fox beside a bicycle"]})
LINES = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 2"

FREEZING = {
    "line breaks": "\n" * 10_000,
    "line breaks before a list": "\n" * 10_000 + "1. a red fox beside a bicycle",
    "open brackets": "(" * 20_000,
    "nested brackets": "(" * 10_000 + "a cat" + ":1.1)" * 10_000,
    "brackets of all kinds": "([{" * 7_000,
    "JSON without end": '{"a":' * 10_000,
    "closed JSON, 30,000 deep": '{"a":' * 30_000 + "1" + "}" * 30_000,
    "lists, 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "digits behind a colon": "(cat:" + "1" * 20_000 + "x)",
    "colons": "(" + ":1" * 10_000 + ")",
    "spaces in a grade": json.dumps({"accuracy": "5" + " " * 20_000 + "x"}),
    "aspects without a colon": "alignment score " * 5_000,
    "aspects far from their word": "alignment" + "\n" * 20_000 + "score: 3",
    "quotes": '{"a": "' * 5_000,
    "backslashes": '{"a": "' + "\\" * 20_001,
    "apostrophes": "{'a': '" + "\\'" * 10_000,
    "fences": "```json\n" * 3_000,
    "thoughts": "<think>" * 5_000 + "</think>" * 5_000,
    "commas": "{" + ", " * 20_000 + "}",
    "embeddings": "(" * 10_000 + "embedding:" * 1_000 + ")" * 10_000,
    "prompts": json.dumps({"prompts": [f"a fox number {k}" for k in range(1_500)]}),
    "64 kB of prose": "The fox is red. " * 4_000,
}  # fmt: skip


def everything(text: str) -> None:
    """Every reader of what a model wrote; only the pack's own exception may come out."""
    for read_one in (read_yes_no, read_unified, RUBRICS["axes"].read, last_object, parse):
        try:
            read_one(text)
        except NotUnderstood as error:
            assert 0 < len(str(error)) < 400
    with contextlib.suppress(NotUnderstood):
        usable(parse(text).prompts, "a fox and a bicycle", 64, 50)
    for read_one in (plain, embeddings, answer_in, shown, loosely_parsed):
        read_one(text)
    carried_over(text, text)


def timed(text: str) -> float:
    started = time.process_time()
    everything(text)
    return time.process_time() - started


@pytest.mark.slow
@pytest.mark.parametrize("name", FREEZING)
def test_nothing_that_a_model_writes_takes_a_second(name):
    assert timed(FREEZING[name]) < SLOWEST


def malformed(number: int) -> str:
    """A sound answer that was damaged, or a heap of what answers are made of."""
    dice = random.Random(number)
    pieces = [
        "{", "}", "[", "]", '"', "'", ",", ":", "\\", "\n", " ", "(", ")", "<think>", "</think>", "```", "```json\n",
        "yes", "No", "true", "True", "null", "NaN", "Infinity", "-1", "1e999", "9" * 400, "\ud800", "\x00", "\u202e",
        '"score"', '"prompts"', '"aligned"', "1. ", "- ", "embedding:x", ":1.2)", "<|end|>", "score (1-5): ",
        "alignment ",
    ]  # fmt: skip
    if dice.random() < 0.4:
        heap = (dice.choice(pieces) * dice.choice((1, 1, 1, 2, 40, 900)) for _ in range(dice.randint(0, 60)))
        return "".join(heap)[:64_000]
    text = dice.choice(
        (GRADES, REWRITES, LINES, "Yes.", f"<think>{GRADES}</think>{REWRITES}", repr(json.loads(REWRITES)))
    )
    for _ in range(dice.randint(1, 6)):
        place, length = dice.randrange(len(text) + 1), dice.choice((0, 0, 1, 3, 30))
        text = text[:place] + dice.choice(pieces) * dice.choice((0, 1, 1, 5, 2_000)) + text[place + length :]
    return text[:64_000]


@pytest.mark.slow
def test_malformed_answers_raise_nothing_of_their_own_and_cost_no_second():
    assert not [number for number in range(COUNT) if timed(malformed(number)) > SLOWEST]


def test_malformed_responses_of_a_server():
    for number in range(COUNT):
        dice = random.Random(number)
        content = dice.choice(
            (malformed(number), None, 5, [], [{"text": malformed(number)}, {"text": 3}, "x"], {"a": 1})
        )
        choice = {"message": {"content": content}, "finish_reason": dice.choice(("stop", "length", None, 7))}
        if dice.random() < 0.5:
            choice["message"][dice.choice(("reasoning_content", "reasoning"))] = dice.choice((malformed(number), 4, []))
        if dice.random() < 0.5:
            choice["logprobs"] = dice.choice(
                (
                    {
                        "content": [
                            {"top_logprobs": [{"token": "Yes", "logprob": dice.choice((-0.1, "x", None, 1e400))}]}
                        ]
                    },
                    [],
                    3,
                )
            )
        body = json.dumps(dice.choice(({"choices": [choice]}, {"choices": choice}, [choice], choice, {"choices": []})))
        raw = body.encode(errors="surrogatepass")
        raw = raw[: dice.randrange(len(raw) + 1)] if dice.random() < 0.3 else raw
        try:
            reply = read_reply(raw)
        except _Unreadable:
            continue
        chance_of_yes(reply)
        for rubric in RUBRICS.values():
            try:
                scores = read(reply, rubric)
            except NotUnderstood:
                continue
            assert all(rubric.span[0] <= score <= rubric.span[1] for score in scores.values())


def test_a_body_that_nests_a_hundred_thousand_deep_is_no_answer():
    with pytest.raises(_Unreadable, match="not a chat completion"):
        read_reply(b"[" * 100_000)
    with pytest.raises(_Unreadable):
        read_reply(b'{"choices":' * 100_000 + b"1" + b"}" * 100_000)


@pytest.mark.parametrize(
    ("text", "answer", "unfinished"),
    [
        ("No", "No", False),
        ("<think>Yes, or no?</think>No", "No", False),
        ("Yes or no? Let me look.</think>No", "No", False),  # the chat template had opened the thought
        ("<think>Yes or no? Let", "", True),
        ("\u25c1think\u25b7Yes\u25c1/think\u25b7No", "No", False),
        ("<|begin_of_box|>Yes<|end_of_box|>", "Yes", False),
    ],
)
def test_thoughts_are_no_answer(text, answer, unfinished):
    assert answer_in(text) == (answer, unfinished)


@pytest.mark.parametrize(
    "text", ["Yes or no? Let me look", "yes/no", "Yes, or no?", "<think>Yes", "Maybe", "<think>Yes</think>"]
)
def test_a_question_repeated_is_neither_yes_nor_no(text):
    with pytest.raises(NotUnderstood, match="neither yes nor no"):
        read_yes_no(text)


def test_a_cut_yes_is_no_answer_but_a_whole_object_is():
    with pytest.raises(NotUnderstood, match="cut off"):
        read(Reply("Yes, the figure shows", cut=True), RUBRICS["yes_no"])
    assert read(Reply("No", "Yes or no? Let me look"), RUBRICS["yes_no"]) == {"yes": 0.0}
    assert read(Reply("", GRADES), RUBRICS["axes"])["overall"] == 7
    with pytest.raises(NotUnderstood):
        read(Reply("", GRADES, cut=True), RUBRICS["axes"])
    with pytest.raises(NotUnderstood):
        read(Reply("", LINES), RUBRICS["unified_reward"])


def test_what_cannot_be_written_to_a_file_is_taken_out():
    assert writable("a\ud800b\x00c\td\n").encode() == "a\ufffdb\ufffdc\td\n".encode()


def test_python_s_spelling_of_json_is_read():
    assert loosely_parsed("{'a': True, 'b': [None, 'it\\'s \"so\"',], }") == {"a": True, "b": [None, 'it\'s "so"']}
    assert loosely_parsed('{"a": "it\\\'s"}') == {"a": "it's"}
    assert loosely_parsed("[" * 200 + "]" * 200) is None
