"""The one client against a real server on this machine: keys, deadlines, proxies, and fields that it does not know."""

from __future__ import annotations

import json
import os
import time

import pytest

from testtime.chat import client as chat_client
from testtime.chat.client import ChatClient, Wanted
from testtime.chat.conversation import ChatError, Turn, Unanswered
from testtime.chat.endpoint import HOSTS_VARIABLE, KEY_VARIABLE, Endpoint, redacted
from testtime.verifiers.vlm.endpoint import endpoint_judge

from .test_rewriter_endpoint import drops, late, says, server, status  # noqa: F401 - server is a fixture
from .test_verifiers_judge import grey

KEY = "sk-very-secret-0123456789"
ASKED = [Turn("user", "Does this figure show a cat?")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat_client, "_sleep", lambda seconds, poll: poll())
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def client_for(server, **settings):  # noqa: F811
    return ChatClient(Endpoint(server.url, "m", **{"timeout": 5.0, "retries": 0, **settings}), "verifier")


def ask(client, wanted=None):
    return client.complete(ASKED, wanted or Wanted(), lambda: None)


def drips(handler, _):
    """A header, then a byte now and then: every single wait is short."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.1)


def drips_headers(handler, _):
    for _ in range(40):
        try:
            handler.wfile.write(b"H")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.1)


class TestKey:
    @pytest.mark.parametrize(
        "act",
        [
            status(401, json.dumps({"error": {"message": f"Incorrect key: {'x' * 140} {KEY}"}})),
            status(500, f"<html>Bearer {KEY}</html>"),
            lambda handler, _: handler.answer(200, f"you sent Bearer {KEY}"),
            lambda handler, _: handler.answer(200, json.dumps({"choices": [], "key": KEY})),
        ],
        ids=["401", "500", "no JSON", "other JSON"],
    )
    def test_no_reason_holds_the_key(self, server, act, caplog):  # noqa: F811
        server.default = act
        caplog.set_level("DEBUG")
        with pytest.raises(Unanswered) as failed:
            ask(client_for(server, retries=1))
        assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
        for text in (str(failed.value), caplog.text):
            assert KEY[:12] not in text
        assert len(str(failed.value)) < 400

    def test_an_answer_that_repeats_the_key_is_read_without_it(self, server):  # noqa: F811
        server.default = says(f"Yes, {KEY}", reasoning_content=f"the header was {KEY}")
        reply = ask(client_for(server))
        assert reply.text == "Yes, ***" and reply.thoughts == "the header was ***"

    def test_short_dummies_do_not_blot_out_words_of_answers(self, server, monkeypatch):  # noqa: F811
        monkeypatch.setenv(KEY_VARIABLE, "EMPTY")
        server.default = says("an EMPTY room")
        assert ask(client_for(server)).text == "an EMPTY room"

    @pytest.mark.parametrize("key", [f"{KEY}\nX-Evil: 1", "sk\r\n1", "sk-\u00e9", "sk\x001"])
    def test_a_key_of_two_lines_is_refused_when_it_is_read(self, monkeypatch, key):
        monkeypatch.setattr(os, "environ", {KEY_VARIABLE: key})  # the real one refuses some of these
        with pytest.raises(ChatError, match="line break") as refused:
            Endpoint("http://127.0.0.1:1/v1", "m").check()
        assert key not in str(refused.value)

    def test_a_line_break_at_its_end_is_taken_off(self, monkeypatch):
        monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
        assert Endpoint("http://127.0.0.1:1/v1", "m").key() == KEY == redacted(KEY).replace("***", KEY)

    @pytest.mark.parametrize(
        "url",
        [
            "https://host/v1?token=abcdef", "https://host/v1?api_key=abcdef", "https://host/v1?sig=abcdef",
            "https://host/v1#token=abcdef", "https://user:abcdef@host/v1", "https://abcdef@host/v1",
            "ftp://user:abcdef@host/v1", "https://ho st/v1?abcdef", "https://h\\@abcdef/v1", "https://a%2eabcdef%2f/v1",
            "https://host:99999/abcdef",
        ],
    )  # fmt: skip
    def test_addresses_that_hold_more_than_an_address_are_refused_unrepeated(self, url):
        with pytest.raises(ChatError, match="url") as refused:
            Endpoint(url, "m").check()
        assert "abcdef" not in str(refused.value) or url.startswith(("https://a%2e", "https://host:"))

    def test_where_the_key_goes(self, monkeypatch):
        def key(url):
            return Endpoint(url, "m").key()

        for local in ("http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:8/v1", "http://0.0.0.0:8000/v1"):
            assert key(local) == KEY, local
        for other in ("http://127.0.0.1.example/v1", "http://localhost.example/v1", "http://10.0.0.1/v1"):
            assert key(other) is None, other
        monkeypatch.setenv(HOSTS_VARIABLE, "api.example")
        assert key("https://api.example/v1") == KEY and key("https://evil.api.example/v1") is None

    def test_an_azure_address_keeps_its_version_behind_the_path(self):
        address = Endpoint("https://host/openai/v1?api-version=2024-10-21", "m").address
        assert address == "https://host/openai/v1/chat/completions?api-version=2024-10-21"


class TestTransport:
    @pytest.mark.slow
    @pytest.mark.parametrize("act", [drips, drips_headers, late(2.0, says("Yes"))], ids=["body", "headers", "nothing"])
    def test_the_time_is_for_the_whole_answer(self, server, act):  # noqa: F811
        server.default = act
        started = time.monotonic()
        with pytest.raises(Unanswered, match=r"no answer from .* in 0.5 s"):
            ask(client_for(server, timeout=0.5))
        assert time.monotonic() - started < 2.0

    def test_this_machine_is_never_asked_through_a_proxy(self, server, monkeypatch):  # noqa: F811
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert ask(client_for(server)).text

    def test_an_answer_of_a_megabyte_is_none(self, server):  # noqa: F811
        server.default = says("x" * 1_100_000)
        with pytest.raises(Unanswered, match="larger than 1000 kB"):
            ask(client_for(server))

    def test_deep_json_is_a_failed_answer(self, server):  # noqa: F811
        server.default = lambda handler, _: handler.answer(200, "[" * 100_000)
        with pytest.raises(Unanswered, match="not a chat completion"):
            ask(client_for(server))

    def test_the_log_says_who_asks(self, server, caplog):  # noqa: F811
        caplog.set_level("INFO")
        server.default = drops
        judge = endpoint_judge(server.url, "m", retries=1)
        judge.score(grey(0.5), "a cat")
        assert "verifier m at 127.0.0.1" in caplog.text and "rewriter" not in caplog.text


def newer(handler, body):
    """A server of the newer kind: it knows neither max_tokens nor a temperature, and names what it refuses."""
    for name, text in (
        ("max_tokens", "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
        ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model."),
    ):
        if name in body:
            return handler.answer(400, json.dumps({"error": {"message": text, "param": name, "code": "unsupported"}}))
    return says("No")(handler, body)


class TestFields:
    def test_what_is_refused_by_name_is_left_out_and_remembered(self, server):  # noqa: F811
        server.default = newer
        client = client_for(server)
        assert [ask(client).calls for _ in range(3)] == [3, 1, 1]
        last = server.requests[-1][2]
        assert last["max_completion_tokens"] == 600 and not {"max_tokens", "temperature"} & set(last)

    def test_a_judge_gets_its_score_there(self, server):  # noqa: F811
        server.default = newer
        judge = endpoint_judge(server.url, "m", retries=0)
        assert judge.score(grey(0.2, 0.4), "a cat").tolist() == [0.0, 0.0] and judge.failed == 0

    def test_a_refusal_of_something_else_is_not_answered_by_giving_things_up(self, server):  # noqa: F811
        server.default = status(400, json.dumps({"error": {"message": "no images", "param": "messages[0].content"}}))
        client = client_for(server)
        with pytest.raises(Unanswered, match=r"HTTP 400.*no images"):
            ask(client, Wanted(schema=("s", {}), seed=1))
        assert len(server.requests) == 1 and client.manners == chat_client.Manners()

    def test_a_hopeless_server_is_tried_in_every_way_only_once(self, server):  # noqa: F811
        server.default = status(400, '{"error": "bad request"}')
        client = client_for(server)
        for expected in (4, 1):
            with pytest.raises(Unanswered) as failed:
                ask(client, Wanted(schema=("s", {}), seed=1))
            assert failed.value.calls == expected
        assert client.manners == chat_client.Manners()

    def test_more_room_than_there_is_is_taken_back(self, server):  # noqa: F811
        client = client_for(server)
        client.manners = chat_client.Manners(room=16)

        def act(handler, body):
            if body["max_tokens"] > 1000:
                return handler.answer(400, json.dumps({"error": {"message": "too large", "param": "max_tokens"}}))
            return says("Yes")(handler, body)

        server.default = act
        assert ask(client, Wanted(tokens=256)).calls == 3


def thinking(thoughts, content, finish):
    """A server of a model that thinks; with one token it does not get far."""

    def act(handler, body):
        choice = {"message": {"content": content, "reasoning_content": thoughts}, "finish_reason": finish}
        handler.answer(200, json.dumps({"choices": [choice]}))

    return act


class TestThoughts:
    def score(self, server, act, caplog=None, **options):  # noqa: F811
        server.default = act
        return endpoint_judge(server.url, "m", retries=0, **options).score(grey(0.5), "a cat").item()

    def test_unfinished_thoughts_are_no_score(self, server):  # noqa: F811
        score = self.score(server, thinking("Yes or no? Let me look", "", "length"))
        assert score != score
        asked = [body["max_tokens"] for _, _, body in server.requests]
        assert asked == [1, 256, 1024]  # more room once it is known to think

    def test_thoughts_beside_an_answer_are_not_read(self, server):  # noqa: F811
        assert self.score(server, thinking("Yes or no? Surely yes", "No", "stop")) == 0.0

    @pytest.mark.parametrize(
        ("text", "finish", "expected"), [("<think>Yes</think>No", "stop", 0.0), ("<think>Yes or", "length", None)]
    )
    def test_thoughts_in_the_answer(self, server, text, finish, expected):  # noqa: F811
        score = self.score(server, thinking(None, text, finish))
        assert score == expected or (expected is None and score != score)

    def test_grades_in_thoughts_do_not_count(self, server):  # noqa: F811
        lines = "Alignment Score (1-5): 5\nCoherence Score (1-5): 5\nStyle Score (1-5): 5"
        score = self.score(server, thinking(lines, "", "stop"), rubric="unified_reward")
        assert score != score

    def test_that_a_score_is_exactly_0_or_1_is_said_once(self, server, caplog):  # noqa: F811
        server.default = says("Yes")
        judge = endpoint_judge(server.url, "m")
        judge.score(grey(0.2, 0.4, 0.6), "a cat")
        judge.score(grey(0.8), "a cat")
        assert caplog.text.count("exactly 0 or 1") == 1
