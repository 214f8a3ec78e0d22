"""Jobs and slots of a workflow: every row checked before the first runs, on running servers or on ones of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...graph.prompt import checked_prompt, uploads_in
from ...graph.workflow import input_specs
from ...installation.client import ComfyClient
from ...installation.comfyui import HeadlessComfyUI, HeadlessOptions
from ...installation.errors import BadInput
from ..gpus import on_gpu
from .dispatch import Job, Slot
from .rows import Row, as_text, mapped
from .server_slots import HeadlessSlot, ServerSlot


@contextmanager
def serving(
    urls: Sequence[str], workers: int, headless: HeadlessOptions, timeout: float | None
) -> Iterator[tuple[list[Slot], dict, str]]:
    """(slots, definitions of nodes, version): the servers at ``urls``, or ``workers`` ComfyUIs of our own.

    Raises:
        ServerTrouble: one does not answer: a batch that begins with fewer workers than were named would go unnoticed.
    """
    if urls:
        info, version = asyncio.run(_definitions(urls))
        yield [ServerSlot(url, info, timeout) for url in urls], info, version
        return
    first = HeadlessComfyUI(on_gpu(headless, 0))
    first.start()
    try:
        info, version = asyncio.run(_definitions([first.url]))
        slots = [HeadlessSlot(k, headless, info, timeout, first if k == 0 else None) for k in range(workers)]
        yield list[Slot](slots), info, version
    finally:
        first.stop()


async def _definitions(urls: Sequence[str]) -> tuple[dict, str]:
    """(definitions of nodes, version) of the first server; all must answer."""
    found: tuple[dict, str] | None = None
    for url in urls:
        async with ComfyClient(url) as client:
            info = await client.object_info()
            found = found or (info, client.version)
    assert found is not None
    return found


def workflow_jobs(
    rows: Sequence[Row],
    mapping: Sequence[str],
    template: dict,
    assignments: Sequence[str],
    info: dict,
    version: str = "",
    file: Path | str = "rows",
    prompt_seed: int = 0,
) -> list[Job]:
    """A checked workflow per row, those with the same models side by side. Raises BadInput naming the line."""
    jobs: list[tuple[str, Job]] = []
    for row, named in zip(rows, mapped(rows, mapping), strict=True):
        where = f"--rows {file}: line {row.line}"
        for column in named.values:
            if "." not in column:
                advice = f"call it NODE.INPUT, or add --map {column}=NODE.INPUT"
                raise BadInput(f"{where}: column {column!r} names no input: {advice}")
        given = [*assignments, *(f"{name}={as_text(value)}" for name, value in named.values.items())]
        try:
            ready = checked_prompt(template, given, info, version, prompt_seed)
            for _, _, path in uploads_in(ready, info):
                if not Path(path).expanduser().is_file():
                    raise BadInput(f"{path}: no such file to upload")
        except BadInput as error:
            raise BadInput(f"{where}: {str(error).replace('--set ', '', 1)}") from error
        jobs.append((models_of(ready, info), Job(row.key, ready, dict(row.values))))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def models_of(ready: dict, info: dict) -> str:
    """The files that a workflow loads, so that rows with the same ones run one after the other."""
    names = []
    for node_id, node in ready.items():
        if any(isinstance(value, list) for value in node["inputs"].values()):
            continue  # loaders have no links
        for name, spec in input_specs(info.get(node["class_type"], {})).items():
            if isinstance(spec[0], list) or spec[0] == "COMBO":
                names.append(f"{node_id}.{name}={node['inputs'].get(name)}")
    return "\n".join(names)
