"""Photographs that come with scikit-learn and scikit-image, in the shapes that preprocessings disagree about."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PROMPTS = {
    "512x512": "an astronaut in an orange suit",
    "640x427": "It\u2019s a \u201cChinese\u201d temple \u2013 at noon",
    "832x1216": "a rocket &amp; its tower at night",
    "2048x64": "roofs, trees and a very long sky",
    "rgba": "a   tabby cat,\nlooking left",
    "grey": "twenty-four OLD coins",
    "64x64": "caf\u00e9: a cup of coffee on a wooden table, " + "seen from above, " * 30,
}
"""Name of a picture -> what is asked of it: curly quotes, HTML, capitals, line breaks, and more than 77 tokens."""


def write(folder: Path) -> dict[str, Path]:
    """The pictures as PNG files in ``folder``, by name; those that are there already are left alone."""
    paths = {name: folder / f"{name}.png" for name in PROMPTS}
    if not all(path.is_file() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in _made().items():
            picture.save(paths[name])
    return paths


def _made() -> dict[str, Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    rocket, china = Image.fromarray(data.rocket()), Image.fromarray(load_sample_image("china.jpg"))
    cat, coffee = Image.fromarray(data.chelsea()), Image.fromarray(data.coffee())
    width = round(rocket.height * 832 / 1216)
    left = (rocket.width - width) // 2
    fading = cat.copy()
    fading.putalpha(Image.linear_gradient("L").resize(cat.size))
    return {
        "512x512": Image.fromarray(data.astronaut()),
        "640x427": china,
        "832x1216": rocket.crop((left, 0, left + width, rocket.height)).resize((832, 1216), Image.Resampling.LANCZOS),
        "2048x64": china.crop((0, 200, 640, 220)).resize((2048, 64), Image.Resampling.LANCZOS),
        "rgba": fading,
        "grey": Image.fromarray(data.coins()),
        "64x64": coffee.crop((100, 0, 500, 400)).resize((64, 64), Image.Resampling.LANCZOS),
    }
