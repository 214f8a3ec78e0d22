"""The one kernel against ComfyUI's own sampler functions: float64, closed form, the same noise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.methods import BestOfN
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.processes.schedules import flow_schedule, karras
from testtime.samplers.processes.stock import STOCK, native
from testtime.samplers.run.search import run_search

from ..unit import oracles
from .conftest import feature


def sampling(grid):
    """(path, sigmas, ComfyUI's model_sampling) of a grid."""
    import comfy.model_sampling as host

    from testtime.nodes.host.interpolants import interpolant_for

    if grid == "ve":

        class Kind(host.ModelSamplingDiscrete, host.EPS):
            pass

        return VE(), karras(10), Kind()

    class Kind(host.ModelSamplingDiscreteFlow, host.CONST):
        pass

    made = Kind()
    shift = 3.0 if grid == "shifted" else 1.0
    made.set_parameters(shift=shift)
    path = Flow()
    if grid == "scaled":
        feature(hasattr(made, "set_noise_scale"), "noise of flow models has no scale (node ModelNoiseScale)")
        made.set_noise_scale(8.0)
        path = interpolant_for(made)
    return path, flow_schedule(8, shift) if grid == "shifted" else flow_schedule(10), made


class Model:
    """What sampler functions call: the denoiser, with the attributes that they look into."""

    def __init__(self, process, group, model_sampling):
        self.process, self.group = process, group
        holder = SimpleNamespace(
            model_sampling=model_sampling, get_model_object=lambda name: getattr(holder, name), inner_model=None
        )
        self.inner_model = SimpleNamespace(inner_model=holder, model_patcher=holder)

    def __call__(self, x, sigma, **_):
        return self.process.denoise(x, float(sigma[0]), self.group).x0


@pytest.mark.parametrize("grid", ["ve", "flow", "shifted", "scaled"])
@pytest.mark.parametrize("name", STOCK)
def test_a_native_sampler_is_the_hosts_own(name, grid):
    import comfy.k_diffusion.sampling as stock

    path, sigmas, model_sampling = sampling(grid)
    sigmas = sigmas.double()
    process = oracles.keyed(
        flow=isinstance(path, Flow),
        eta=native(name),
        almost_noise=float(model_sampling.percent_to_sigma(1e-4)) if grid != "ve" else 1.0,
    )
    process.sigmas, process.steps, process.interpolant = sigmas.tolist(), len(sigmas) - 1, path
    state = process.start(3)
    drawn = iter(range(process.steps))

    def noise(*_):
        step = next(drawn)
        return process.streams.normals(process.shape, state.group, state.slot, step=step, purpose="move").double()

    result = run_search(BestOfN(3), process, oracles.FunctionVerifier(lambda x: x[:, 0]), ["p"] * 2)
    order = torch.tensor(result.particles) - min(result.particles)
    function = getattr(stock, f"sample_{'euler' if name == 'ddim' else name}")
    model, options = Model(process, state.group, model_sampling), {}
    if STOCK[name].draws:
        options["noise_sampler"] = noise
    expected = function(model, state.x, sigmas.clone(), extra_args={}, disable=True, **options)[order]
    apart = float((result.finalists - expected).abs().max())
    # The host sums ER-SDE's integrals in float32, whatever the states are.
    assert apart < (1e-5 if name == "er_sde" else 1e-9) * (8 if grid == "scaled" else 1)
    if name == "er_sde":
        process.eta = first_stage()
        again = run_search(BestOfN(3), process, oracles.FunctionVerifier(lambda x: x[:, 0]), ["p"] * 2)
        drawn = iter(range(process.steps))
        order = torch.tensor(again.particles) - min(again.particles)
        expected = function(model, state.x, sigmas.clone(), extra_args={}, disable=True, max_stage=1, **options)[order]
        assert float((again.finalists - expected).abs().max()) < 1e-8
        assert float((again.finalists - result.finalists).abs().max()) > 1e-3


def first_stage():
    """er_sde without its estimates of the moves before."""
    from testtime.samplers.processes.stock import ErNoise, NativeSampler

    class First(NativeSampler):
        extrapolation = None

    return First("er_sde", ErNoise())
