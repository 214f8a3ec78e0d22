"""A question to an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp's server, hosted services.

Servers differ in what they know. Where one refuses a field of the request, the question is asked again without it (or
with the field that has taken its place), which costs no retry and is remembered as soon as it has worked.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .conversation import Poll, Reply, Turn, Unanswered, data_url, shown, writable
from .endpoint import HOSTS_VARIABLE, KEY_VARIABLE, SHORTEST_SECRET, Endpoint, redacted
from .reading import answer_in, parsed
from .transport import Response, Unreachable, post

log = logging.getLogger("testtime")

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
REFUSED = (400, 422)
LONGEST_WAIT = 10.0
WORDS_SHOWN = 20  # likeliest first words that a server is asked for; none gives more
ROOM = 4  # times as many tokens after an answer that was all thought
MOST_ROOM = 16
_FORMS = 3  # structured output: a schema, any JSON, none
_DROPPED = ("temperature", "seed", "logprobs")
_NAMES = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "seed": "seed",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
    "response_format": "form",
    "json_schema": "form",
    "json_object": "form",
}


@dataclass(frozen=True)
class Wanted:
    """What an answer should be.

    Attributes:
        tokens: longest answer.
        temperature: of the sampling; 0 takes the likeliest words.
        seed: of the sampling, None for any.
        schema: (name, JSON schema) of the answer, None for plain text.
        words: ask for one word and the probabilities of the likeliest ones. A server that gives none is asked for a
            whole answer.
    """

    tokens: int = 600
    temperature: float = 0.0
    seed: int | None = None
    schema: tuple[str, dict[str, Any]] | None = None
    words: bool = False


@dataclass(frozen=True)
class Manners:
    """How a server must be asked: what it has refused so far is left out.

    Attributes:
        form: 0 asks for JSON of a schema, 1 for any JSON, 2 for text.
        renamed: whether ``max_tokens`` is called ``max_completion_tokens``.
        dropped: fields that are not sent.
        room: times as many tokens as wanted, for models that think first.
    """

    form: int = 0
    renamed: bool = False
    dropped: frozenset[str] = frozenset()
    room: int = 1

    def and_(self, other: Manners) -> Manners:
        """What both have learned."""
        dropped = self.dropped | other.dropped
        return Manners(max(self.form, other.form), self.renamed or other.renamed, dropped, max(self.room, other.room))


class ChatClient:
    """Asks one server. Several threads may ask at a time.

    Args:
        endpoint: address, model and manners.
        role: who asks, for the log: "rewriter", "verifier".

    Raises:
        ChatError: an address or setting that cannot work.
    """

    def __init__(self, endpoint: Endpoint, role: str):
        endpoint.check()
        self.endpoint, self.role = endpoint, role
        self.name = f"{endpoint.model} at {endpoint.host}"
        self.manners = Manners()
        self._lock = threading.Lock()
        self._hopeless = False
        self._most_room = MOST_ROOM

    def complete(self, turns: Sequence[Turn], wanted: Wanted, poll: Poll) -> Reply:
        """One answer, after retries where they make sense.

        Raises:
            Unanswered: none came; the reason holds no key and is short.
        """
        calls, wait, reason = 0, self.endpoint.backoff, ""
        tries, manners = self.endpoint.retries + 1, self.manners
        while tries > 0:
            poll()
            tries -= 1
            calls += 1
            try:
                response = self._post(self._body(turns, wanted, manners))
                if 200 <= response.status < 300:
                    reply = replace(read_reply(response.body), calls=calls)
                    self._learn(manners, reply, wanted)
                    return reply
            except (Unreachable, _Unreadable) as error:
                reason = redacted(str(error))
            else:
                if response.status in REFUSED:
                    milder = self._milder(response, manners, wanted)
                    if milder is not None:
                        manners = milder
                        tries += 1  # the server refused a field, not the question
                        continue
                reason = redacted(f"HTTP {response.status} {response.reason}")[:80] + _detail(response)
                if response.status not in RETRIED:
                    raise Unanswered(reason + _advice(response.status), calls)
                wait = _retry_after(response) or wait
            if tries:
                log.info("%s %s: %s; trying again", self.role, self.name, reason)
                _sleep(min(wait, LONGEST_WAIT), poll)
                wait *= 2
        raise Unanswered(f"{reason} ({calls} call{'s' * (calls != 1)})", calls)

    def _learn(self, manners: Manners, reply: Reply, wanted: Wanted) -> None:
        """Remember what has worked; an answer that was nothing but unfinished thoughts gets more room the next time."""
        if reply.cut and not reply.text.strip() and not wanted.words:
            manners = replace(manners, room=manners.room * ROOM)
        with self._lock:
            learned = self.manners.and_(manners)
            self.manners = replace(learned, room=min(self._most_room, learned.room))

    def _milder(self, response: Response, manners: Manners, wanted: Wanted) -> Manners | None:
        """What to ask for instead after a refusal; None where the refusal is about something else."""
        named = _refused(response)
        for name in named or ():
            if name == "max_tokens" and manners.room > 1:  # no name that it does not know, but more than it has
                self._most_room = manners.room // ROOM
                return replace(manners, room=self._most_room)
            if name == "max_tokens" and not manners.renamed:
                return replace(manners, renamed=True)
            if name == "form" and wanted.schema is not None and manners.form + 1 < _FORMS:
                return replace(manners, form=manners.form + 1)
            if name in _DROPPED and name not in manners.dropped:
                return replace(manners, dropped=manners.dropped | {name})
        if named is None and not self._hopeless:  # it does not say what it dislikes: what fewest servers know
            if wanted.schema is not None and manners.form + 1 < _FORMS:
                return replace(manners, form=manners.form + 1)
            for name, sent in (("seed", wanted.seed is not None), ("logprobs", wanted.words)):
                if sent and name not in manners.dropped:
                    return replace(manners, dropped=manners.dropped | {name})
            self._hopeless = True  # it was none of them, and will not be the next time
        return None

    def _body(self, turns: Sequence[Turn], wanted: Wanted, manners: Manners) -> dict[str, Any]:
        words = wanted.words and "logprobs" not in manners.dropped
        tokens = 1 if words else wanted.tokens * manners.room
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [_message(turn) for turn in turns],
            "temperature": wanted.temperature,
            "max_completion_tokens" if manners.renamed else "max_tokens": tokens,
            "stream": False,
        }
        if wanted.seed is not None:
            body["seed"] = wanted.seed % 2**31
        if words:
            body |= {"logprobs": True, "top_logprobs": WORDS_SHOWN}
        if wanted.schema is not None and manners.form == 0:
            name, schema = wanted.schema
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": name, "strict": True, "schema": schema},
            }
        elif wanted.schema is not None and manners.form == 1:
            body["response_format"] = {"type": "json_object"}
        return {name: value for name, value in body.items() if name not in manners.dropped}

    def _post(self, body: dict[str, Any]) -> Response:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self.endpoint.key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        raw = json.dumps(body).encode()
        return post(self.endpoint.address, raw, headers, self.endpoint.timeout, self.endpoint.local)


class _Unreadable(Exception):
    """The body is not what the protocol promises."""


def read_reply(body: bytes) -> Reply:
    """The answer in a server's response, thoughts apart from it and the key blotted out.

    Raises:
        _Unreadable: it is no chat completion.
    """
    value = parsed(body)
    try:
        choice = value["choices"][0]
        message = choice["message"]
        content = message.get("content")
        thoughts = next((message[name] for name in ("reasoning_content", "reasoning") if message.get(name)), "")
        refusal = message.get("refusal")
        cut = choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        seen = redacted(writable(body[:2000].decode(errors="replace")))
        raise _Unreadable(f"the server's answer is not a chat completion: {shown(seen, 80)}") from error
    if isinstance(content, list):  # parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if not content and isinstance(refusal, str):
        content = refusal
    if not isinstance(content, str):
        content = ""
    text, unfinished = answer_in(_clean(content))
    thoughts = _clean(thoughts) if isinstance(thoughts, str) else ""
    return Reply(text, thoughts, cut or unfinished, _first_words(choice))


def _clean(text: str) -> str:
    return redacted(writable(text), SHORTEST_SECRET)


def _first_words(choice: dict[str, Any]) -> tuple[tuple[str, float], ...] | None:
    """Likeliest first words and their probabilities, where the server gave them."""
    try:
        words = choice["logprobs"]["content"][0]["top_logprobs"]
        found = tuple((str(word["token"]), math.exp(min(0.0, float(word["logprob"])))) for word in words)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    return found or None


def _message(turn: Turn) -> dict[str, Any]:
    if not turn.images:
        return {"role": turn.role, "content": turn.text}
    images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in turn.images]
    return {"role": turn.role, "content": [{"type": "text", "text": turn.text}, *images]}


def _refused(response: Response) -> list[str] | None:
    """Fields that an error names, [] where it names another one, None where it names none."""
    value = parsed(response.body)
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and isinstance(error.get("param"), str):
        name = error["param"].split(".")[0].split("[")[0]
        return [_NAMES[name]] if name in _NAMES else []
    text = response.body.decode(errors="replace")
    found = {match[0]: None for match in re.finditer("|".join(rf"\b{name}\b" for name in _NAMES), text)}
    return [_NAMES[name] for name in found] or None


def _sleep(seconds: float, poll: Poll) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        poll()
        time.sleep(min(0.1, max(0.0, end - time.monotonic())))


def _retry_after(response: Response) -> float | None:
    """Seconds that the server asks to wait, where it gives a number."""
    value = next((value for name, value in response.headers.items() if name.lower() == "retry-after"), "")
    try:
        return max(0.0, float(value))
    except ValueError:
        return None


def _detail(response: Response) -> str:
    """What the server says about an error, short; "" where it says nothing."""
    value = parsed(response.body)
    said = value.get("error", value.get("detail")) if isinstance(value, dict) else None
    if isinstance(said, dict):
        said = said.get("message")
    text = said if isinstance(said, str) else response.body.decode(errors="replace")
    flat = " ".join(redacted(writable(text)).split())[:160]
    return f": {flat}" if flat else ""


def _advice(status: int) -> str:
    if status in (401, 403):
        return f"; the key is read from {KEY_VARIABLE} and sent to hosts in {HOSTS_VARIABLE} and to this machine"
    if status == 404:
        return "; check the address (it ends with the version, e.g. /v1) and the model's name"
    return ""
