"""``Load Value Network``: a learned value of noisy images for SVDD and SMC."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..samplers.protocols import SearchError
from ..values.learned import load_learned
from .choices import open_ended
from .folders import file_names, find_inside
from .types import CATEGORY, ValueType

FOLDER = "value_networks"
NO_FILE = "none found"

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)


def choices() -> list[str]:
    """Value networks on this machine: safetensors files of models/value_networks."""
    found = [name for name in file_names(FOLDER) if name.endswith(".safetensors")]
    return found or [NO_FILE]


def resolve(name: str) -> Path:
    """Path of an entry of ``choices``; raises SearchError with what to do where it is not there."""
    path = None if name == NO_FILE else find_inside(folder_paths.get_folder_paths(FOLDER), name, Path.is_file)
    if path is not None:
        return path
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    raise SearchError(
        f"file is {name!r}: there is no such value network; train one with `testtime train-value OUT` and put "
        f"OUT/value.safetensors into {folder}"
    )


class LoadValueNetworkNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeLoadValueNetwork",
            display_name="Load Value Network",
            category=f"{CATEGORY}/modifiers",
            description="A small network that predicts the final score from a noisy latent, so SVDD, SMC and TTS-VAR "
            "choose without decoding previews (SVDD-MC, Li et al. 2024). Trained by `testtime train-value` for one "
            "model and one verifier.",
            inputs=[
                open_ended(
                    io.Combo.Input(
                        "file",
                        options=choices(),
                        tooltip="A file in models/value_networks, trained for the model in use.",
                    )
                )
            ],
            outputs=[ValueType.Output(display_name="value")],
        )

    @classmethod
    def validate_inputs(cls, file=None):
        try:
            if file is not None:
                resolve(file)
        except SearchError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file):
        return resolve(file).stat().st_mtime_ns

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(load_learned(resolve(file)))


NODES = [LoadValueNetworkNode]
