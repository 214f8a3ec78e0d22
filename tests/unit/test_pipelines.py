"""diffusers pipelines as processes, against the pipelines' own sampling; the kernel against diffusers' schedulers."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testtime.pipelines import pipeline_process
from testtime.pipelines.schedulers import Parameterisation
from testtime.samplers.methods import DAS, RBF, SMC, SVDD, BeamSearch, BestOfN, FKSteering, PathSearch
from testtime.samplers.processes.kernel import VP, Flow, transition
from testtime.samplers.processes.sde import SDE, clock_grid
from testtime.samplers.protocols import SearchError, Verifier
from testtime.samplers.run.search import run_search

from . import pipes
from .pipes import diffusers

KINDS = list(pipes.BUILD)
SIZE = {"height": 32, "width": 48}


class Redness(Verifier):
    name, differentiable = "redness", True

    def score(self, images, prompts, context=None):
        return (images[..., 0] - images[..., 2]).mean((1, 2))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("pipelines"), {}

    def get(kind):
        if kind not in made:
            made[kind] = pipes.build(kind, folder)
        return made[kind]

    return get


def process_of(pipe, kind, prompts, **settings):
    return pipeline_process(pipe, prompts, **{"steps": 4, **pipes.CALL[kind], **SIZE, **settings})


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_kernel_is_ddim(eta):
    """Step by step, over a whole schedule, the same noise: diffusers' DDIM in its VP coordinates."""
    scheduler = pipes.ddim()
    scheduler.set_timesteps(10)
    reading = Parameterisation.of(scheduler)
    sigmas = reading.schedule(scheduler).tolist()
    torch.manual_seed(1)
    x = ours = torch.randn(2, 4, 8, 8)
    for i, t in enumerate(scheduler.timesteps):
        eps, noise = torch.randn_like(x), torch.randn_like(x)
        options = {"variance_noise": noise} if eta else {}
        theirs = scheduler.step(eps, int(t), x, eta=eta, **options)
        a, b = VP().coefficients(sigmas[i])
        move = transition(VP(), ours, (ours - b * eps) / a, sigmas[i], sigmas[i + 1], eta)
        ours, _ = move.sample(noise)
        x = theirs.prev_sample
        assert torch.allclose(ours, x, atol=1e-5, rtol=1e-5), f"step {i}"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_kernel_is_flow_match_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(8)
    sigmas = Parameterisation.of(scheduler).schedule(scheduler).tolist()
    torch.manual_seed(1)
    x = ours = torch.randn(2, 4, 8, 8)
    for i, t in enumerate(scheduler.timesteps):
        velocity = torch.randn_like(x)
        x = scheduler.step(velocity, t, x).prev_sample
        ours, _ = transition(Flow(), ours, ours - sigmas[i] * velocity, sigmas[i], sigmas[i + 1], 0.0).sample(None)
        assert torch.allclose(ours, x, atol=1e-5, rtol=1e-5), f"step {i}"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_network_outputs_are_read_as_diffusers_reads_them(prediction):
    scheduler = pipes.ddim(prediction)
    scheduler.set_timesteps(5)
    reading = Parameterisation.of(scheduler)
    x, output = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    for t in scheduler.timesteps:
        sigma = reading.sigma(float(t))
        theirs = scheduler.step(output, int(t), x).pred_original_sample
        ours = reading.clean(x * math.sqrt(1 + sigma * sigma), output, sigma)
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_clock_of_the_network_inverts():
    reading = Parameterisation.of(pipes.ddim())
    for t in (0, 1, 17, 500, 998, 999):
        assert reading.timestep(reading.sigma(t)) == t
    for t in (0.25, 17.5, 998.9):
        assert reading.timestep(reading.sigma(t)) == pytest.approx(t, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_plain_sampling_is_the_pipelines_own(built, kind):
    """Schedule, guidance, encodings, clock, decoder: two prompts together, from the same noise, without randomness."""
    pipe, prompts = built(kind), ["a red fox", "two owls"]
    process = process_of(pipe, kind, prompts, eta=0.0)
    result = run_search(BestOfN(1), process, None, prompts)
    noise = torch.stack([process.initial_noise(torch.tensor([g]), torch.tensor([0]))[0] for g in range(2)])
    own = {**pipes.CALL[kind], **SIZE, "num_inference_steps": 4, "latents": noise}
    if "negative_prompt" in own:
        own["negative_prompt"] = [own["negative_prompt"]] * 2
    latents = pipe(prompts, output_type="latent", **own).images
    assert torch.allclose(result.latents, latents, atol=2e-4, rtol=1e-4)
    images = torch.from_numpy(pipe(prompts, output_type="np", **own).images)
    assert images.shape == (2, 32, 48, 3)
    assert torch.allclose(process.to_pixels(process.decode(result.latents)), images, atol=1e-3)
    rows = 1 if kind in ("flux", "sd_v") else 2
    assert result.ledger.nfe == 2 * 4 * rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize(
    "search",
    [SVDD(2), SMC(2, start=0.0), FKSteering(2, every=1), BeamSearch(1, 2, 2), PathSearch(1, 2, 0.2, 0.5, 0.6, 2),
     RBF(14, 1, 2)],
    ids=lambda search: search.name,
)  # fmt: skip
def test_every_method_runs_and_is_what_was_judged(built, kind, search):
    prompts = ["a red fox", "two owls"]
    process = process_of(built(kind), kind, prompts, max_batch=3)
    result = run_search(search, process, Redness(), prompts)
    judged = Redness().score(process.to_pixels(process.decode(result.finalists)), prompts)
    assert torch.allclose(judged.double(), result.scores, atol=1e-5)
    assert torch.isfinite(result.latents).all() and result.status == "complete"


def test_a_flow_pipeline_runs_on_the_published_path(built):
    grid = clock_grid(Flow(), 4, "vp", "exp", tail=2)
    stop = float(grid[3] / (1 - grid[3]))
    eta = SDE("vp", until=stop * (1 - 1e-9))
    process = process_of(built("flux"), "flux", ["a fox"], sigmas=grid, eta=eta)
    result = run_search(RBF(30, 2, 2), process, Redness(), ["a fox"])
    assert result.ledger.nfe <= 30 and torch.isfinite(result.latents).all()


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_chunks_and_neighbours_do_not_matter(built, kind):
    """Two prompts at once equal each alone, whatever the chunks: encodings are dealt to the right rows."""
    prompts = ["a red fox", "two owls"]
    together = run_search(SVDD(3), process_of(built(kind), kind, prompts, max_batch=4), Redness(), prompts)
    for g, prompt in enumerate(prompts):
        alone = process_of(built(kind), kind, [prompt], group_offset=g)
        assert torch.allclose(
            run_search(SVDD(3), alone, Redness(), [prompt]).latents[0], together.latents[g], atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_gradients_pass_through_the_pipeline(built, kind):
    """DAS runs, and its gradient agrees with a finite difference through network, guidance and decoder."""
    process = process_of(built(kind), kind, ["a fox"])
    state = process.start(1)
    value = lambda images, group: Redness().score(images, None)  # noqa: E731
    _, values = process.value_gradient(state, value)
    direction = values.gradient / values.gradient.norm()
    ends = []
    for sign in (1, -1):
        moved = process.predict(type(state)(state.x + sign * 0.05 * direction, state.group, state.slot, 0))
        # Not clamped: the straight-through gradient is that of the unclamped image.
        ends.append(float(value(process.decode(moved.x0), None)[0]))
    assert (ends[0] - ends[1]) / 0.1 == pytest.approx(float(values.gradient.norm()), rel=0.05)
    assert run_search(DAS(2), process, Redness(), ["a fox"]).ledger.backward > 0


def test_prompts_are_encoded_once_and_the_pipeline_is_left_alone(built):
    pipe = built("sd")
    scheduler, calls = pipe.scheduler, []
    hook = pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    process = process_of(pipe, "sd", ["a fox", "an owl"])
    run_search(SVDD(2), process, Redness(), ["a fox", "an owl"])
    hook.remove()
    assert len(calls) == 4  # two prompts, each with the negative one
    assert pipe.scheduler is scheduler and "encode_prompt" not in pipe.__dict__
    condition = process.prompt_embedding(torch.tensor([1, 0, 1]))
    assert condition.shape == (3, 16) and torch.equal(condition[0], condition[2])
    assert not torch.equal(condition[0], condition[1])


def test_particles_take_other_prompts(built):
    """A search that re-prompts gets what a process for that prompt would have given."""
    process = process_of(built("sd"), "sd", ["a fox"])
    other = process_of(built("sd"), "sd", ["an owl"])
    x, group = process.start(1).x, torch.tensor([0])
    assert torch.equal(process.denoise(x, 5.0, group, ["an owl"]).x0, other.denoise(x, 5.0, group).x0)
    assert torch.equal(process.denoise(x, 5.0, group, [None]).x0, process.denoise(x, 5.0, group).x0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"steps": 0}, "steps is 0"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"latents": None}, "latents is set by the search"),
        ({"height": 33}, "divisible by 8|33"),
        ({"sigmas": torch.tensor([0.5, 0.7, 0.0])}, "must strictly decrease"),
    ],
)
def test_wrong_arguments_are_named(built, settings, message):
    prompts = settings.pop("prompts", ["a fox"])
    with pytest.raises(ValueError, match=message):
        process_of(built("sd"), "sd", prompts, **settings)


def test_the_example_of_the_documentation_runs(built):
    page = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pipeline_process" in b)
    scope = {"run_search": run_search}
    exec(block, scope)  # noqa: S102
    settings = {"steps": 3, **pipes.CALL["flux"], **SIZE}
    images = scope["search_pipeline"](built("flux"), ["a fox", "an owl"], Redness(), **settings)
    assert images.shape == (2, 32, 48, 3) and 0.0 <= float(images.min()) <= float(images.max()) <= 1.0


@pytest.mark.slow
def test_the_module_needs_no_diffusers():
    code = "import sys; sys.modules['diffusers'] = None; import testtime.pipelines"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_searched_is_named(built):
    with pytest.raises(SearchError, match="object"):
        pipeline_process(object(), ["a fox"])
    edm = diffusers.EDMEulerScheduler()
    with pytest.raises(SearchError, match=r"EDMEulerScheduler.*beta schedule"):
        Parameterisation.of(edm)
