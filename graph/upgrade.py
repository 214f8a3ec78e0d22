"""Search with this sampler: a stock sampler of a workflow becomes a search, in its place.

| sampler | becomes |
| --- | --- |
| KSampler | Search KSampler, under the same id |
| KSamplerAdvanced | SamplerCustom under the same id, with Search Sampler and the sigmas of before (SplitSigmas) |
| SamplerCustom, SamplerCustomAdvanced | itself, with Search Sampler for a sampler |

A method and a verifier are added; the VAE is the one that decodes the sampler's latent, the prompt the one behind its
positive conditioning. ``restore.back`` undoes it from the notes that are kept in the node.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from ..installation.errors import BadInput
from .api_page import ApiPage
from .catalogue import STOCK, Catalogue
from .convert import BYPASSED, MUTED
from .exchange import Builder, Prompt, Wanted
from .follow import check_makes_images, decoder_of, positive_of, prompts_of
from .surroundings import Surroundings, look_around
from .ui_graph import Graph, build
from .ui_page import UiPage
from .workflow import is_ui_format


@dataclass
class Upgraded:
    """A workflow with a search in it.

    Attributes:
        workflow: a changed copy. node: id of the node that samples, on its page.
        prompt: what the verifier is told, as far as it is known before a run. prompt_found: whether there was any.
        in_words: whether the sampler is steered by a text at all, be it empty; depth maps and upscalers are not.
        notes: sentences for the person.
    """

    workflow: dict
    node: Any
    prompt: str | None = None
    prompt_found: bool = True
    in_words: bool = True
    notes: list[str] = field(default_factory=list)


def upgrade(
    workflow: dict, object_info: dict, where: str, wanted: Wanted, catalogue: Catalogue | None = None
) -> Upgraded:
    """A copy of a workflow (UI or API format) in which the sampler ``where`` searches.

    Args:
        where: id of the sampler in API format (``7``, ``57:3`` inside of sub-graph node 57), or the sub-graph's own
            id and the node's with a slash (``f2fde...:3``), as ``surroundings.look_around`` takes it.

    Raises:
        BadInput: one sentence that says why this sampler cannot be replaced.
    """
    workflow = deepcopy(workflow)
    catalogue = catalogue or Catalogue(object_info)
    around = look_around(workflow, object_info, where)
    page, key = around.page, around.key
    check_sampler(page, key)
    decoder = decoder_of(around.flow, around.api_id)
    check_makes_images(around.flow, around.api_id, decoder[0])
    vae = around.source_here(*decoder)
    if vae is None:
        raise BadInput(
            f"{around.flow.label(around.api_id)}: the VAE that decodes its latent stands outside of its "
            "sub-graph. Give the sub-graph a VAE input first, or unpack it"
        )
    prompt = find_prompt(around)
    done = Builder(catalogue, page, key, wanted, vae, prompt).build()
    return Upgraded(workflow, key, prompt.value, prompt.found, prompt.in_words, [*done, *prompt.notes])


def check_sampler(page: ApiPage | UiPage, key: Any) -> None:
    """Raise ``BadInput`` unless a node is a stock sampler that is switched on."""
    node, kind = page.node(key), page.kind(key)
    if kind not in STOCK:
        raise BadInput(f"node {key} is a {kind[:80]}: choose one of {', '.join(STOCK)}")
    if node.get("mode") in (MUTED, BYPASSED):
        raise BadInput(f"node {key} ({kind}) is {'muted' if node['mode'] == MUTED else 'bypassed'}: switch it on first")


def find_prompt(around: Surroundings) -> Prompt:
    """What the sampler's positive conditioning says in words."""
    positive = positive_of(around.flow, around.api_id)
    texts = prompts_of(around.flow, positive)
    if not texts:
        told = "by no conditioning" if positive is None else f"by {around.flow.label(positive[0])}"
        why = f"This sampler is told nothing in words (it is steered {told})"
        return Prompt("", None, False, (f"{why}: type into the search node what its pictures should show.",), False)
    if len(texts) == 1:
        source = around.source_here(texts[0].node, texts[0].name)
        if source is not None:  # the value, too: a sub-graph's input may have none of its own
            return Prompt(around.written(texts[0]), source)
    written = [around.written(text) for text in texts]
    known = [text.strip() for text in written if text and text.strip()]
    for text, value in zip(texts, written, strict=True):
        source = around.source_here(text.node, text.name) if value is None else None
        if source is not None:  # the others are typed, and mostly what is added to it
            note = f"{len(texts)} texts are combined: the verifier gets the one that is made when it runs."
            return Prompt(None, source, True, (note,))
    if not known or None in written:
        why = "the text is only known when it runs" if None in written else "the text encoder's text is empty"
        return Prompt("", None, False, (f"The prompt was not found ({why}): type it into the search node.",))
    notes = ()
    if len(known) > 1:
        notes = (f"{len(known)} texts are combined: the verifier gets them as one prompt.",)
    return Prompt(", ".join(dict.fromkeys(known)), None, True, notes)


def samplers_in(workflow: dict) -> list[tuple[str, str]]:
    """(id in API format, class) of every stock sampler that is switched on and takes part."""
    if not is_ui_format(workflow):
        return [(key, node["class_type"]) for key, node in workflow.items() if node["class_type"] in STOCK]
    found = []
    for graph in build(workflow).all_graphs():
        off = any(level.instance and level.instance.get("mode") in (MUTED, BYPASSED) for level in _around(graph))
        nodes = [] if off else graph.nodes.values()
        on = (node for node in nodes if node["type"] in STOCK and node.get("mode") not in (MUTED, BYPASSED))
        found += [(graph.api_id(node), node["type"]) for node in on]
    return found


def _around(graph: Graph | None) -> list[Graph]:
    """A graph and those that it is inside of."""
    return [] if graph is None else [graph, *_around(graph.parent)]
