"""Published weights that verifiers run on: what they are called, where they come from, and whether they lie here.

Nothing is ever downloaded. A repository belongs into a folder of its own in ComfyUI's ``models/verifiers``, a single
file directly into it; what ``hf download`` left in the Hugging Face cache is found, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DINO_REPOSITORY = "facebook/dinov2-with-registers-large"
INCEPTION_FILE = "inception_v3_google-0cc3c7bd.pth"


@dataclass(frozen=True)
class Released:
    """A released model: what it is called, where it comes from, and what a user must know about it.

    Attributes:
        name: of the verifier, for messages.
        repository: on the Hugging Face hub, or an address.
        file: to download from it; "" for the whole repository, which then becomes a folder.
        size, licence: in words.
        marker: file by which a repository is known to be in the cache.
    """

    name: str
    repository: str
    file: str
    size: str
    licence: str
    marker: str = "config.json"

    @property
    def entry(self) -> str:
        """What the weights are called in models/verifiers: a file or a folder."""
        return self.file or self.repository.replace("/", "--")

    def cached(self) -> Path | None:
        """Where they lie in the Hugging Face cache, None where they do not (or are no repository)."""
        if self.repository.startswith("http"):
            return None
        try:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.repository, self.file or self.marker)
        except (ImportError, OSError, ValueError):  # no hub, or a cache that may not be read: as if it were empty
            return None
        if not isinstance(found, str):
            return None
        return Path(found) if self.file else Path(found).parent

    def found(self, roots: Iterable[Path]) -> Path | None:
        """Where they lie under their own name in one of ``roots``, else in the cache; None for nowhere."""
        for root in roots:
            place = root / self.entry
            try:
                if (place if self.file else place / self.marker).is_file():
                    return place
            except OSError:
                continue
        return self.cached()

    def how_to_get(self, folder: Path) -> str:
        """The command (or address) that brings them into ``folder``."""
        if self.repository.startswith("http"):
            return f"Download {self.repository} to {folder / self.entry}"
        if self.file:
            return f'hf download {self.repository} {self.file} --local-dir "{folder}"'
        return f'hf download {self.repository} --local-dir "{folder / self.entry}"'


def _table(*rows: tuple) -> dict[str, Released]:
    return {key: Released(*row) for key, *row in rows}


RELEASED = _table(
    ("clip_score", "CLIPScore", "openai/clip-vit-large-patch14", "", "1.7 GB", "MIT licence"),
    ("pickscore", "PickScore", "yuvalkirstain/PickScore_v1", "", "3.9 GB", "MIT licence of its code"),
    ("hps_v2_1", "HPSv2.1", "xswu/HPSv2", "HPS_v2.1_compressed.pt", "2.0 GB", "Apache-2.0"),
    ("hps_v3", "HPSv3", "MizzenAI/HPSv3", "", "16.6 GB", "MIT licence of its code", "HPSv3.safetensors"),
    ("hps_v3_base", "HPSv3", "Qwen/Qwen2-VL-7B-Instruct", "", "tokenizer and config.json, 11 MB", "Apache-2.0"),
    ("image_reward", "ImageReward", "THUDM/ImageReward", "ImageReward.pt", "1.8 GB", "Apache-2.0"),
    ("image_reward_tokenizer", "ImageReward's tokenizer", "bert-base-uncased", "",
     "vocab.txt alone is enough, 0.2 MB", "Apache-2.0", "vocab.txt"),
    ("laion_aesthetic", "LAION aesthetic v2", "openai/clip-vit-large-patch14", "", "1.7 GB", "MIT"),
    ("laion_aesthetic_head", "LAION aesthetic v2", "https://github.com/christophschuhmann/improved-aesthetic-predictor",
     "sac+logos+ava1-l14-linearMSE.pth", "3.7 MB", "Apache-2.0"),
    ("aesthetic_v25", "Aesthetic Predictor V2.5", "google/siglip-so400m-patch14-384", "", "3.5 GB", "Apache-2.0"),
    ("aesthetic_v25_head", "Aesthetic Predictor V2.5", "https://github.com/discus0434/aesthetic-predictor-v2-5",
     "aesthetic_predictor_v2_5.pth", "2.6 MB", "AGPL-3.0"),
    ("similarity", "Image similarity", "facebook/dinov2-base", "", "0.35 GB", "Apache-2.0"),
    ("vlm", "A judge that answers questions", "Qwen/Qwen3-VL-4B-Instruct", "", "8.9 GB", "Apache-2.0"),
    ("vqa_flant5", "VQAScore (CLIP-FlanT5)", "zhiqiulin/clip-flant5-xl", "", "6.3 GB", "Apache-2.0"),
    ("video_reward", "VideoReward", "KwaiVGI/VideoReward", "", "4.9 GB", "Apache-2.0", "model_config.json"),
    ("video_reward_base", "VideoReward", "Qwen/Qwen2-VL-2B-Instruct", "", "4.4 GB", "Apache-2.0"),
    ("objects", "The objects verifier", "google/owlv2-base-patch16-ensemble", "", "0.6 GB", "Apache-2.0"),
    ("objects_colours", "The objects verifier", "openai/clip-vit-large-patch14", "", "1.7 GB", "MIT"),
    ("dinov2_features", "Load Image Features", DINO_REPOSITORY, "", "1.2 GB", "Apache-2.0"),
    ("inception_features", "Load Image Features", f"https://download.pytorch.org/models/{INCEPTION_FILE}",
     INCEPTION_FILE, "109 MB", "BSD-3-Clause"),
)  # fmt: skip
"""Name of a verifier (or of a part of one) -> its weights."""


def folders_of(comfyui: Path) -> list[Path]:
    """Where a ComfyUI keeps weights of verifiers: its own folders, then those of ``extra_model_paths.yaml``.

    The file is only read where a YAML reader is installed (ComfyUI brings one); a damaged one counts as empty.
    """
    found = [comfyui / "models" / kind for kind in ("verifiers", "rewriters", "LLM")]
    try:
        import yaml
    except ImportError:
        return found
    try:
        text = (comfyui / "extra_model_paths.yaml").read_text(encoding="utf-8")
        sections = (yaml.safe_load(text) or {}).values()
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return found
    for section in sections:
        if not isinstance(section, dict):
            continue
        base = Path(str(section.get("base_path") or "")).expanduser()
        for kind in ("verifiers", "rewriters"):
            lines = str(section.get(kind) or "").splitlines()
            found += [(comfyui / base / line.strip()) for line in lines if line.strip()]
    return found
