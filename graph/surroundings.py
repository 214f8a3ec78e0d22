"""Where a sampler stands: its page, and the links around it as the server will see them.

Links are followed in API format, where sub-graphs, reroutes, Set/Get pairs and bypassed nodes are resolved; what is
found there is then looked up on the page of the sampler, where it can be linked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..installation.errors import BadInput
from .api_page import ApiPage, Source
from .convert import Converter, Value
from .dynamic_prompts import first_choice
from .follow import Flow, Text, written
from .ui_graph import Graph, build
from .ui_page import UiPage
from .workflow import is_ui_format


@dataclass
class Surroundings:
    """A sampler and what is around it.

    Attributes:
        page, key: where it is changed, and its id there. api_id: its id in API format.
        flow: the whole workflow in API format, read only. graph: the level in UI format, None in API format.
    """

    page: ApiPage | UiPage
    key: Any
    api_id: str
    flow: Flow
    graph: Graph | None = None
    converter: Converter | None = None

    def written(self, text: Text) -> str | None:
        """A prompt as it is written somewhere; None where only a run can tell."""
        return written(self.flow, text)

    def source_here(self, api_id: str, name: str) -> Source | None:
        """What can be linked on this page to have what input ``name`` of a node (id in API format) has; None if not."""
        if self.graph is None:
            return self.page.source(api_id, name)
        for key, node in self.graph.nodes.items():
            if self.graph.api_id(node) == api_id:
                return self.page.source(key, name)
        wanted = self.flow.link(api_id, name)
        if wanted is None:
            return None
        for key, node in self.graph.nodes.items():  # the node that is linked there may stand on this page
            if self.graph.api_id(node) == wanted[0]:
                return (key, wanted[1])
        return self._arriving(wanted)

    def _arriving(self, wanted: Source) -> Source | None:
        """An output of this page (mostly of its border) that stands for an output of another one."""
        for key, node in self.graph.nodes.items():
            for entry in node.get("inputs") or []:
                if entry.get("link") is None:
                    continue
                found = self.converter._source(self.graph, entry["link"], entry.get("type", "*"), set())
                if not isinstance(found, Value) and found == wanted:
                    return self.page.source(key, entry["name"])
        return None


def look_around(workflow: dict, object_info: dict, where: str) -> Surroundings:
    """Find a node by its id in API format (``57:3``), or by ``DEFINITION/ID`` for the sub-graph it is saved in.

    Raises:
        BadInput: there is no such node, or the workflow cannot be read.
    """
    if not is_ui_format(workflow):
        if where not in workflow:
            raise BadInput(f"node {where[:80]}: the workflow has no node of this id")
        return Surroundings(ApiPage(workflow, object_info), where, where, Flow(workflow, object_info))
    converter = Converter(workflow, object_info, first_choice)
    graph, node = _find(converter.top, where)
    content = workflow if graph.definition is None else graph.definition
    flow = Flow(converter.convert(), {**_as_the_file_says(converter.top), **object_info})
    _fill_in_unknown(flow.workflow, converter.top, object_info)
    page = UiPage(workflow, content, object_info)
    return Surroundings(page, node["id"], graph.api_id(node), flow, graph, converter)


def find_page(workflow: dict, object_info: dict, where: str) -> tuple[ApiPage | UiPage, Any]:
    """(page, id on it) of a node, ``where`` as for ``look_around``; nothing is converted. ``BadInput`` for none."""
    if not is_ui_format(workflow):
        if where not in workflow:
            raise BadInput(f"node {where[:80]}: the workflow has no node of this id")
        return ApiPage(workflow, object_info), where
    graph, node = _find(build(workflow), where)
    return UiPage(workflow, workflow if graph.definition is None else graph.definition, object_info), node["id"]


def _find(top: Graph, where: str) -> tuple[Graph, dict]:
    definition, slash, key = where.rpartition("/")
    for graph in top.all_graphs():
        if slash and (graph.definition or {}).get("id", "") != definition:
            continue
        for node in graph.nodes.values():
            if where == graph.api_id(node) or (slash and str(node["id"]) == key):
                return graph, node
    raise BadInput(f"node {where[:80]}: the workflow has no node of this id")


def _fill_in_unknown(workflow: dict, top: Graph, object_info: dict) -> None:
    """Values of nodes that the server does not know, where the file names them (those of the newest front ends do)."""
    for graph in top.all_graphs():
        for node in graph.nodes.values():
            named, key = node.get("widgets_values_named"), graph.api_id(node)
            if node["type"] not in object_info and isinstance(named, dict) and key in workflow:
                workflow[key]["inputs"] = {**named, **workflow[key]["inputs"]}


def _as_the_file_says(top: Graph) -> dict[str, dict]:
    """Definitions of all classes as far as the saved nodes tell: inputs and outputs with their types, no widgets."""
    found: dict[str, dict] = {}
    for graph in top.all_graphs():
        for node in graph.nodes.values():
            inputs = {
                entry["name"]: [str(entry.get("type", "*")), {"forceInput": True}] for entry in node.get("inputs") or []
            }
            named = node.get("widgets_values_named")
            texts = [n for n, value in named.items() if isinstance(value, str)] if isinstance(named, dict) else []
            inputs |= {name: ["STRING"] for name in texts if name not in inputs}
            outputs = node.get("outputs") or []
            found[node["type"]] = {
                "input": {"optional": inputs},
                "output": [str(entry.get("type", "*")) for entry in outputs],
                "output_name": [str(entry.get("name", "")) for entry in outputs],
            }
    return found
