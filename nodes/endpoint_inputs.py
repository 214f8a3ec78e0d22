"""Inputs that every node asking an OpenAI-compatible endpoint has."""

from __future__ import annotations

from comfy_api.latest import io

from ..chat.endpoint import HOSTS_VARIABLE


def address_inputs() -> list:
    """Where the model is served, and under which name."""
    return [
        io.String.Input(
            "url",
            default="http://127.0.0.1:8000/v1",
            tooltip="Base address with the version: vLLM http://host:8000/v1, llama.cpp http://host:8080/v1, "
            f"Ollama http://host:11434/v1. The key is sent to this machine and to hosts in {HOSTS_VARIABLE}.",
        ),
        io.String.Input("model", default="", tooltip="Name under which the server offers the model."),
    ]


def patience_inputs() -> list:
    """How long to wait for an answer, in seconds, and how often to try again."""
    return [
        io.Float.Input(
            "timeout",
            default=60.0,
            min=1.0,
            max=600.0,
            step=1.0,
            optional=True,
            tooltip="Seconds to wait for one answer.",
        ),
        io.Int.Input(
            "retries",
            default=2,
            min=0,
            max=10,
            optional=True,
            tooltip="Retries if the server is overloaded, fails or drops the connection.",
        ),
    ]
