"""A few numbers from the published preprocessings and tokenizers, for the unit tests, which run without the packages.

``python -m bench.official facts FOLDER`` writes ``FOLDER/facts.json``; the tests keep a copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 8
SHAPES = ((41, 60), (60, 41), (19, 90), (8, 8))
TEXTS = (
    "It\u2019s a \u201cChinese\u201d temple",
    "a rocket &amp;amp; its  tower",
    "\uff21 \ufb01ne caf\u0065\u0301",
    " a\ncat ",
    "5 &lt; 6 \u3000 \u0132",
)


def picture(height: int, width: int) -> np.ndarray:
    """uint8 ``[height, width, 3]`` from whole numbers alone, with edges that overshoot."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    steps = (x // 5 + y // 7) % 2 * 120
    return ((7 * y + 3 * x + 40 * c) % 130 + steps).astype(np.uint8)


def write(folder: Path) -> None:
    """Ask every package and write what it says, normalised pixels with five digits."""
    from clip.clip import _transform
    from hpsv2.src.open_clip import image_transform
    from hpsv2.src.open_clip.tokenizer import basic_clean, whitespace_clean
    from torchvision import transforms
    from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor

    def processor(kind: type, **options) -> Callable:
        made = kind(**options)
        return lambda shown: made(images=shown, return_tensors="pt")["pixel_values"][0]

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    asked: dict[str, Callable] = {
        "hpsv2": image_transform(SIZE, is_train=False, resize_longest_max=True),
        "openai": _transform(SIZE),
        "clip_processor": processor(CLIPImageProcessor, size={"shortest_edge": SIZE}, crop_size=SIZE),
        "siglip_processor": processor(SiglipImageProcessor, size={"height": SIZE, "width": SIZE}),
        "dinov2_processor": processor(
            BitImageProcessor, size={"shortest_edge": 10}, crop_size=SIZE, resample=3, **imagenet
        ),
        "tts_var": transforms.Compose([
            transforms.Resize((SIZE, SIZE)), transforms.ToTensor(),
            transforms.Normalize(mean=imagenet["image_mean"], std=imagenet["image_std"]),
        ]),
    }  # fmt: skip
    pixels = {
        name: {
            f"{height}x{width}": [
                round(float(v), 5) for v in np.asarray(ask(Image.fromarray(picture(height, width)))).flat
            ]
            for height, width in SHAPES
        }
        for name, ask in asked.items()
    }
    texts = {text: whitespace_clean(basic_clean(text)) for text in TEXTS}
    (folder / "facts.json").write_text(json.dumps({"pixels": pixels, "texts": texts}) + "\n")
