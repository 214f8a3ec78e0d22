"""The example workflows of a search that a person takes part in, or that goes on from an earlier one."""

from __future__ import annotations

from workflow_graph import Group, Link, Node, Workflow
from workflow_parts import NARROW, RESULT_VIOLET, SEARCH_BROWN, START_GREEN, World, decode, save


def save_search(images: Link, sampler: Node, prefix: str, scores: bool = False) -> Node:
    """Save Search, wide enough to see something; ``scores`` belong to ``finalists``."""
    inputs = {"images": images, "trace": sampler["trace"], "filename_prefix": prefix}
    inputs |= {"scores": sampler["scores"]} if scores else {}
    return Node("TestTimeSaveSearch", inputs, width=340, picture=320)


def pick_by_hand() -> Workflow:
    text = """
    ## Pick by hand
    **Pick by Hand** stands between a verifier and the search. At the steps in **ask_at** the run pauses, the Search
    panel opens and shows the candidates: pick the ones you like in order, drop the others.

    - **fallback** judges at all other steps, and decides where nobody answers within **seconds**.
    - Runs without a browser (API, scripts) never wait.
    - **Save Search** keeps the image, the whole trace and a page of the search in the output folder.
    """
    name = "pick_by_hand"
    world = World("two pink stars")
    method = Node("TestTimeSMC", {"particles": 8})
    judge = Node("TestTimePickByHand", {"fallback": world.load["verifier"], "ask_at": "50%, end"})
    sampler = world.search(method, verifier=judge["verifier"])
    best = decode(sampler["best"], world.load["vae"], "Decode the best")
    result = [[best], [save_search(best["IMAGE"], sampler, name)]]
    groups = world.before(text, [judge], [method, world.latent])
    groups += [Group("Search", [[sampler]], SEARCH_BROWN), Group("Result", result, RESULT_VIOLET)]
    return Workflow(name, groups)


def continue_search() -> Workflow:
    text = """
    ## Go on from a particle
    A search, and another one that **begins in the middle of it**: Continue Search walks the way of the winner up to
    **step** again (one forward pass per step) and lets SVDD go on from there. Model, seed, schedule and prompts must
    be those of the first search.

    - **particle** -1 is the winner. *Use in the graph* in the Search panel writes the number of another one.
    - **new_noise** 0 repeats the noise of the first search, every other number gives other images.
    - For a search of yesterday, put **Load Trace** in the place of the first one: it reads what Save Search wrote.
    """
    name = "continue_search"
    world = World("three green rings")
    first = world.search(Node("TestTimeSMC", {"particles": 6}))
    first.title = "First search"
    start, method = first.inputs["search"].node, Node("TestTimeSVDD", {"candidates": 4}, "SVDD goes on")
    settings = {"search": method["search"], "trace": first["trace"], "step": 8, "new_noise": 1}
    going_on = Node("TestTimeContinueSearch", settings, width=NARROW)
    second = world.search(going_on)
    second.title = "Second search"
    before = decode(first["best"], world.load["vae"], "Decode the first")
    after = decode(second["best"], world.load["vae"], "Decode the second")
    after.drop = 230
    pictures = [save(before["IMAGE"], f"{name}_first", "The first search", 240)]
    pictures += [save_search(after["IMAGE"], second, name)]
    for node, width in ((first, NARROW), (second, NARROW), (pictures[1], 240)):
        node.width = width
    groups = world.before(text, [method], [start, world.latent], "Methods")
    groups.append(Group("A search", [[first]], START_GREEN))
    groups.append(Group("Go on from its winner", [[going_on]], SEARCH_BROWN, below=True))
    groups.append(Group("From there on", [[second]], SEARCH_BROWN))
    groups.append(Group("Result", [[before, after], pictures], RESULT_VIOLET))
    return Workflow(name, groups)


WORKFLOWS = [pick_by_hand, continue_search]
