"""Re-render Particle inside ComfyUI: the winner of a search, and every other finalist, made again alone."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.host

SAMPLING = {"seed": 5, "steps": 6, "cfg": 4.0, "scheduler": "normal", "denoise": 1.0, "eta": 1.0}


@pytest.fixture(scope="module")
def family():
    import nodes
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    stock = nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        model, clip, vae, verifier, _ = LoadShapesWorldNode.execute("diffusion").args
        positive = stock["CLIPTextEncode"]().encode(clip, "a red star")[0]
        negative = stock["CLIPTextEncode"]().encode(clip, "")[0]
        latent = stock["EmptyLatentImage"]().generate(128, 128, 2)[0]
    graph = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return graph, vae, verifier


def searched(family, search):
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    graph, vae, verifier = family
    with torch.inference_mode():
        return SearchKSamplerNode.execute(
            **graph, **SAMPLING, verifier=verifier, vae=vae, search=search, prompt="a red star"
        ).args


def replayed(family, trace, particle=-1, image=0, judges=False, **changed):
    from testtime.nodes.replay_node import RerenderParticleNode

    graph, vae, verifier = family
    extra = {"verifier": verifier, "vae": vae} if judges else {}
    with torch.inference_mode():
        out = RerenderParticleNode.execute(
            trace=trace, particle=particle, image=image, **graph, **{**SAMPLING, **changed}, **extra
        )
    return out.args[0]["samples"]


@pytest.mark.parametrize("method", ["svdd", "smc", "das"])
def test_finalists_come_back_alone(family, method):
    from testtime.samplers.methods import METHODS
    from testtime.samplers.smc.tempering import Alpha

    settings = {"svdd": {"candidates": 3}}.get(method, {"particles": 3, "alpha": Alpha(0.5, "absolute")})
    best, finalists, scores, trace = searched(family, METHODS[method].method(**settings))
    close = {"atol": 3e-3, "rtol": 0}  # one row and many differ in the last bit, which the steps amplify
    for image in range(2):
        again = replayed(family, trace, image=image, judges=method == "das")
        assert torch.allclose(again[0], best["samples"][image], **close)
    again = replayed(family, trace, scores.particles[-1], judges=method == "das")
    assert torch.allclose(again[0], finalists["samples"][-1], **close)


def test_other_settings_are_refused_before_anything_runs(family):
    from testtime.samplers.methods import BestOfN
    from testtime.samplers.protocols import SearchError

    trace = searched(family, BestOfN(2))[3]
    for changed, message in (({"seed": 6}, "seed is 6"), ({"steps": 7}, "7 steps"), ({"eta": 0.5}, "eta is 0.5")):
        with pytest.raises(SearchError, match=message):
            replayed(family, trace, **changed)


def test_a_guided_particle_needs_its_judge(family):
    from testtime.samplers.methods import DAS
    from testtime.samplers.protocols import SearchError
    from testtime.samplers.smc.tempering import Alpha

    trace = searched(family, DAS(2, alpha=Alpha(0.5, "absolute")))[3]
    with pytest.raises(SearchError, match="connect the verifier"):
        replayed(family, trace)
