"""The endpoint rewriter against a real HTTP server on this machine that misbehaves in every way it can."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from testtime.chat.conversation import ChatError
from testtime.chat.endpoint import HOSTS_VARIABLE, KEY_VARIABLE, Endpoint
from testtime.models.tiny.loading import missing_weights
from testtime.rewriters.endpoint import EndpointRewriter
from testtime.samplers.methods import TTGen
from testtime.samplers.protocols import Interrupted, RewriteRequest

PROMPTS = ["a big red star and a blue ring", "a blue ring beside a red star"]
GOOD = json.dumps({"aligned": False, "missing": ["the ring"], "prompts": PROMPTS})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            act = server.script.pop(0) if server.script else server.default
        act(self, body)

    def answer(self, code: int, text: str, **headers):
        data = text.encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def says(content, **message):
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content, **message}}]})
    return lambda handler, _: handler.answer(200, body)


def status(code, text='{"error": {"message": "no luck"}}', **headers):
    return lambda handler, _: handler.answer(code, text, **headers)


def drops(handler, _):
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.connection.close()


def breaks_off(handler, _):
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.close()


def late(seconds, then):
    def act(handler, body):
        time.sleep(seconds)
        then(handler, body)

    return act


def refuses(field):
    """HTTP 400 as long as the request has a field of this kind."""

    def act(handler, body):
        form = body.get("response_format", {}).get("type")
        if (field == "seed" and "seed" in body) or form in ("json_schema", "json_object"):
            handler.answer(400, '{"error": "unknown field"}')
        else:
            says(GOOD)(handler, body)

    return act


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.lock, made.requests, made.script, made.default = threading.Lock(), [], [], says(GOOD)
    made.url = f"http://127.0.0.1:{made.server_address[1]}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def rewriter_for(server, **settings):
    return EndpointRewriter(Endpoint(server.url, "test-vlm", **{"backoff": 0.02, "timeout": 2.0, **settings}))


def question(seed=0, **fields):
    return RewriteRequest(torch.rand(32, 32, 3), "a red star and a blue ring", 2, seed=seed, **fields)


def test_what_is_sent_is_the_protocol(server):
    (answer,) = rewriter_for(server).rewrite([question(seed=5)])
    assert answer.prompts == tuple(PROMPTS) and answer.missing == ("the ring",) and answer.calls == 1
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert body["model"] == "test-vlm" and body["seed"] == 5 and body["stream"] is False
    system, user = body["messages"]
    assert system["role"] == "system" and isinstance(system["content"], str)
    text, image = user["content"]
    assert "a red star and a blue ring" in text["text"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["aligned", "missing", "prompts"]


TROUBLE = {
    "429": status(429, Retry_After="0.05"),
    "500": status(500),
    "503 with a page": status(503, "<html>busy</html>"),
    "dropped": drops,
    "broken off": breaks_off,
    "not JSON": lambda handler, _: handler.answer(200, "<html>hello</html>"),
    "JSON of another kind": lambda handler, _: handler.answer(200, '{"choices": []}'),
    "too late": late(0.6, says(GOOD)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_that_passes_is_tried_again(server, name):
    server.script = [TROUBLE[name]]
    (answer,) = rewriter_for(server, timeout=0.3 if name == "too late" else 5.0).rewrite([question()])
    assert answer.prompts == tuple(PROMPTS) and not answer.failed
    assert answer.calls == 2 == len(server.requests)


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_that_stays_falls_back_and_says_so(server, name, caplog):
    server.default = TROUBLE[name]
    (answer,) = rewriter_for(server, timeout=0.3 if name == "too late" else 5.0).rewrite([question()])
    assert answer.failed and not answer.prompts and answer.calls == 3
    assert answer.note in caplog.text and "going on with the original prompt" in caplog.text


def test_a_server_that_is_not_there(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rewriter = EndpointRewriter(Endpoint(f"http://127.0.0.1:{port}/v1", "m", backoff=0.01))
    (answer,) = rewriter.rewrite([question()])
    assert answer.failed and "cannot be reached" in answer.note


@pytest.mark.parametrize("code", [401, 403, 404])
def test_refusals_are_not_repeated_and_say_what_to_do(server, code):
    server.default = status(code)
    (answer,) = rewriter_for(server).rewrite([question()])
    assert answer.failed and answer.calls == 1 and "no luck" in answer.note
    assert (KEY_VARIABLE if code != 404 else "/v1") in answer.note


def test_structured_output_is_given_up_step_by_step_and_for_good(server):
    server.default = refuses("seed")
    rewriter = rewriter_for(server)
    (answer,) = rewriter.rewrite([question()])
    assert answer.prompts and answer.calls == 4
    kinds = [body.get("response_format", {}).get("type") for _, _, body in server.requests]
    assert kinds == ["json_schema", "json_object", None, None]
    assert "seed" not in server.requests[-1][2]
    assert rewriter.rewrite([question(seed=9)])[0].calls == 1


@pytest.mark.parametrize(
    ("content", "fields"),
    [(None, {"reasoning_content": GOOD}), ([{"type": "text", "text": GOOD}], {}), (f"```json\n{GOOD}\n```", {})],
    ids=["reasoning", "parts", "fenced"],
)
def test_answers_in_other_places(server, content, fields):
    server.default = says(content, **fields)
    assert rewriter_for(server).rewrite([question()])[0].prompts == tuple(PROMPTS)


def test_prose_is_asked_for_again_in_the_same_conversation(server):
    server.script = [says("What a lovely picture!")]
    (answer,) = rewriter_for(server).rewrite([question()])
    assert answer.prompts and answer.calls == 2
    assert [m["role"] for m in server.requests[1][2]["messages"]] == ["system", "user", "assistant", "user"]


def test_many_questions_run_side_by_side(server):
    server.default = late(0.4, says(GOOD))
    began = time.monotonic()
    answers = rewriter_for(server, parallel=4).rewrite([question(seed=k) for k in range(4)])
    assert time.monotonic() - began < 1.3
    assert all(answer.prompts for answer in answers)


def test_cancel_ends_the_waiting(server):
    server.default = late(3.0, says(GOOD))
    began = time.monotonic()

    def cancel():
        if time.monotonic() - began > 0.2:
            raise Interrupted

    with pytest.raises(Interrupted):
        rewriter_for(server, timeout=10.0).rewrite([question()], poll=cancel)
    assert time.monotonic() - began < 2.0


def test_the_key_is_sent_to_this_machine_and_to_named_hosts_only(server, monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    rewriter_for(server).rewrite([question()])
    assert server.requests[0][1]["Authorization"] == "Bearer secret-key"
    elsewhere = Endpoint("https://somewhere.example/v1", "m")
    assert elsewhere.key() is None and "somewhere.example" in caplog.text and "secret-key" not in caplog.text
    monkeypatch.setenv(HOSTS_VARIABLE, "other.example, Somewhere.Example")
    assert elsewhere.key() == "secret-key"


def test_redirects_are_not_followed(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    server.script = [status(302, "", Location=server.url + "/elsewhere")]
    (answer,) = rewriter_for(server).rewrite([question()])
    assert answer.failed and "302" in answer.note and len(server.requests) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url is '127.0.0.1:8000'"),
        ({"url": "file:///etc/passwd"}, "url is"),
        ({"url": "https://user:pass@host/v1"}, "environment variable"),
        ({"url": "https://host/v1?key=abc"}, "environment variable"),
        ({"model": " "}, "model is empty"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"timeout": 0.0}, "timeout 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ChatError, match=message):
        EndpointRewriter(Endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m", **settings}))


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_weights(["diffusion", "autoencoder", "text_encoder"])), reason="no weights here")
def test_no_image_is_lost_whatever_the_server_does(server):
    """A search whose every call meets another trouble finishes, uses what answers it got, and counts the rest."""
    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.samplers.run.search import run_search
    from testtime.verifiers.registry import create

    good = says(json.dumps({"aligned": False, "prompts": ["a red star and a blue ring", "a big blue ring"]}))
    server.script = [status(500), good, drops, good, *[status(429)] * 3, *[says("So pretty.")] * 2, *[status(503)] * 3]
    search = TTGen(rewriter_for(server), rewrites=2, injection_step=5)
    process = shapes_process(["a star and a ring"], SamplingSettings(steps=6, eta=0.0, seed=1))
    result = run_search(search, process, create("shapes_clip"), ["a star and a ring"])
    assert result.status == "complete" and torch.isfinite(result.latents).all()
    ledger = result.ledger
    assert (ledger.rewriter_calls, ledger.rewriter_failures) == (12, 3) == (len(server.requests), 3)
    rewrites = [entry for record in result.trace.records for entry in record.rewrites]
    assert [entry["failed"] for entry in rewrites] == [False, False, True, True, True]
    # Failed rounds go on with the last answer's prompts until the patience is spent.
    tried = [len(record.particles) for record in result.trace.records]
    assert tried == [3, 3, 3, 3, 1, 1, 1]
    assert any("failed" in text for text in result.warnings)
