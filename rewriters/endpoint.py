"""Any OpenAI-compatible endpoint as a rewriter: vLLM, Ollama, llama.cpp's server, hosted services."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..chat.client import ChatClient, Wanted
from ..chat.conversation import Poll, Reply, Turn, side_by_side
from ..chat.endpoint import Endpoint
from ..samplers.protocols import Rewrite, RewriteRequest
from .base import ChatRewriter
from .template import SCHEMA, Template


class EndpointRewriter(ChatRewriter):
    """Asks an OpenAI-compatible server. See ``chat.endpoint`` for where the key comes from.

    Args:
        endpoint: address, model and manners.
        template: instructions.

    Raises:
        ChatError: an address or setting that cannot work.
    """

    def __init__(self, endpoint: Endpoint, template: Template | None = None):
        self.client = ChatClient(endpoint, "rewriter")
        super().__init__(self.client.name, template)
        self.endpoint = endpoint

    def _answers(self, requests: list[RewriteRequest], poll: Poll) -> list[Rewrite]:
        """All questions at once, as far as ``parallel`` allows."""
        jobs = [functools.partial(self.answer, request) for request in requests]
        return side_by_side(jobs, self.endpoint.parallel, poll)

    def complete(self, turns: Sequence[Turn], seed: int, poll: Poll) -> Reply:
        """One answer, as JSON where the server can."""
        settings = self.endpoint
        wanted = Wanted(settings.max_tokens, settings.temperature, seed, ("rewrites", SCHEMA))
        return self.client.complete(turns, wanted, poll)
