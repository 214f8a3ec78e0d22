"""Rewriters without a model: reading answers, prompt syntax, the template, the rules of Shapes World."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from testtime.chat.conversation import NotUnderstood, Reply, Unanswered
from testtime.chat.syntax import carried_over, embeddings, plain
from testtime.rewriters.base import ChatRewriter, RewriterError, picture
from testtime.rewriters.parsing import parse, same, usable
from testtime.rewriters.shapes import ShapesRewriter
from testtime.rewriters.template import ONLY_JSON, Template
from testtime.samplers.protocols import Attempt, RewriteRequest, SearchError
from testtime.shapes_world.captions import compatible_prompts, sample_prompt
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.reading import read_caption
from testtime.shapes_world.rules import decide
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import TASKS

FOX, BIKE = "a red fox left of a bicycle", "a bicycle and to its left a red fox"
ANSWER = {"aligned": False, "missing": ["the fox"], "prompts": [FOX, BIKE]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ANSWER),
        json.dumps(ANSWER, indent=2) + "\n",
        f"<think>The fox {{is}} gone.</think>\n{json.dumps(ANSWER)}",
        f"Sure! Here it is:\n```json\n{json.dumps(ANSWER)}\n```\nAnything else?",
        f"I see {{nothing}} here. {json.dumps(ANSWER)} Good luck.",
        json.dumps(ANSWER).replace("]", ",]").replace("}", ",}"),
        repr(ANSWER),
        json.dumps({"Missing": "the fox", "revised_prompts": [{"prompt": FOX}, {"text": BIKE}]}),
    ],
    ids=["json", "indented", "thinking", "fenced", "in prose", "trailing commas", "single quotes", "aliases"],
)
def test_every_rung_of_the_ladder_reads_the_same_answer(text):
    answer = parse(text)
    assert (answer.aligned, answer.missing, answer.prompts) == (False, ("the fox",), (FOX, BIKE))


def test_lists_in_prose_are_prompts():
    text = f'Try these:\n1. "{FOX}"\n2) {BIKE}\n- too short\n\u2022 **{FOX} in the snow**'
    assert parse(text).prompts == (FOX, BIKE, f"{FOX} in the snow")


@pytest.mark.parametrize("text", ['{"aligned": true, "missing": [], "prompts": ["x y z"]}', '{"prompts": []}'])
def test_nothing_missing_leaves_no_prompts(text):
    answer = parse(text)
    assert answer.aligned and not answer.prompts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "The image looks fine to me.",
        "{" * 50_000,
        "[1, 2, 3]",
        '{"verdict": "no"}',
        "\x00\xff",
        "{'a': " * 500,
    ],
)
def test_what_holds_no_answer_is_said_so(text):
    with pytest.raises(NotUnderstood):
        parse(text)


def test_five_hundred_prompts_become_as_many_as_were_asked_for():
    many = [f"a red fox, number {k}, left of a bicycle in town {k}" for k in range(500)]
    assert len(usable(many, "a fox and a bicycle", 4, 50)) == 4


def test_duplicates_of_the_original_and_of_each_other_are_dropped():
    given = [" A Fox, and a BICYCLE! ", FOX, f"{FOX}.", "two words", "x " * 80, 'a "fox"']
    assert usable(given, "a fox and a bicycle", 9, 50) == [FOX, " ".join(["x"] * 50)]
    assert not same("a star above a ring", "a ring above a star")
    assert same("a (red:1.2) star", "a red star")


def test_prompts_in_another_script_are_dropped_unless_the_original_is_in_it():
    chinese = "\u4e00\u53ea\u7ea2\u8272\u7684\u72d0\u72f8\u5728\u81ea\u884c\u8f66\u5de6\u8fb9"
    assert usable([chinese, FOX], "a fox and a bicycle", 4, 50) == [FOX]
    assert usable([chinese], "\u72d0\u72f8\u548c\u81ea\u884c\u8f66", 4, 50) == [chinese]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (red:1.2) fox", "a red fox"),
        ("a ((very red)) fox, embedding:style-x", "a very red fox"),
        ("(embedding:style:1.1), a fox (by night", "a fox (by night"),
        (r"a fox \(animal\)", "a fox (animal)"),
        ("(a (red:1.1) fox:0.8)", "a red fox"),
        ("plain", "plain"),
    ],
)
def test_weights_and_embeddings_are_taken_for_what_they_mean(prompt, words):
    assert plain(prompt) == words


def test_a_rewrite_keeps_embeddings_and_its_brackets_are_no_emphasis():
    original = "a (red:1.2) fox, (embedding:style:1.1), embedding:other"
    assert embeddings(original) == ["(embedding:style:1.1)", "embedding:other"]
    assert carried_over(original, "a fox (animal)") == r"a fox \(animal\), (embedding:style:1.1), embedding:other"


def request(prompt="a fox and a bicycle", count=2, image=None, **fields):
    image = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0)) if image is None else image
    return RewriteRequest(image, prompt, count, **fields)


def test_template_tells_the_model_everything():
    history = (Attempt("a (big:1.3) fox", 2, 0.25), Attempt("a fox", 3, None))
    text = Template().question(request("a (red:1.2) fox {curly}", 3, step=4, steps=20, history=history))
    assert "Request: a red fox {curly}" in text and "- step 2: a big fox (0.25)" in text
    assert "step 4 of 20" in text and "write 3 other" in text and "50 words" in text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Template(user="{prompt} {colour}"), "field {colour}"),
        (Template(user="make it better"), "no {prompt}"),
        (Template(user='{prompt} {"a": 1}'), "braces"),
        (Template(user="{prompt} {"), "braces"),
        (Template(words=2), "max_words is 2"),
        (Template(user="{prompt} {step:>999999999}"), "write {step} alone"),
        (Template(user="{prompt!r}"), "write {prompt} alone"),
    ],
)
def test_wrong_templates_are_refused(template, message):
    with pytest.raises(SearchError, match=message):
        template.check()


class Canned(ChatRewriter):
    """Answers from a list; what it is shown is kept."""

    def __init__(self, *answers, **options):
        super().__init__("canned", **options)
        self.answers, self.seen = list(answers), []

    def complete(self, turns, seed, poll):
        self.seen.append(list(turns))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer)


def test_an_unreadable_answer_is_asked_for_once_more():
    rewriter = Canned("I would rather not.", json.dumps(ANSWER))
    (answer,) = rewriter.rewrite([request()])
    assert answer.prompts == (FOX, BIKE) and answer.missing == ("the fox",) and answer.calls == 2
    assert [turn.role for turn in rewriter.seen[1]] == ["system", "user", "assistant", "user"]
    assert rewriter.seen[1][-1].text == ONLY_JSON and rewriter.seen[0][1].image.size == (448, 336)


@pytest.mark.parametrize("answer", ["", "No.", '{"aligned": false, "prompts": ["a fox and a bicycle"]}'])
def test_no_usable_answer_is_a_failure_and_no_exception(answer, caplog):
    rewriter = Canned(answer, answer)
    (given,) = rewriter.rewrite([request()])
    assert given.failed and not given.prompts and given.calls == 2
    assert "going on with the original prompt" in caplog.text


def test_the_same_question_is_asked_once_and_failures_are_asked_again():
    rewriter = Canned(json.dumps(ANSWER), Unanswered("down", 3), json.dumps({"aligned": True}))
    first, second = rewriter.rewrite([request(), request()])
    assert first.prompts == second.prompts and (first.calls, second.calls) == (1, 0)
    assert rewriter.rewrite([request()])[0].calls == 0
    failed = rewriter.rewrite([request(seed=1)])[0]
    assert failed.failed and failed.note == "down" and failed.calls == 3
    assert rewriter.rewrite([request(seed=1)])[0].aligned


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request(prompt="  "), "prompt is empty"),
        (request(count=0), "rewrites is 0"),
        (request(image=torch.rand(2, 8, 8, 3)), "one image"),
    ],
)
def test_senseless_questions_are_refused(wrong, message):
    for rewriter in (Canned(), ShapesRewriter()):
        with pytest.raises(RewriterError, match=message):
            rewriter.rewrite([wrong])


def test_pictures_with_values_beyond_the_range_are_sent():
    image = torch.full((8, 4, 3), 2.0)
    image[0] = float("nan")
    assert picture(image, 16).size == (8, 16)


def test_captions_are_read_back_as_what_they_ask_for():
    for seed in range(300):
        prompt = sample_prompt(seed, TASKS[seed % 6])
        assert read_caption(prompt.text) == prompt
        for richer in compatible_prompts(sample_scene(seed, prompt), np.random.default_rng(seed)):
            read = read_caption(richer.text)
            assert [(o.shape, o.colour, o.count) for o in read.objects] == [
                (o.shape, o.colour, o.count or 1) for o in richer.objects
            ]
            assert read.relation == richer.relation


@pytest.mark.parametrize("text", ["", "a sunset", "five stars", "a red", "a star and a ring and a heart", "three"])
def test_other_texts_are_no_captions(text):
    assert read_caption(text) is None


def drawn(prompt, seed=3) -> torch.Tensor:
    return torch.from_numpy(draw(sample_scene(seed, prompt))).float() / 255


@pytest.mark.parametrize("task", TASKS)
def test_shapes_rules_find_what_is_missing_and_keep_every_fact(task):
    rewriter = ShapesRewriter()
    for seed in range(6):
        prompt = sample_prompt(seed, task)
        (right,) = rewriter.rewrite([request(prompt.text, 4, drawn(prompt))])
        assert right.aligned and not right.prompts
        blank = torch.full((128, 128, 3), 0.8)
        (answer,) = rewriter.rewrite([request(prompt.text, 4, blank, seed=seed)])
        assert answer.missing and 2 <= len(answer.prompts) <= 4
        assert len(set(answer.prompts)) == len(answer.prompts) and prompt.text not in answer.prompts
        for text in answer.prompts:
            # Whatever shows the rewrite shows the original too.
            rewritten = read_caption(text)
            correct, reason = decide(prompt, sample_scene(seed, rewritten).objects)
            assert correct, (prompt.text, text, reason)


def test_shapes_rules_vary_with_the_seed_and_leave_out_what_was_tried():
    blank = torch.full((128, 128, 3), 0.8)
    ask = lambda **fields: ShapesRewriter().rewrite([request("a star and a ring", 3, blank, **fields)])[0]  # noqa: E731
    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    first = ask(seed=1).prompts
    assert not set(first) & set(ask(seed=1, history=tuple(Attempt(p, 1, 0.0) for p in first)).prompts)


def test_shapes_rules_say_what_they_do_not_understand():
    (answer,) = ShapesRewriter().rewrite([request("a sunset over the sea")])
    assert answer.failed and "Shapes World" in answer.note
    (answer,) = ShapesRewriter().rewrite([request("a red star", image=torch.zeros(8, 8, 3))])
    assert answer.failed and "at least 32" in answer.note
