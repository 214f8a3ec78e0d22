"""A judge behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp's server, hosted services.

Address, key and manners are those of ``chat.client``: the key comes from the environment alone and goes only to
hosts that are named there. Calls are retried with growing pauses; what still fails is the judge's to count.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...chat.client import Endpoint, EndpointRewriter
from ...rewriters.base import Turn, Unanswered
from ..pictures import to_pictures
from .judge import VLMJudgeVerifier
from .rubric import NotUnderstood, Rubric

WORDS_SHOWN = 20  # likeliest first words that a server is asked for; none gives more


class _Client(EndpointRewriter):
    """The transport of the rewriters with a judge's questions. ``_format`` 0 asks for everything, 2 for plain text."""

    def __init__(self, endpoint: Endpoint, rubric: Rubric):
        super().__init__(endpoint)
        self.rubric = rubric

    def _body(self, turns: Sequence[Turn], seed: int) -> dict[str, Any]:
        body = super()._body(turns, seed)
        body.pop("response_format", None)
        body |= {"temperature": 0.0, "max_tokens": max(16, self.rubric.tokens)}
        if self.rubric.schema is None:
            if self._format == 0 and self.rubric.name == "yes_no":
                body |= {"logprobs": True, "top_logprobs": WORDS_SHOWN, "max_tokens": 1}
        elif self._format == 0:
            schema = {"name": "grades", "strict": True, "schema": self.rubric.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self._format == 1:
            body["response_format"] = {"type": "json_object"}
        return body

    @staticmethod
    def _content(raw: bytes) -> str:
        EndpointRewriter._content(raw)  # complains about what is no chat completion
        return raw.decode(errors="replace")


class EndpointAsker:
    """Asks a server about every image, several at a time.

    Args:
        endpoint: address, model and manners; sampling is greedy whatever it says.
        longest: pixels of an image's longer side that is sent.
        poll: called while waiting; raises to end the wait (a user's Cancel).
    """

    module = None

    def __init__(self, endpoint: Endpoint, longest: int = 512, poll: Callable[[], None] = lambda: None):
        endpoint.check()
        self.endpoint, self.longest, self.poll = endpoint, longest, poll
        self.name = f"{endpoint.model} at {endpoint.host}"
        self._clients: dict[str, _Client] = {}

    def ask(self, pixels: Tensor, questions: Sequence[str], rubric: Rubric) -> list[dict[str, float] | str]:
        """See ``judge.Asker``; a reason stands for what failed after all retries."""
        client = self._clients.setdefault(rubric.name, _Client(self.endpoint, rubric))
        stop = threading.Event()

        def cancelled() -> None:
            if stop.is_set():
                raise Unanswered("cancelled", calls=0)

        def one(picture, question: str) -> dict[str, float] | str:
            reason = ""
            for hint in ("", "\nOnly the answer in exactly this form, nothing before or after it."):
                try:
                    raw, _ = client.complete([Turn("user", question + hint, picture)], 0, cancelled)
                    return read(raw, rubric)
                except NotUnderstood as error:
                    reason = str(error)
                except Unanswered as error:
                    return str(error)
            return reason

        pool = concurrent.futures.ThreadPoolExecutor(min(self.endpoint.parallel, len(questions)))
        try:
            shown = to_pictures(pixels, self.longest)
            waiting = [pool.submit(one, *pair) for pair in zip(shown, questions, strict=True)]
            while concurrent.futures.wait(waiting, timeout=0.1).not_done:
                self.poll()
            return [future.result() for future in waiting]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def read(raw: str, rubric: Rubric) -> dict[str, float]:
    """Scores of a server's answer: of the first word's probabilities where it gave them, else of the text."""
    choice = json.loads(raw)["choices"][0]
    if rubric.name == "yes_no":
        chance = chance_of_yes(choice)
        if chance is not None:
            return {"yes": chance}
    return rubric.read(EndpointRewriter._content(raw.encode()))


def chance_of_yes(choice: dict[str, Any]) -> float | None:
    """P(yes) / (P(yes) + P(no)) over the likeliest first words; None where the server did not give any of them."""
    try:
        words = choice["logprobs"]["content"][0]["top_logprobs"]
        chances = [(str(word["token"]).strip().lower(), math.exp(float(word["logprob"]))) for word in words]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    yes, no = (sum(chance for word, chance in chances if word == wanted) for wanted in ("yes", "no"))
    return yes / (yes + no) if yes + no > 0 else None


def endpoint_judge(
    url: str,
    model: str,
    *,
    timeout: float = 60.0,
    retries: int = 2,
    parallel: int = 4,
    longest: int = 512,
    poll: Callable[[], None] = lambda: None,
    **options,
) -> VLMJudgeVerifier:
    """A judge behind an endpoint.

    Args:
        url: base address with the version, e.g. ``http://127.0.0.1:8000/v1``.
        model: name that the server knows.
        timeout, retries, parallel: of ``chat.client.Endpoint``.
        longest, poll: of ``EndpointAsker``.
        options: of ``VLMJudgeVerifier``.

    Raises:
        SearchError: an address or setting that cannot work.
    """
    endpoint = Endpoint(url, model, temperature=0.0, timeout=timeout, retries=retries, parallel=parallel)
    options.setdefault("batch", parallel)
    return VLMJudgeVerifier(EndpointAsker(endpoint, longest, poll), **options)
