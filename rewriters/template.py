"""What a vision-language model is told: one template for all, which users may edit."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from ..chat.syntax import plain
from ..samplers.protocols import Attempt, RewriteRequest, SearchError

SYSTEM = """\
You help to steer an image that is still being made. The picture is an early, possibly blurred preview of it. Compare \
it with the request. Ignore blur, noise and missing fine detail. Look only for: requested things that are absent or \
merged, wrong counts, wrong colours or materials, wrong positions or relations, a wrong setting or style."""

USER = """\
Request: {prompt}
Progress: step {step} of {steps}.
{history}
If everything requested can be recognised, answer with aligned true and no prompts. Otherwise list what is missing and \
write {count} other prompts for the image generator. Each keeps every fact of the request, adds no new subjects, puts \
the missing parts first or describes them more concretely, stresses something else than the others, and has at most \
{words} words.
Answer with JSON only: {{"aligned": false, "missing": ["..."], "prompts": ["...", "..."]}}"""

ONLY_JSON = """\
That was not what was asked for. Answer with one JSON object and nothing else: \
{"aligned": true or false, "missing": [texts], "prompts": [texts]}"""

FIELDS = ("prompt", "step", "steps", "history", "count", "words")

# As an endpoint's structured output takes it.
SCHEMA = {
    "type": "object",
    "properties": {
        "aligned": {"type": "boolean"},
        "missing": {"type": "array", "items": {"type": "string"}},
        "prompts": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["aligned", "missing", "prompts"],
    "additionalProperties": False,
}

SHOWN_ATTEMPTS = 8


@dataclass(frozen=True)
class Template:
    """Instructions for the model.

    Attributes:
        system: the role it plays.
        user: the question; ``FIELDS`` in braces are filled in, literal braces are doubled. ``{prompt}`` must occur.
        words: longest rewrite, in words, >= 3.
    """

    system: str = SYSTEM
    user: str = USER
    words: int = 50

    def check(self) -> None:
        """Raise SearchError for a template that cannot be filled in."""
        if self.words < 3:
            raise SearchError(f"max_words is {self.words}: a prompt needs at least 3")
        try:
            fields = [field for field in Formatter().parse(self.user) if field[1] is not None]
        except ValueError as error:
            raise SearchError(f"template: {error}; literal braces are written twice") from error
        names = [name or "" for _, name, _, _ in fields]
        unknown = [name for name in names if name not in FIELDS]
        if unknown:
            known = ", ".join("{" + name + "}" for name in FIELDS)
            raise SearchError(
                f"template has the field {{{unknown[0]}}}: known are {known}; literal braces are written twice"
            )
        formatted = [name for _, name, form, turned in fields if form or turned]
        if formatted:  # {step:>999999999} would fill the memory
            raise SearchError(
                f"template asks for {{{formatted[0]}}} in a format of its own: write {{{formatted[0]}}} alone"
            )
        if "prompt" not in names:
            raise SearchError("template has no {prompt}: the model would not know what the image should show")

    def question(self, request: RewriteRequest) -> str:
        """The user's turn."""
        return self.user.format(
            prompt=plain(request.prompt),
            step=request.step,
            steps=request.steps,
            history=told(request.history),
            count=request.count,
            words=self.words,
        )


def told(history: tuple[Attempt, ...]) -> str:
    """The latest attempts in words, oldest first; "" without any."""
    if not history:
        return ""
    lines = ["Prompts tried so far, with the score of their preview (higher is better):"]
    for attempt in history[-SHOWN_ATTEMPTS:]:
        score = "" if attempt.score is None else f" ({attempt.score:.4g})"
        lines.append(f"- step {attempt.step}: {plain(attempt.prompt)}{score}")
    return "\n".join(lines)
