"""DAS with a verifier that has no gradient is refused when the workflow is queued, by the server's own validation."""

from __future__ import annotations

import asyncio
import copy

import pytest

pytestmark = pytest.mark.host


def workflow(verifier: dict, **das) -> dict:
    """Shapes World, DAS and Search KSampler in API format, judged by node "judge"."""
    method = {
        "particles": 2, "alpha": 0.25, "alpha_mode": "relative", "guidance": 1.0, "gradient_through": "decoder",
        "tempering": "exponential", "ess_threshold": 0.5, "start": 0.0, "end": 0.9, "every": 1,
        "resampling": "ssp", **das,
    }  # fmt: skip
    sampler = {
        "model": ["world", 0], "seed": 0, "steps": 2, "cfg": 2.5, "scheduler": "normal", "positive": ["text", 0],
        "negative": ["text", 0], "latent_image": ["latent", 0], "denoise": 1.0, "verifier": ["judge", 0],
        "vae": ["world", 2], "search": ["method", 0], "eta": 1.0, "prompt": "a red star",
    }  # fmt: skip
    return {
        "world": {"class_type": "TestTimeShapesWorld", "inputs": {"model": "diffusion"}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": "a red star"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "method": {"class_type": "TestTimeDAS", "inputs": method},
        "judge": verifier,
        "sampler": {"class_type": "TestTimeSearchKSampler", "inputs": sampler},
    }


JPEG = {"class_type": "TestTimeJPEG", "inputs": {"reward": "compressibility"}, "_meta": {"title": "My JPEG"}}
SHAPES = {"class_type": "TestTimeShapesVerifier", "inputs": {"verifier": "shapes_preference"}}


@pytest.fixture
def queue(monkeypatch):
    """``queue(graph)`` -> errors of the DAS node, as the server finds them for a request."""
    import execution

    import nodes
    from testtime.nodes import collect_nodes, guidance_check

    known = {node.define_schema().node_id: node for node in collect_nodes()}
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {**nodes.NODE_CLASS_MAPPINGS, **known})

    async def post(graph):
        request = guidance_check.note({"prompt": graph, "client_id": "somebody"})
        assert request["client_id"] == "somebody"
        return await execution.validate_inputs("id", request["prompt"], "method", {})

    def run(graph) -> str:
        valid, errors, _ = asyncio.run(post(copy.deepcopy(graph)))
        assert valid is not bool(errors)
        return " ".join(error["details"] for error in errors)

    return run


def test_a_verifier_without_gradient_is_named(queue):
    message = queue(workflow(JPEG))
    assert "the verifier 'My JPEG' is not differentiable" in message
    assert "use SMC (or guidance 0)" in message and "CLIPScore" in message


def test_one_with_a_gradient_and_no_guidance_are_fine(queue):
    assert queue(workflow(SHAPES)) == ""
    assert queue(workflow(JPEG, guidance=0.0)) == ""


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"combine": "zscore", "verifier_2": ["shapes", 0], "weight_2": 1.0, "weight_1": 1.0}, "'My JPEG' is not"),
        ({"combine": "zscore", "verifier_2": ["shapes", 0], "weight_2": 1.0, "weight_1": 0.0}, ""),
        ({"combine": "rank", "verifier_2": ["shapes", 0], "weight_2": 1.0, "weight_1": 0.0}, "combines by 'rank'"),
    ],
)
def test_ensembles_are_as_good_as_the_members_that_steer(queue, inputs, words):
    graph = workflow({"class_type": "TestTimeEnsemble", "inputs": {"verifier_1": ["jpeg", 0], **inputs}})
    graph |= {"jpeg": JPEG, "shapes": SHAPES}
    message = queue(graph)
    assert words in message and bool(message) == bool(words)


def test_a_search_that_is_handed_on_is_followed(queue):
    graph = workflow(JPEG)
    graph["path"] = {"class_type": "TestTimeSetSDE", "inputs": {"search": ["method", 0]}}
    graph["sampler"]["inputs"]["search"] = ["path", 0]
    assert "not differentiable" in queue(graph)


def test_a_method_that_nobody_uses_and_nodes_of_others_raise_no_objection(queue):
    unused = workflow(JPEG)
    unused["sampler"]["inputs"]["search"] = ["elsewhere", 0]
    assert queue(unused) == ""
    assert queue(workflow({"class_type": "SomebodyElsesVerifier", "inputs": {}})) == ""


def test_widgets_are_still_checked(queue):
    assert "guidance is 200.0" in queue(workflow(SHAPES, guidance=200.0))
    assert "lies after end" in queue(workflow(SHAPES, start=0.95))


def test_without_a_server_nothing_is_known():
    from testtime.nodes import guidance_check
    from testtime.nodes.method_nodes import DASNode

    assert guidance_check.problem(None, None) is None
    assert DASNode.validate_inputs(guidance=1.0, start=0.0, end=1.0) is True


def test_every_verifier_without_gradient_says_so():
    """The nodes' declarations are those of the verifiers that they make."""
    from testtime.nodes import human_node, judge_nodes, object_nodes, verifier_nodes
    from testtime.verifiers.aesthetic.jpeg import JPEGVerifier
    from testtime.verifiers.human import HumanVerifier
    from testtime.verifiers.objects.verifier import ObjectsVerifier
    from testtime.verifiers.vlm.judge import VLMJudgeVerifier

    pairs = {
        verifier_nodes.JPEGNode: JPEGVerifier,
        judge_nodes.VLMEndpointNode: VLMJudgeVerifier,
        object_nodes.GenEvalNode: ObjectsVerifier,
        human_node.PickByHandNode: HumanVerifier,
    }
    for node, verifier in pairs.items():
        assert node.differentiable is False and verifier.differentiable is False
