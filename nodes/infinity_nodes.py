"""``Load Infinity``, ``Infinity Text Encode``, and the embedded next-scale model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..models.infinity.loading import CheckpointError
from ..models.tiny.loading import load_into, missing_weights
from ..verifiers.embedded import ShapesFeatures
from ..verifiers.registry import create
from .choices import open_ended
from .folders import file_names, find_inside, folders_with
from .host.infinity_host import as_infinity, infinity_vae, load_flan_t5, load_infinity, load_infinity_vae
from .host.managed_verifier import managed
from .host.shapes_world_host import load_clip
from .infinity_sampler import INFINITY_CATEGORY
from .types import CATEGORY, ExtractorType, InfinityType, VerifierType

NO_MODEL = "(none found)"
DTYPES = {
    "default": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
PEOPLE = (
    "man woman men women boy girl child person human adult teenager employee employer worker mother father sister "
    "brother grandmother grandfather son daughter"
).split()
FACES = ". very smooth faces, good looking faces, face to the camera, perfect facial features"


@dataclass(frozen=True)
class Released:
    """A released file: what it is, where it comes from and where it belongs.

    Attributes:
        what: in words.
        folder: ComfyUI's name of the model folder.
        file: its name.
        repository: on the Hugging Face hub.
        size, licence: in words.
        whole: whether the repository is downloaded as a folder called ``file``.
    """

    what: str
    folder: str
    file: str
    repository: str
    size: str
    licence: str = "MIT"
    whole: bool = False

    def choices(self) -> list[str]:
        """Files of the folder, and sub-folders of it that hold shards with an index."""
        shards = sorted(set(folders_with("*.index.json", folder_paths.get_folder_paths(self.folder))))
        return [*file_names(self.folder), *shards] or [NO_MODEL]

    def default(self, choices: list[str]) -> str:
        """The choice that looks like this file, else the first."""
        stem = self.file.split(".")[0].lower()
        return next((choice for choice in choices if stem in choice.lower()), choices[0])

    def located(self, name: str, choice: str) -> Path:
        """Path of a choice. CheckpointError names the input, and what to download where it is not there."""
        path = None if choice == NO_MODEL else find_inside(folder_paths.get_folder_paths(self.folder), choice)
        if path is not None:
            return path
        folders = ", ".join(folder_paths.get_folder_paths(self.folder))
        # Of several folders (models/unet beside models/diffusion_models) the one that is called like the kind.
        known = [Path(path) for path in folder_paths.get_folder_paths(self.folder)]
        target = next((path for path in known if path.name == self.folder), known[0])
        part = f'--include "*.safetensors*" --local-dir "{target / self.file}"'
        how = part if self.whole else f'{self.file} --local-dir "{target}"'
        raise CheckpointError(
            f"{name} is {choice!r}: there is no such model here. {self.what} is {self.file} of "
            f"huggingface.co/{self.repository} ({self.size}, {self.licence}); put it in {target}, for example with:  "
            f"hf download {self.repository} {how}\nLooked in: {folders}"
        )


TRANSFORMER = Released(
    "The 2B transformer", "diffusion_models", "infinity_2b_reg.pth", "FoundationVision/Infinity", "8.3 GB"
)
AUTOENCODER = Released("Its autoencoder", "vae", "infinity_vae_d32reg.pth", "FoundationVision/Infinity", "0.4 GB")
TEXT = Released(
    "Its text encoder",
    "text_encoders",
    "flan-t5-xl",
    "google/flan-t5-xl",
    "11 GB, of which the encoder's part is read",
    "Apache-2.0",
    whole=True,
)


class LoadInfinityNode(io.ComfyNode):
    """Load Infinity."""

    @classmethod
    def define_schema(cls):
        def combo(name: str, released: Released, tooltip: str) -> io.Combo.Input:
            choices = released.choices()
            default = released.default(choices)
            return open_ended(io.Combo.Input(name, options=choices, default=default, tooltip=tooltip))

        return io.Schema(
            node_id="TestTimeLoadInfinity",
            display_name="Load Infinity",
            category=INFINITY_CATEGORY,
            description="Loads an Infinity transformer (2B, 8B or any other size), its bitwise autoencoder and its "
            "text encoder from ComfyUI's model folders. Sizes follow from the files.",
            inputs=[
                combo(
                    "transformer",
                    TRANSFORMER,
                    "From models/diffusion_models: infinity_2b_reg.pth, or the folder of the 8B model's shards.",
                ),
                combo(
                    "vae",
                    AUTOENCODER,
                    "From models/vae: infinity_vae_d32reg.pth for 2B (not infinity_vae_d32.pth, which is another one), "
                    "infinity_vae_d56_f8_14_patchify.pth for 8B.",
                ),
                combo("text_encoder", TEXT, "From models/text_encoders: Flan-T5-XL, one file or a folder of shards."),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="default",
                    tooltip="Precision of the transformer's blocks. default: bfloat16 where the device has it, float32 "
                    "on a CPU.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    tooltip="torch.compile for the transformer: the first image takes minutes longer, later ones are "
                    "faster. Needs a C++ compiler; on a GPU, Triton.",
                ),
            ],
            outputs=[
                InfinityType.Output(display_name="infinity"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
            ],
        )

    @classmethod
    def validate_inputs(cls, transformer=None, vae=None, text_encoder=None):
        named = (("transformer", transformer, TRANSFORMER), ("vae", vae, AUTOENCODER))
        try:
            for name, choice, released in (*named, ("text_encoder", text_encoder, TEXT)):
                if choice is not None:
                    released.located(name, choice)
        except CheckpointError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, transformer, vae, text_encoder, dtype, compile=False) -> io.NodeOutput:
        model = load_infinity(TRANSFORMER.located("transformer", transformer), DTYPES[dtype])
        if compile:
            model.network.compile_blocks()
        decoder = load_infinity_vae(AUTOENCODER.located("vae", vae))
        clip = load_flan_t5(TEXT.located("text_encoder", text_encoder))
        wanted, given = model.network.config.code_dim, decoder.latent_channels
        if wanted != given:
            raise CheckpointError(
                f"vae {vae!r} has codes of {given} bits and transformer {transformer!r} draws codes of {wanted}: "
                f"the 2B model belongs to infinity_vae_d32reg.pth, the 8B model to infinity_vae_d56_f8_14_patchify.pth"
            )
        return io.NodeOutput(model, clip, decoder)


def with_faces(text: str) -> str:
    """``text`` with the released addition for faces where it speaks of people (whole words, any case)."""
    words = {word.strip(".,;:!?\"'()").lower() for word in text.split()}
    return text + FACES if words & set(PEOPLE) else text


class InfinityTextEncodeNode(io.ComfyNode):
    """Infinity Text Encode."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeInfinityTextEncode",
            display_name="Infinity Text Encode",
            category=INFINITY_CATEGORY,
            description="CLIP Text Encode for Infinity with the released script's addition for faces. Without it, "
            "use CLIP Text Encode.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Infinity or Load Shapes World VAR."),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Boolean.Input(
                    "improve_faces",
                    default=False,
                    tooltip=f'Adds to prompts about people what the released script adds: "{FACES[2:]}".',
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(cls, clip, text, improve_faces=False) -> io.NodeOutput:
        if clip is None:
            raise CheckpointError("clip is missing: connect the CLIP of Load Infinity")
        tokens = clip.tokenize(with_faces(text) if improve_faces else text)
        return io.NodeOutput(clip.encode_from_tokens_scheduled(tokens))


class LoadShapesWorldVARNode(io.ComfyNode):
    """Load Shapes World VAR."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeLoadShapesWorldVAR",
            display_name="Load Shapes World VAR",
            category=f"{CATEGORY}/examples",
            description="A tiny next-scale model that ships with the pack: Infinity's classes trained on coloured "
            "shapes at 128x128, with its CLIP and VAE, two verifiers and image features for TTS-VAR.",
            inputs=[],
            outputs=[
                InfinityType.Output(display_name="infinity"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                VerifierType.Output(display_name="verifier", tooltip="A learned preference."),
                VerifierType.Output(display_name="held_out", tooltip="A CLIP-like model that never steers."),
                ExtractorType.Output(display_name="extractor", tooltip="Image features for TTS-VAR's clusters."),
            ],
        )

    @classmethod
    def validate_inputs(cls):
        return missing_weights(["var", "var_vae", "text_encoder", "preference", "clip"]) or True

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..models.tiny.var import SCHEDULE, new_transformer, new_vae

        with torch.inference_mode(False):
            transformer, vae = new_transformer(), new_vae()
            load_into(transformer, "var")
            load_into(vae, "var_vae")
            verifiers = [managed(create(name)) for name in ("shapes_preference", "shapes_clip")]
            infinity = as_infinity(transformer, "Shapes World VAR", SCHEDULE, preview_side=0)
            decoder = infinity_vae(vae, SCHEDULE, torch.float32)
            return io.NodeOutput(infinity, load_clip(), decoder, *verifiers, ShapesFeatures())


NODES = [LoadInfinityNode, InfinityTextEncodeNode, LoadShapesWorldVARNode]
