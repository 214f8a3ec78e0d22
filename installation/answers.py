"""What a ComfyUI answers, in sentences: why it refuses a workflow, and why a node failed."""

from __future__ import annotations

LONGEST = 2000
"""Characters of a server's own words that are shown."""
# What nodes of this pack raise is written for users: the name of the exception adds nothing.
OWN_ERRORS = {"SearchError", "VerifierError", "RewriterError", "TraceFileError", "CheckpointError", "BadInput"}


def shortened(text: str, longest: int) -> str:
    """``text``, cut to about ``longest`` characters with a note of how many there were."""
    if len(text) <= longest:
        return text
    return f"{text[: max(longest - 30, 0)].rstrip()} ... ({len(text)} characters)"


def explain_refusal(answer: dict, workflow: dict) -> str:
    """The server's answer to a prompt that it does not accept, a line per fault, with node, input and reason."""
    lines: list[str] = []
    for node_id, entry in (answer.get("node_errors") or {}).items():
        title = workflow.get(node_id, {}).get("_meta", {}).get("title") or entry.get("class_type", "")
        lines += [f"  {node_id} {title}: {text}" for text in _faults(entry.get("errors") or [])]
    error = answer.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    if not lines:
        details = f": {error['details']}" if error.get("details") else ""
        lines.append(f"  {error.get('message', 'no reason given')}{details}")
    return shortened("ComfyUI refuses the workflow:\n" + "\n".join(lines), LONGEST)


def _faults(errors: list[dict]) -> list[str]:
    """One sentence per fault of a node.

    A node that checks several inputs itself returns one sentence, which the server repeats for every one of them with
    its name in front. It is told once; it names the input that it means.
    """
    told: list[str] = []
    for fault in errors:
        details = str(fault.get("details") or "")
        if fault.get("type") == "custom_validation_failed" and " - " in details:
            text = details.split(" - ", 1)[1]
        else:
            text = str(fault.get("message", fault.get("type", "?"))) + (f": {details}" if details else "")
        if text not in told:
            told.append(text)
    return told


def explain_failure(data: dict) -> str:
    """An ``execution_error`` event as one paragraph, without the paths of Python modules."""
    message = str(data.get("exception_message", "")).strip()
    kind = str(data.get("exception_type") or "error").rsplit(".", 1)[-1]
    what = message if kind in OWN_ERRORS and message else f"{kind}: {message}" if message else kind
    return f"node {data.get('node_id')} ({data.get('node_type')}) failed: {shortened(what, LONGEST)}"
