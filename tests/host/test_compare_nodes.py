"""``Compare Verifiers`` inside ComfyUI."""

from __future__ import annotations

import pytest
import torch

from .test_verifier_nodes import Brightness, grey

pytestmark = pytest.mark.host


class Darkness(Brightness):
    name = "darkness"

    def score(self, images, prompts, context=None):
        return -images.mean((1, 2, 3))


def test_compare_verifiers_draws_and_tabulates():
    from testtime.nodes.compare_nodes import CompareVerifiersNode
    from testtime.nodes.verifier_nodes import ShapesVerifierNode

    with torch.inference_mode():
        judges = [ShapesVerifierNode.execute(name).args[0] for name in ("shapes_clip", "shapes_preference")]
        shades = torch.linspace(0.1, 0.9, 9).tolist()
        picture, text = CompareVerifiersNode.execute(
            grey(*shades), "a red star", Brightness(), Darkness(), verifier_4=judges[1], verifier_3=judges[0]
        ).args
    assert picture.ndim == 4 and picture.shape[0] == 1 and 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert "agreement of brightness and darkness: -1.00" in text and "shapes_clip" in text


def test_two_verifiers_of_one_name_stay_apart():
    from testtime.nodes.compare_nodes import CompareVerifiersNode

    text = CompareVerifiersNode.execute(grey(0.1, 0.5, 0.9), "", Brightness(), Brightness()).args[1]
    assert "brightness (2)" in text and "+1.00" in text


def test_every_input_has_a_tooltip():
    from testtime.nodes import compare_nodes

    for node in compare_nodes.NODES:
        assert all(item.tooltip for item in node.define_schema().inputs)
