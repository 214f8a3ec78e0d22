"""The VLM judge: reading of answers, failures that are counted, and a real server that misbehaves."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import logging
import math
import threading
import time

import pytest
import torch
from PIL import Image

from testtime.bench.small_vlm import llava
from testtime.chat import client
from testtime.chat.conversation import NotUnderstood, Turn
from testtime.chat.endpoint import KEY_VARIABLE
from testtime.chat.local import load_local_vlm
from testtime.samplers.protocols import SearchError
from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.pictures import to_bytes, to_pictures
from testtime.verifiers.vlm import judge as judge_module
from testtime.verifiers.vlm.endpoint import endpoint_judge
from testtime.verifiers.vlm.judge import WHICH, LocalAsker, VLMJudgeVerifier, load_vlm_judge
from testtime.verifiers.vlm.rubric import (
    AXES,
    OVERALL,
    RUBRICS,
    last_object,
    read_axes,
    read_unified,
    read_yes_no,
)

from .test_verifiers_clip_score import PROMPTS, pictures

NAMES = (*AXES, OVERALL)
GRADES = {name: {"explanation": "because", "score": number} for number, name in enumerate(NAMES, 3)}
GOOD = json.dumps(GRADES)


class TestReading:
    @pytest.mark.parametrize(
        "text",
        [
            GOOD,
            f"Sure! Here it is:\n```json\n{GOOD}\n```\nAnything else?",
            '{"draft": {"score": 1}}\n' + GOOD,
            "<think>{not json} maybe 3?</think>" + GOOD,
            json.dumps({name: number for number, name in enumerate(NAMES, 3)}),
            json.dumps({name: f"{number}/10" for number, name in enumerate(NAMES, 3)}),
        ],
    )
    def test_what_can_be_read(self, text):
        assert read_axes(text) == {name: float(number) for number, name in enumerate(NAMES, 3)}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no JSON object"),
            ("I would say 7 out of 10.", "no JSON object"),
            (GOOD[:-30], "no score for"),  # cut off: the inner objects are whole, the outer is not
            (json.dumps({**GRADES, "quality": {"score": 11}}), r"score for 'quality' is 11"),
            (json.dumps({**GRADES, "quality": -1}), r"is -1"),
            (json.dumps({**GRADES, "quality": "great"}), "no score for 'quality'"),
            (json.dumps({**GRADES, "quality": True}), "no score for 'quality'"),
            (json.dumps({name: value for name, value in GRADES.items() if name != OVERALL}), "no score for 'overall'"),
            (GOOD.replace('"score": 5', '"score": NaN'), "it must lie in 0..10"),
        ],
    )
    def test_what_cannot(self, text, words):
        with pytest.raises(NotUnderstood, match=words):
            read_axes(text)

    def test_the_last_object_counts_whatever_braces_stand_before(self):
        assert last_object('{ {"a": 1} } text {"b": {"c": 2}}') == {"b": {"c": 2}}

    def test_three_lines(self):
        text = "Alignment Score (1-5): 4.5\nCoherence Score (1-5): 3\n**Style Score (1-5):** 2"
        assert read_unified(text) == {"alignment": 4.5, "coherence": 3.0, "style": 2.0}
        with pytest.raises(NotUnderstood, match="no Style Score"):
            read_unified("Alignment Score (1-5): 4\nCoherence Score (1-5): 3")
        with pytest.raises(NotUnderstood, match=r"must lie in 1..5"):
            read_unified(text.replace("4.5", "9"))

    @pytest.mark.parametrize(("text", "value"), [("Yes.", 1.0), (" **yes**, it does", 1.0), ("No", 0.0), ("NO!", 0.0)])
    def test_yes_and_no(self, text, value):
        assert read_yes_no(text) == {"yes": value}
        for bad in ("Perhaps", "Nothing to see", ""):
            with pytest.raises(NotUnderstood):
                read_yes_no(bad)

    def test_the_question_names_every_axis_and_the_schema_accepts_what_is_read(self):
        jsonschema = pytest.importorskip("jsonschema")
        question = RUBRICS["axes"].ask("two green birds")
        assert "two green birds" in question and all(f'"{name}"' in question for name in NAMES)
        jsonschema.validate(GRADES, RUBRICS["axes"].schema)
        for prompt in ("{braces} {}", 'a "quoted" word'):
            assert all(prompt in rubric.ask(prompt) for rubric in RUBRICS.values())


class Scripted:
    """Answers by the mean of a picture: a reason for black ones, the grey value as the score for others."""

    name, module = "scripted", None

    def __init__(self):
        self.asked = 0

    def ask(self, pixels, questions, rubric):
        self.asked += len(questions)
        means = [float(row.float().mean()) / 255 for row in pixels]
        return ["no answer" if mean == 0 else dict.fromkeys(rubric.axes, 10 * mean) for mean in means]


def grey(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()


class TestJudge:
    def test_an_image_without_an_answer_is_counted_and_the_others_are_scored(self, caplog):
        judge = VLMJudgeVerifier(Scripted(), "axes", batch=4)
        with caplog.at_level(logging.WARNING):
            scores = judge.score(grey(0.2, 0.0, 0.6), "a cat")
        assert scores[[0, 2]].tolist() == pytest.approx([2.0, 6.0], abs=0.02) and torch.isnan(scores[1])
        assert judge.failed == 1
        (record,) = caplog.records
        assert "gave no score for 1 of 3 images: no answer (1 so far); they cannot win" in record.getMessage()

    def test_answers_are_kept_and_failures_are_asked_again(self):
        judge = VLMJudgeVerifier(Scripted(), "axes")
        for _ in range(2):
            judge.score(grey(0.2, 0.0), "a cat")
        assert judge.asker.asked == 3 and judge.failed == 2
        judge.score(grey(0.2), "a dog")
        assert judge.asker.asked == 4

    def test_neutral_and_error(self):
        neutral = VLMJudgeVerifier(Scripted(), "axes", on_failure="neutral")
        assert neutral.score(grey(0.0), "a cat").tolist() == [5.0] and neutral.failed == 1
        with pytest.raises(VerifierError, match="gave no score for 1 of 1 images: no answer"):
            VLMJudgeVerifier(Scripted(), "axes", on_failure="error").score(grey(0.0), "a cat")

    def test_every_axis_stays_visible(self):
        judge = VLMJudgeVerifier(Scripted(), "unified_reward", axis="mean")
        values = judge.judge(grey(0.3, 0.4), "a cat")
        scores, axes = values.score, values.members
        assert list(axes) == [f"{judge.name}.{axis}" for axis in ("alignment", "coherence", "style")]
        assert torch.allclose(torch.stack(list(axes.values())).mean(0), scores)

    def test_a_broken_image_is_not_asked_about_and_gets_no_neutral_score(self):
        judge = VLMJudgeVerifier(Scripted(), "axes", on_failure="neutral")
        images = grey(0.2, 0.4)
        images[0, 0, 0, 0] = math.nan
        scores = judge.score(images, "a cat")
        assert torch.isnan(scores[0]) and judge.asker.asked == 1 and judge.failed == 0

    def test_bad_settings_are_named(self):
        for options, words in (
            ({"rubric": "stars"}, "rubric is 'stars': choose one of yes_no, axes, video, unified_reward"),
            ({"rubric": "axes", "axis": "beauty"}, "axis is 'beauty': choose one of mean, accuracy"),
            ({"on_failure": "ignore"}, "on_failure is 'ignore': choose one of skip, neutral, error"),
        ):
            with pytest.raises(VerifierError, match=words):
                VLMJudgeVerifier(Scripted(), **options)


class TestLocal:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        pytest.importorskip("transformers")
        made = tmp_path_factory.mktemp("vlm") / "tiny--llava"
        llava(made)
        return made

    def test_yes_no_is_the_share_of_yes(self, folder):
        judge = load_vlm_judge(folder)
        normalised = registry.create("vqa_score", folder=folder, normalise=True)
        images = pictures(28, 28)
        torch.testing.assert_close(judge.score(images, PROMPTS), normalised.score(images, PROMPTS))
        assert judge.name == "vlm_judge(tiny--llava)" and isinstance(judge.module, torch.nn.Module)

    def test_a_model_that_babbles_is_asked_twice_and_counted(self, folder, monkeypatch):
        asker = LocalAsker(load_local_vlm(folder))
        asked = []
        answer = asker.module.answer
        monkeypatch.setattr(
            asker.module, "answer", lambda turns, tokens: asked.append(turns[-1].text) or answer(turns, 6)
        )
        judge = VLMJudgeVerifier(asker, "unified_reward")
        assert torch.isnan(judge.score(pictures(28, 28, 1), "the sea")).all()
        assert len(asked) == 2 and asked[1].startswith(asked[0]) and judge.failed == 1

    def test_a_comparison_is_the_log_odds_of_its_answer(self, folder, monkeypatch):
        """Both pictures are shown, in this order; the number is that of the model's own next token."""
        monkeypatch.setattr(judge_module, "ORDINALS", ("Yes", "No"))  # words that the small vocabulary has
        judge = load_vlm_judge(folder)
        first, second = pictures(28, 28, 2), pictures(28, 28, 2).flip(0)
        found = judge.prefer(first, second, ["a cat", "the sea"])
        vlm = judge.asker.module
        for row, prompt in enumerate(["a cat", "the sea"]):
            one, other = (to_pictures(to_bytes(side[row : row + 1]), 768)[0] for side in (first, second))
            said = vlm.next_token([[Turn("user", WHICH.format(prompt=prompt), other, (one,))]])[0]
            expected = said[vlm.answer_token("Yes")] - said[vlm.answer_token("No")]
            assert float(found[row]) == pytest.approx(float(expected), abs=1e-5)
        assert judge.pairwise and float((found - judge.prefer(second, first, ["a cat", "the sea"])).abs().max()) > 1e-6


class Server:
    """A chat-completions server on this machine that plays a script: one entry per request, the last one for ever."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                status, answer = step(body) if callable(step) else step
                if status == "hang":
                    time.sleep(answer)
                    status, answer = 200, ""
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client gave up waiting
                    self.wfile.write(raw)

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    made = []

    def start(*script):
        made.append(Server(*script))
        return made[-1]

    yield start
    for server in made:
        server.close()


def says(text, logprobs=None):
    choice = {"message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        words = [{"token": word, "logprob": math.log(chance)} for word, chance in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": words}]}
    return 200, {"choices": [choice]}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, "_sleep", lambda seconds, poll: poll())
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


class TestEndpoint:
    def test_yes_is_read_from_the_first_words_probabilities(self, serve):
        server = serve(says("Yes", {"Yes": 0.5, " yes": 0.1, "No": 0.2, "The": 0.1}))
        judge = endpoint_judge(server.url, "some-model")
        assert float(judge.score(grey(0.5), 'a "cat"')) == pytest.approx(0.75)
        path, headers, body = server.requests[0]
        assert path == "/v1/chat/completions" and "Authorization" not in headers
        assert body["model"] == "some-model" and body["temperature"] == 0.0 and body["logprobs"] is True
        text, picture = body["messages"][0]["content"]
        assert 'Does this figure show "a "cat""' in text["text"]
        shown = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
        assert abs(shown.getpixel((2, 2))[0] - 128) < 3

    def test_a_server_without_probabilities_is_asked_for_the_word(self, serve):
        def script(body):
            if "logprobs" in body:
                return 400, {"error": {"message": "logprobs are not supported"}}
            return says("No.")

        server = serve(script)
        judge = endpoint_judge(server.url, "m")
        assert judge.score(grey(0.5), "a cat").tolist() == [0.0]
        judge.score(grey(0.6), "a cat")
        assert ["logprobs" in body for _, _, body in server.requests] == [True, False, False]  # remembered

    def test_pairs_are_compared_by_probabilities_where_there_are_some(self, serve):
        server = serve(says("First", {"First": 0.6, " Second": 0.2, "The": 0.1}))
        judge = endpoint_judge(server.url, "m")
        assert judge.prefer(grey(0.2), grey(0.8), ["a cat"]).tolist() == pytest.approx([math.log(3)])
        text, one, other = server.requests[0][2]["messages"][0]["content"]
        assert 'this request: "a cat"' in text["text"]
        shown = [
            Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))) for part in (one, other)
        ]
        assert [round(picture.getpixel((2, 2))[0] / 255, 1) for picture in shown] == [0.2, 0.8]

    def test_pairs_are_compared_by_words_where_there_are_none(self, serve):
        server = serve(
            says("Second."), says("The first one is better."), says("Both the first and the second"), says("?")
        )
        judge = endpoint_judge(server.url, "m", parallel=1)
        images = grey(0.2, 0.4, 0.6)
        found = judge.prefer(images, images.flip(0), ["a cat"] * 3).tolist()
        assert found[:2] == [-math.inf, math.inf] and math.isnan(found[2])
        assert judge.failed == 1 and len(server.requests) == 4

    def test_a_server_that_fails_leaves_a_pair_open(self, serve, caplog):
        judge = endpoint_judge(serve((500, {})).url, "m", retries=0)
        assert torch.isnan(judge.prefer(grey(0.2), grey(0.8), ["a cat"])).all()
        assert "did not say which image is better for 1 of 1 pairs" in caplog.text

    def test_a_rubric_asks_for_json_and_gets_all_axes(self, serve):
        server = serve(says(GOOD))
        judge = endpoint_judge(server.url, "m", rubric="axes", axis="quality")
        values = judge.judge(grey(0.5), "a cat")
        assert values.score.tolist() == [5.0]
        schema = server.requests[0][2]["response_format"]["json_schema"]["schema"]
        assert schema["required"] == list(NAMES)
        assert float(values.members[f"{judge.name}.overall"]) == 8.0

    def test_overload_and_dropped_answers_are_retried(self, serve):
        server = serve((503, {}), (429, {}), says(GOOD))
        judge = endpoint_judge(server.url, "m", rubric="axes")
        assert judge.score(grey(0.5), "a cat").tolist() == [8.0] and judge.failed == 0
        assert len(server.requests) == 3

    def test_nonsense_is_asked_again_in_clear_words_then_counted(self, serve):
        server = serve(says("lovely!"))
        judge = endpoint_judge(server.url, "m", rubric="axes")
        assert torch.isnan(judge.score(grey(0.5), "a cat")).all() and judge.failed == 1
        first, second = (body["messages"][0]["content"][0]["text"] for _, _, body in server.requests)
        assert second.startswith(first) and "exactly this form" in second

    def test_what_is_no_chat_completion(self, serve, caplog):
        server = serve((200, b"<html>hello</html>"))
        judge = endpoint_judge(server.url, "m", retries=1)
        assert torch.isnan(judge.score(grey(0.5), "a cat")).all()
        assert "not a chat completion" in caplog.text and len(server.requests) == 2

    def test_a_server_that_hangs_costs_the_score_and_no_image(self, serve, caplog):
        server = serve(says("Yes"), ("hang", 3.0))
        judge = endpoint_judge(server.url, "m", timeout=0.4, retries=0, parallel=1)
        scores = judge.score(grey(0.3, 0.5), "a cat")
        assert scores[0] == 1.0 and torch.isnan(scores[1])
        assert "no answer from" in caplog.text and "in 0.4 s" in caplog.text

    def test_nobody_listens(self, serve):
        server = serve(says("Yes"))
        server.close()
        judge = endpoint_judge(server.url, "m", retries=0, on_failure="error")
        with pytest.raises(VerifierError, match="cannot be reached"):
            judge.score(grey(0.5), "a cat")

    def test_the_key_comes_from_the_environment_and_stays_on_this_machine(self, serve, monkeypatch):
        server = serve(says("Yes"))
        monkeypatch.setenv("TESTTIME_API_KEY", "secret-word")
        endpoint_judge(server.url, "m").score(grey(0.5), "a cat")
        assert server.requests[0][1]["Authorization"] == "Bearer secret-word"
        with pytest.raises(SearchError, match="workflows are shared"):
            endpoint_judge("https://user:secret@example.org/v1", "m")

    def test_a_user_who_cancels_does_not_wait_for_the_server(self, serve):
        server = serve(("hang", 5.0))

        class Cancelled(Exception):
            pass

        def poll():
            raise Cancelled

        judge = endpoint_judge(server.url, "m", timeout=10, poll=poll)
        start = time.monotonic()
        with pytest.raises(Cancelled):
            judge.score(grey(0.5), "a cat")
        assert time.monotonic() - start < 3

    def test_several_images_are_asked_about_at_a_time(self, serve):
        at_once, most, lock = [0], [0], threading.Lock()

        def script(body):
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            time.sleep(0.2)
            with lock:
                at_once[0] -= 1
            return says("Yes")

        judge = endpoint_judge(serve(script).url, "m", parallel=3)
        assert judge.score(grey(0.1, 0.2, 0.3, 0.4), "a cat").tolist() == [1.0] * 4
        assert 1 < most[0] <= 3
