"""What a command can fail with, and the exit status of each."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_SERVER = 3
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """A failure the user can act on: the message is all they see. ``status`` is the exit status of the command."""

    status = EXIT_FAILED


class BadInput(CommandError):
    """A wrong file, option or value; nothing was run."""

    status = EXIT_BAD_INPUT


class ServerTrouble(CommandError):
    """ComfyUI is missing, too old, not answering, or went away."""

    status = EXIT_SERVER


class WorkflowFailed(CommandError):
    """ComfyUI accepted the workflow and a node raised an error, or the run was interrupted on the server.

    ``kind``: class of the node's error, "" where it was something else.
    """

    status = EXIT_FAILED

    def __init__(self, message: str, kind: str = ""):
        super().__init__(message)
        self.kind = kind
