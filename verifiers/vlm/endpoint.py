"""A judge behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp's server, hosted services.

Address, key and manners are those of ``chat.endpoint``. A grade is read from what the server calls the answer and from
nothing else: not from thoughts, and a yes or no not from an answer that was cut off.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Sequence

from torch import Tensor

from ...chat.client import ChatClient, Wanted
from ...chat.conversation import NotUnderstood, Poll, Reply, Unanswered, side_by_side
from ...chat.endpoint import Endpoint
from .judge import CUT, HINT, Asked, Odds, VLMJudgeVerifier, about_each, as_turn
from .rubric import Rubric, read_yes_no

log = logging.getLogger("testtime")

TOKENS = 256  # shortest limit of an answer in words: models that think need room, the others stop by themselves
TINY = 1e-9  # probability below which log-odds say no more
MOST_READ = 2000  # characters of an answer in which a word is looked for
LEAST = 0.01  # P(yes) + P(no) below which the model was about to say something else


class EndpointAsker:
    """Asks a server about every image, several at a time.

    Args:
        endpoint: address, model and manners; sampling is greedy whatever it says.
        longest: pixels of an image's longer side that is sent.
        poll: called while waiting; raises to end the wait (a user's Cancel).

    Raises:
        ChatError: an address or setting that cannot work.
    """

    module = None

    def __init__(self, endpoint: Endpoint, longest: int = 512, poll: Poll = lambda: None):
        self.client = ChatClient(endpoint, "verifier")
        self.endpoint, self.longest, self.poll = endpoint, longest, poll
        self.name = self.client.name
        self._chances = True  # whether the server gives probabilities, as far as is known

    def ask(self, pixels: Tensor, questions: Sequence[str], rubric: Rubric) -> list[dict[str, float] | str]:
        """See ``judge.Asker``; a reason stands for what failed after all retries."""
        return self.ask_of(about_each(pixels, questions), rubric)

    def ask_of(self, asked: Sequence[Asked], rubric: Rubric) -> list[dict[str, float] | str]:
        """See ``judge.Asker``."""
        jobs = [functools.partial(self._one, one, rubric) for one in asked]
        return side_by_side(jobs, self.endpoint.parallel, self.poll)

    def odds(self, asked: Sequence[Asked], words: tuple[str, str]) -> Odds:
        """See ``judge.Asker``: from the first word's probabilities where the server gives them, else from the word."""
        jobs = [functools.partial(self._which, one, words) for one in asked]
        return side_by_side(jobs, self.endpoint.parallel, self.poll)

    def _which(self, asked: Asked, words: tuple[str, str], poll: Poll) -> float | str:
        try:
            for hint in ("", HINT):
                wanted = Wanted(TOKENS, words=self._chances)
                reply = self.client.complete([as_turn(asked, self.longest, hint)], wanted, poll)
                chance = chance_of(reply, words)
                if chance is not None:
                    return math.log(max(chance, TINY)) - math.log(max(1 - chance, TINY))
                if (said := None if reply.cut else first_of(reply.text, words)) is not None:
                    return math.inf if said == words[0] else -math.inf
        except Unanswered as error:
            return str(error)
        return f"the answer is neither {words[0]} nor {words[1]}"

    def _one(self, asked: Asked, rubric: Rubric, poll: Poll) -> dict[str, float] | str:
        """Scores of one image, or why there are none."""
        schema = None if rubric.schema is None else ("grades", rubric.schema)
        tokens = max(TOKENS, rubric.tokens)
        reason = ""
        try:
            if rubric.name == "yes_no" and self._chances:
                wanted = Wanted(tokens, words=True)
                found = self._by_chance(self.client.complete([as_turn(asked, self.longest)], wanted, poll))
                if found is not None:
                    return found
            wanted = Wanted(tokens, schema=schema)
            for hint in ("", HINT):
                reply = self.client.complete([as_turn(asked, self.longest, hint)], wanted, poll)
                try:
                    return read(reply, rubric)
                except NotUnderstood as error:
                    reason = str(error)
        except Unanswered as error:
            return str(error)
        return reason

    def _by_chance(self, reply: Reply) -> dict[str, float] | None:
        """P(yes) of the first word's probabilities; None where a whole answer must be asked for."""
        chance = chance_of_yes(reply)
        if chance is not None:
            return {"yes": chance}
        if self._chances:
            self._chances = False
            log.warning(
                "verifier %s gives no usable probabilities of yes and no: every image gets exactly 0 or 1, so many "
                "will tie. The rubrics axes and unified_reward tell them apart, as does a server with logprobs",
                self.name,
            )
        if reply.cut:
            return None
        try:
            return read_yes_no(reply.text)
        except NotUnderstood:
            return None


def read(reply: Reply, rubric: Rubric) -> dict[str, float]:
    """Scores of a server's answer in words.

    Raises:
        NotUnderstood: it holds none, or is a yes or no that was cut off, so that it may have been a thought.
    """
    if rubric.schema is not None and not reply.text.strip() and not reply.cut:
        return rubric.read(reply.thoughts)  # some servers put the whole JSON there
    if reply.cut and rubric.name == "yes_no":
        raise NotUnderstood(f"the answer was cut off before its end{': it was all thought' * (not reply.text.strip())}")
    try:
        return rubric.read(reply.text)
    except NotUnderstood as error:
        raise NotUnderstood(f"{error}{CUT * reply.cut}") from error


def chance_of_yes(reply: Reply) -> float | None:
    """P(yes) / (P(yes) + P(no)) over the likeliest first words.

    None where the server did not give them, where they belong to a thought, or where neither word was likely.
    """
    return chance_of(reply, ("yes", "no"))


def chance_of(reply: Reply, words: tuple[str, str]) -> float | None:
    """Share of the first of two words; None as for ``chance_of_yes``."""
    if reply.words is None or reply.thoughts or not reply.text.strip():
        return None
    chances = [(word.strip().lower(), chance) for word, chance in reply.words]
    one, other = (sum(chance for word, chance in chances if word == wanted.lower()) for wanted in words)
    return one / (one + other) if one + other >= LEAST else None


def first_of(text: str, words: tuple[str, str]) -> str | None:
    """The only one of two words that a text holds, None where it holds both or neither."""
    found = set(re.findall(r"[a-z]+", text.lower()[:MOST_READ]))
    said = [word for word in words if word.lower() in found]
    return said[0] if len(said) == 1 else None


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
        timeout, retries, parallel: of ``chat.endpoint.Endpoint``.
        longest, poll: of ``EndpointAsker``.
        options: of ``VLMJudgeVerifier``.

    Raises:
        SearchError: an address or setting that cannot work.
    """
    endpoint = Endpoint(url, model, temperature=0.0, timeout=timeout, retries=retries, parallel=parallel)
    options.setdefault("batch", parallel)
    return VLMJudgeVerifier(EndpointAsker(endpoint, longest, poll), **options)
