"""``python -m bench.official ROW FOLDER``: call an official function and leave what it said in ``FOLDER/ROW.npz``.

``all`` calls every one.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

PACKAGES = ("torch", "torchvision", "transformers", "pillow", "hpsv2", "image-reward", "t2v_metrics", "open_clip_torch",
            "clip-anytorch", "simple-aesthetics-predictor", "aesthetic-predictor-v2-5", "ftfy")  # fmt: skip


def main(row: str, folder: Path) -> None:
    """Make the photographs where they are missing, then the row; ``versions`` and ``facts`` need no photographs."""
    if row == "versions":
        print(json.dumps({name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}))
        return
    import numpy as np
    import torch

    from . import facts, pictures, rows

    if row == "facts":
        facts.write(folder)
        return

    torch.set_num_threads(1)
    shown = pictures.write(folder / "pictures")
    for key in rows.ROWS if row == "all" else [row]:
        with torch.no_grad():
            said = rows.ROWS[key](folder / key, shown)
        np.savez(folder / f"{key}.npz", **said)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
