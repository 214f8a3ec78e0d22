"""Rows of the parity table whose official function belongs to a package of this environment: transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..verifiers.pictures import to_bytes, to_pictures
from . import reference_models as models
from .official.pictures import PROMPTS
from .parity_rows import Row


def vqa_score(folder: Path, shown: Mapping[str, Tensor]) -> Row:
    """VQAScore against a forward pass of transformers, one image at a time."""
    import transformers

    from ..verifiers.vlm.vqa_score import QUESTION, load_vqa_score
    from .small_vlm import llava

    llava(folder)
    verifier = load_vqa_score(folder, batch=3, longest=None)  # by default large pictures are shrunk first
    model = transformers.AutoModelForImageTextToText.from_pretrained(str(folder), trust_remote_code=False).eval()
    processor = transformers.AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    yes = processor.tokenizer.convert_tokens_to_ids("Yes")

    def theirs(image: Tensor, prompt: str) -> float:
        text = f"user : <image> {QUESTION.format(prompt)} assistant : "
        inputs = processor(text=text, images=to_pictures(to_bytes(image)), return_tensors="pt")
        return float(torch.softmax(model(**inputs).logits[0, -1].float(), -1)[yes])

    row = Row("vqa_score", "transformers: AutoModelForImageTextToText, one image at a time")
    return _compared(row, shown, lambda image, prompt: float(verifier.score(image, prompt)), theirs)


def objects(folder: Path, shown: Mapping[str, Tensor]) -> Row:
    """Boxes' scores of OWLv2 against transformers' own processor and post-processing."""
    import transformers

    from ..verifiers.objects.detectors import load_detector
    from .small_detectors import owl

    owl(folder, models.clip_tokenizer(folder / "words"), side=320)
    detector, names = load_detector(folder), ["dog", "owl", "cat"]
    processor = transformers.AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)

    def ours(image: Tensor, _: str) -> Tensor:
        (found,) = detector(to_bytes(image), names)
        return _sorted(torch.cat([one.scores for one in found.values()]))

    def theirs(image: Tensor, _: str) -> Tensor:
        pictures = to_pictures(to_bytes(image))
        queries = [[f"a photo of a {name}" for name in names]]
        output = detector.model(**processor(text=queries, images=pictures, return_tensors="pt"))
        sizes = [picture.size[::-1] for picture in pictures]
        (made,) = processor.post_process_grounded_object_detection(output, threshold=0.02, target_sizes=sizes)
        return _sorted(made["scores"])

    return _compared(Row("objects (boxes)", "transformers: OWLv2 and its post-processing"), shown, ours, theirs)


def _sorted(scores: Sequence[float] | Tensor) -> Tensor:
    found = torch.as_tensor(scores).sort(descending=True).values
    return F.pad(found, (0, 64))[:64].double()


def _compared(row: Row, shown: Mapping[str, Tensor], ours: Callable, theirs: Callable) -> Row:
    said = []
    with torch.no_grad():
        for name, image in shown.items():
            image = image[..., :3].expand(*image.shape[:3], 3)
            mine, reference = (torch.as_tensor(side(image, PROMPTS[name])) for side in (ours, theirs))
            row.scores[name] = float((mine - reference).abs().max())
            said.append(reference.double().flatten())
    row.spread = float(torch.stack(said).std())
    return row


ROWS: dict[str, Callable[[Path, Mapping[str, Tensor]], Row]] = {"vqa_score": vqa_score, "objects": objects}
