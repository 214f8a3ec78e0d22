"""``testtime upgrade``: a stock sampler of a workflow becomes a search; ``--back`` undoes it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path

from ..graph.catalogue import Catalogue
from ..graph.exchange import Wanted
from ..graph.restore import back
from ..graph.upgrade import samplers_in, upgrade
from ..graph.workflow import is_ui_format, read_workflow
from ..installation.client import ComfyClient
from ..installation.comfyui import HeadlessOptions
from ..installation.errors import BadInput
from ..installation.files import write_text
from ..installation.running import last_words, server_for
from .run import check_folder, seconds

logger = logging.getLogger("testtime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``testtime upgrade``."""
    parser.add_argument("workflow", type=Path, help="workflow file, as saved by ComfyUI (UI format) or exported (API)")
    parser.add_argument("--method", default="Best-of-N", help="search method, by its node's name (Best-of-N)")
    parser.add_argument("--verifier", help="verifier, by its node's name; needed unless --back is given")
    parser.add_argument("--number", type=int, metavar="N", help="images that the method compares (its node's default)")
    parser.add_argument("--seconds", type=seconds, default=0.0, metavar="S", help="fit the search to this much time")
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="ID",
        help="sampler to replace, where there are several; ID is as in API format (7, or 57:3 in a sub-graph). May be "
        "repeated; 'all' for all",
    )
    parser.add_argument("--back", action="store_true", help="turn the search that --node names into its sampler again")
    parser.add_argument("-o", "--out", type=Path, help="file to write (default: NAME_search.json beside the workflow)")
    parser.add_argument("--server", metavar="URL", help="ask a ComfyUI that is already running for its nodes")


async def definitions(url: str, alive) -> dict:
    """The server's definitions of nodes."""
    async with ComfyClient(url, alive) as client:
        return await client.object_info()


def chosen_nodes(workflow: dict, wanted: list[str]) -> list[str]:
    """Ids of the samplers to replace. ``BadInput`` where there is none, or where it is not clear which."""
    there = samplers_in(workflow)
    if wanted and wanted != ["all"]:
        return wanted
    if not there:
        raise BadInput("the workflow has no KSampler, KSamplerAdvanced, SamplerCustom or SamplerCustomAdvanced")
    if len(there) > 1 and not wanted:
        listed = ", ".join(f"{key} ({kind})" for key, kind in there[:20])
        raise BadInput(f"the workflow has {len(there)} samplers: say which with --node ID, or --node all: {listed}")
    return [key for key, _ in there]


def upgraded(workflow: dict, object_info: dict, options: argparse.Namespace) -> dict:
    """The workflow with searches in it; what a person has to know goes to the log."""
    if options.verifier is None:
        titles = ", ".join(choice.title for choice in Catalogue(object_info).verifiers())
        raise BadInput(f"--verifier is missing: choose one of {titles}")
    wanted = Wanted(options.method, options.verifier, options.number, options.seconds)
    for key in chosen_nodes(workflow, options.node):
        done = upgrade(workflow, object_info, key, wanted)
        workflow = done.workflow
        for note in done.notes:
            logger.info("node %s: %s", key, note)
    return workflow


def restored(workflow: dict, object_info: dict, options: argparse.Namespace) -> dict:
    """The workflow with stock samplers again."""
    if not options.node:
        raise BadInput("--back: say with --node ID which search is to become a sampler again")
    for key in options.node:
        done = back(workflow, object_info, key)
        workflow = done.workflow
        for note in done.notes:
            logger.info("node %s: %s", key, note)
    return workflow


def main(options: argparse.Namespace) -> int:
    """Write the changed workflow; returns the exit status."""
    workflow = read_workflow(options.workflow)
    out = options.out or options.workflow.with_name(f"{options.workflow.stem}_search.json")
    check_folder(out.parent)
    if not options.back and not is_ui_format(workflow):
        chosen_nodes(workflow, options.node)  # told before a server is started
    with server_for(options.server, HeadlessOptions()) as (url, server):
        object_info = asyncio.run(definitions(url, last_words(server)))
    changed = (restored if options.back else upgraded)(workflow, object_info, options)
    write_text(out, json.dumps(changed, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(f"{out}\n")
    return 0
