"""The example workflows: here one for every search method on the embedded model, all of one layout.

``workflow_uses.py`` has the others; ``build_workflows.py`` writes all.
"""

from __future__ import annotations

from workflow_graph import Node, Workflow
from workflow_parts import one_search


def best_of_n() -> Workflow:
    text = """
    ## Best-of-N
    Makes **N images** from the same prompt and keeps the one with the best score: the plainest way to spend
    more compute, and the hardest to fool.

    - **particles** is N. They run in chunks that fit the memory; chunking changes nothing else.
    - **sampler_name** may be any: the first image is then the one that KSampler makes.
    - **held_out** is a second judge that never steers: it shows whether images or only scores got better.

    Press Run: the report shows all N with their scores. Candidate 1 is what KSampler makes from this seed: the colours
    the wrong way round.
    """
    method = Node("TestTimeBestOfN", {"particles": 8})
    return one_search("best_of_n", "a red star and a blue circle", text, method, seed=4)


def importance_sampling() -> Workflow:
    text = """
    ## Importance Sampling
    N particles run side by side. At a few steps they are **drawn again in proportion to their score**, so the good
    ones go on several times and the bad ones end.

    - **alpha** is the temperature: low is greedy, high is true to the model.
    - **start, end, every** say at which steps it happens. Early previews are blurred guesses.
    - **eta** -1 (auto) draws the noise that copies need to go separate ways.
    """
    method = Node("TestTimeFKSteering", {"particles": 8, "potential": "rt", "start": 0.4})
    return one_search("importance_sampling", "three yellow hearts", text, method)


def svdd() -> Workflow:
    text = """
    ## SVDD
    At every step **M continuations** of the image are tried. Each is previewed and scored, and the most promising one
    is taken (Li et al. 2024). The strongest optimiser of the score per step, and the greediest: watch the held-out
    score in the report.

    - **candidates** is M; cost grows in proportion.
    - **alpha** 0 takes the best; above 0 it draws by score.
    - **every** 2 halves the decoding.
    """
    return one_search("svdd", "a green ring above a red cross", text, Node("TestTimeSVDD", {"candidates": 4}))


def smc() -> Workflow:
    text = """
    ## SMC
    Sequential Monte Carlo: the score is **phased in** over the steps, and particles are resampled when few of them
    carry the weight. Of all methods it stays closest to what the model itself would draw.

    - **alpha** is the temperature: low is greedy.
    - **tempering** is how the score comes in; adaptive goes as fast as the weights allow.
    - **ess_threshold** is when to resample, as a share of N. 0 chooses a good value.
    """
    return one_search("smc", "two purple squares", text, Node("TestTimeSMC", {"particles": 8}))


def das() -> Workflow:
    text = """
    ## DAS
    SMC whose moves **follow the gradient of the score** (Kim et al. 2025). The verifier must be differentiable, as
    both verifiers of Shapes World and CLIPScore are.

    - **guidance** is the strength of the gradient: 1 as derived, 0 is SMC.
    - **gradient_through**: denoiser is exact and dear, decoder is cheap and approximate.
    - **alpha** is the temperature: low is greedy.
    """
    method = Node("TestTimeDAS", {"particles": 4, "gradient_through": "decoder"})
    return one_search("das", "an orange triangle left of a blue ring", text, method)


def fk_steering() -> Workflow:
    text = """
    ## FK Steering
    Feynman-Kac steering resamples at a few steps by a **potential** of each particle's scores so far (Singhal et al.
    2025).

    - **potential**: diff is by how much the score rose, max the best so far, rt the present one.
    - **alpha** is the temperature; the paper's lambda is 1 / alpha.
    - **start, end, every** say at which steps it resamples.
    """
    return one_search("fk_steering", "a red cross and a pink heart", text, Node("TestTimeFKSteering", {"particles": 8}))


def beam_search() -> Workflow:
    text = """
    ## Beam Search
    Carries B images along, tries K continuations of each, and keeps **the best B of all**, judged by where a short
    look ahead leads (Oshima et al. 2025).

    - **beams** and **children**: B and K; cost grows with B x K.
    - **lookahead** 1 judges the plain estimate, more looks further ahead at more cost.
    """
    method = Node("TestTimeBeamSearch", {"beams": 3, "children": 2})
    return one_search("beam_search", "a yellow star below a green square", text, method)


def random_search() -> Workflow:
    text = """
    ## Random Search
    Best-of-N that **gives up on the worse half** on the way, so that the same compute tries more noises.

    - **particles** is the number of noises to begin with.
    - **halvings**: after which fractions of the steps the worse half is dropped. Too early, and the judge sees only
    blur.
    """
    method = Node("TestTimeRandomSearch", {"particles": 12, "halvings": "0.4, 0.7"})
    return one_search("random_search", "two blue triangles", text, method)


def zero_order_search() -> Workflow:
    text = """
    ## Zero-Order Search
    Hill climbing over the **initial noise**: samples around the best noise so far, round by round (Ma et al. 2025).
    Every image is finished before it is judged, so scores are never of blurred previews.

    - **start** random noises, then **rounds** of **neighbours**: together start + rounds x neighbours images.
    - **cosine** says how near the neighbours are: 0.95 similar images, 0 unrelated ones, -1 finds it out.
    - **eta** 0 lets the noise decide everything.
    """
    method = Node("TestTimeZeroOrderSearch", {"neighbours": 4, "rounds": 3})
    return one_search("zero_order_search", "a red heart above a blue star", text, method, eta=0.0)


def path_search() -> Workflow:
    text = """
    ## Path Search
    Goes **back up in noise and comes down again** several ways, and keeps the paths that lead somewhere good (Ma et
    al. 2025). Works on deterministic samplers too: here eta is 0.

    - **paths** and **branches**: how many are carried along, how many ways are tried from each.
    - **forward** and **backward**: how far up, how far down again. Backward must be more.
    """
    method = Node("TestTimePathSearch", {"paths": 2, "branches": 3})
    return one_search("path_search", "a white cross and a yellow ring", text, method, eta=0.0)


def flow_rbf() -> Workflow:
    text = """
    ## Rollover Budget Forcing
    For **flow models** (here the embedded one). **Set SDE** gives the flow noise to search with; **Rollover
    Budget Forcing** goes on as soon as a candidate is better than everything before, and saves the rest of the budget
    for later steps (Kim et al. 2025).

    - **budget** counts denoiser calls per image and is never exceeded.
    - **tail** is the number of steps without noise that finish the image; distilled models need only 1.
    """
    method = Node("TestTimeRBF", {"budget": 160, "chains": 2, "initial": 8})
    path = Node("TestTimeSetSDE", {"search": method["search"], "path": "linear", "spacing": "sampler"})
    changes = {"scheduler": "simple", "cfg": 3.0}
    return one_search("flow_rbf", "two green hearts", text, method, path, model="flow", **changes)


WORKFLOWS = [
    best_of_n,
    importance_sampling,
    svdd,
    smc,
    das,
    fk_steering,
    beam_search,
    random_search,
    zero_order_search,
    path_search,
    flow_rbf,
]
