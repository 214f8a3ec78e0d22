"""One row per verifier of the parity table: what is compared with what, see ``parity``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..verifiers.aesthetic import HALF, AestheticV25Verifier, LAIONAestheticVerifier, laion_head, v25_head
from ..verifiers.clip_rewards import PickScoreVerifier, load_hps
from ..verifiers.clip_score import CLIPScoreVerifier, load_tokenizer
from ..verifiers.features import DINOv2Features
from ..verifiers.image_reward import MEAN, STD, TOKENS, ImageRewardModel, ImageRewardVerifier, to_transformers
from ..verifiers.jpeg import JPEGVerifier
from ..verifiers.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from ..verifiers.similarity import IMAGENET_MEAN, IMAGENET_STD, SimilarityVerifier
from . import reference_models as models

PROMPTS = ["a red cat", "two green birds", "the sea"]
SHAPES = ((512, 512), (300, 517), (768, 1344), (64, 64))
SMALL = models.SIZE


@dataclass
class Row:
    """What was measured of one verifier; None where there is nothing to compare.

    Attributes:
        verifier, reference: what was compared with what.
        same: largest difference to the same algorithm, in 0..1.
        pillow_mean, pillow_max: differences to the Pillow pipeline in 255ths.
        score: largest difference of the scores without resizing.
        resized: the same with resizing.
        spread: standard deviation of the scores, which the differences are to be compared with.
    """

    verifier: str
    reference: str
    same: float | None = None
    pillow_mean: float | None = None
    pillow_max: float | None = None
    score: float | None = None
    resized: float | None = None
    spread: float | None = None


def pictures(height: int, width: int, n: int = 3) -> Tensor:
    """Pictures on the 8-bit grid ``[n, H, W, 3]``: waves, an edge, and in the last one noise."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shift = torch.arange(n)[:, None, None, None] * 0.7
    waves = torch.stack([torch.sin(5 * x + 3 * y), torch.sin(7 * y), torch.cos(6 * x - 2 * y)], -1)
    made = 0.5 + 0.45 * torch.sin(2 * waves + shift)
    made[:, height // 3 : height // 2, width // 4 :] = 1.0
    made[-1] = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
    return (made * 255).round() / 255


def preprocessing(prepare: Preprocessing) -> tuple[float, float, float]:
    """(largest difference to torchvision in 0..1, mean and largest difference to Pillow in 255ths)."""
    same, sums, most, count = 0.0, 0.0, 0.0, 0
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (prepare.mean, prepare.std))
    for shape in SHAPES:
        images = pictures(*shape)
        free = Preprocessing(prepare.size, prepare.mean, prepare.std, prepare.crop, clamp=False)
        theirs = (_torchvision(images.movedim(-1, 1), prepare) - mean) / std
        same = max(same, float((free(images) - theirs).abs().max()))
        pixels = prepare(images) * std + mean
        for image, mine in zip(images, pixels, strict=True):
            gap = (mine - _pillow(image, prepare)).abs() * 255
            sums, count, most = sums + float(gap.sum()), count + gap.numel(), max(most, float(gap.max()))
    return same, sums / count, most


def _torchvision(x: Tensor, prepare: Preprocessing) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    size = prepare.size if prepare.crop else [prepare.size, prepare.size]
    x = resize(x, size, InterpolationMode.BICUBIC, antialias=True)
    return center_crop(x, [prepare.size, prepare.size]) if prepare.crop else x


def _pillow(image: Tensor, prepare: Preprocessing) -> Tensor:
    """Shorter side and centre crop (or stretch) by Pillow, as ``CLIPImageProcessor`` of transformers 4 does it."""
    shown, size = Image.fromarray((image * 255).round().to(torch.uint8).numpy()), prepare.size
    if not prepare.crop:
        shown = shown.resize((size, size), Image.Resampling.BICUBIC)
    else:
        short = min(shown.size)
        shown = shown.resize([int(size * side / short) for side in shown.size], Image.Resampling.BICUBIC)
        left, top = round((shown.width - size) / 2), round((shown.height - size) / 2)
        shown = shown.crop((left, top, left + size, top + size))
    raw = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8)
    return raw.view(size, size, 3).movedim(-1, 0) / 255


def scores(row: Row, mine: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> Row:
    """Fill in what ``mine`` and ``theirs`` say of the same images, without and with resizing."""
    with torch.no_grad():
        exact = pictures(SMALL, SMALL)
        ours = mine(exact).double()
        row.score = float((ours - theirs(exact)).abs().max())
        row.spread = float(ours.std())
        large = pictures(96, 140)
        row.resized = float((mine(large).double() - theirs(large)).abs().max())
    return row


def measured(row: Row, prepare: Preprocessing) -> Row:
    """Fill in the differences of a preprocessing at its published size."""
    row.same, row.pillow_mean, row.pillow_max = preprocessing(prepare)
    return row


def unit(features) -> Tensor:
    """Normalised embeddings of either version of transformers."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)


def by_processor(kind: str, **options) -> Callable[[Tensor], Tensor]:
    """transformers' own image processor on 8-bit pictures -> pixels ``[n, 3, s, s]``."""
    import transformers

    processor = getattr(transformers, kind)(**options)
    return lambda images: processor((images * 255).round().to(torch.uint8).movedim(-1, 1), return_tensors="pt")[
        "pixel_values"
    ]


def clip_rows(folder: Path) -> list[Row]:
    """CLIPScore, PickScore, LAION aesthetic and similarity against transformers."""
    clip, tokenizer = models.small_clip(), load_tokenizer(folder)
    words = tokenizer(PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    process = by_processor("CLIPImageProcessor", size={"shortest_edge": SMALL}, crop_size=SMALL)

    def logits(images: Tensor) -> Tensor:
        return clip(pixel_values=process(images), **words).logits_per_image.diagonal()

    def embedding(images: Tensor) -> Tensor:
        return unit(clip.get_image_features(pixel_values=process(images)))

    score = CLIPScoreVerifier(clip, tokenizer)
    rows = [scores(Row("clip_score", "transformers, CLIPModel and processor"), lambda x: score.score(x, PROMPTS),
                   lambda x: logits(x) / clip.logit_scale.exp())]  # fmt: skip
    pick = PickScoreVerifier(clip, tokenizer, scale="logit")
    rows.append(scores(Row("pickscore", "transformers, logits_per_image"), lambda x: pick.score(x, PROMPTS), logits))

    head = models.released_head(24, (0, 2, 4, 6, 7))
    ours = laion_head(24)
    ours.load_state_dict({f"layers.{key}": value for key, value in head.state_dict().items()})
    laion = LAIONAestheticVerifier(_tower_of(clip), ours)
    rows.append(
        scores(Row("laion_aesthetic", "transformers, released Sequential"), laion.score,
               lambda x: head(embedding(x)).squeeze(-1))
    )  # fmt: skip
    references = pictures(SMALL, SMALL)[:1]
    alike = SimilarityVerifier(_tower_of(clip), references)
    rows.append(
        scores(Row("similarity", "transformers, CLIP tower"), alike.score,
               lambda x: (embedding(x) @ embedding(references).T).squeeze(-1))
    )  # fmt: skip
    return [measured(row, Preprocessing()) for row in rows]


def _tower_of(clip):
    from transformers import CLIPVisionModelWithProjection

    config = clip.config.vision_config
    tower = CLIPVisionModelWithProjection(config).eval()
    own = {f"vision_model.{key}": value for key, value in clip.vision_model.state_dict().items()}
    tower.load_state_dict({**own, "visual_projection.weight": clip.visual_projection.weight})
    return tower


def hps_row(folder: Path) -> Row:
    """HPSv2 against open_clip with HPSv2's order: to tensor, resize, crop."""
    official = models.small_open_clip()
    file = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": official.state_dict()}, file)
    verifier = load_hps(file, folder)
    ids = verifier.tokenizer(PROMPTS, padding="max_length", max_length=32, return_tensors="pt")["input_ids"]
    first = (ids == 55).int().argmax(1)  # open_clip pads with 0 and reads at the highest id
    ids = torch.where(torch.arange(32)[None] > first[:, None], 0, ids)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))

    def theirs(images: Tensor) -> Tensor:
        pixels = (_torchvision(images.movedim(-1, 1), verifier.prepare) - mean) / std
        image, text = official.encode_image(pixels, normalize=True), official.encode_text(ids, normalize=True)
        return (image * text).sum(-1)

    row = scores(Row("hps_v2_1", "open_clip, HPSv2's transform"), lambda x: verifier.score(x, PROMPTS), theirs)
    return measured(row, Preprocessing(clamp=False))


def v25_row() -> Row:
    """Aesthetic V2.5 against transformers' SigLIP and its processor."""
    tower, head = models.small_siglip(), models.released_head(48, (0, 2, 4, 6, 8))
    ours = v25_head(48)
    ours.load_state_dict({f"layers.{key}": value for key, value in head.state_dict().items()})
    verifier = AestheticV25Verifier(tower, ours)
    process = by_processor("SiglipImageProcessor", size={"height": SMALL, "width": SMALL})

    def theirs(images: Tensor) -> Tensor:
        return head(F.normalize(tower(pixel_values=process(images)).pooler_output, dim=-1)).squeeze(-1)

    row = scores(Row("aesthetic_v25", "transformers, SigLIP and processor"), verifier.score, theirs)
    return measured(row, Preprocessing(384, HALF, HALF, crop=False))


def image_reward_row(folder: Path) -> Row:
    """ImageReward against the released module written anew from its key layout."""
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(models.BERT_WORDS) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    reference = models.shaken(models.ReferenceImageReward(), 5)
    model = ImageRewardModel(*models.ReferenceImageReward.options()).eval()
    model.load_state_dict(to_transformers(reference.state_dict()), strict=True)
    verifier = ImageRewardVerifier(model, tokenizer)
    words = tokenizer(PROMPTS, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    process = by_processor("CLIPImageProcessor", size={"shortest_edge": SMALL}, crop_size=SMALL)

    def theirs(images: Tensor) -> Tensor:
        return (reference(process(images), words["input_ids"], words["attention_mask"]) - MEAN) / STD

    row = scores(Row("image_reward", "own copy of the released layers"), lambda x: verifier.score(x, PROMPTS), theirs)
    return measured(row, Preprocessing())


def dino_row() -> Row:
    """DINOv2 features against transformers, the processor set to stretch, bilinear."""
    tower = models.small_dinov2()
    extractor = DINOv2Features(tower)
    process = by_processor(
        "BitImageProcessor", size={"height": SMALL, "width": SMALL}, do_center_crop=False, resample=2,
        image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD, do_convert_rgb=False,
    )  # fmt: skip
    row = Row("dinov2 (features)", "transformers, patch tokens")
    return scores(row, extractor.tokens, lambda x: tower(pixel_values=process(x)).last_hidden_state[:, 5:])


def vqa_row(folder: Path) -> Row:
    """VQAScore against a forward pass of transformers, one image at a time."""
    import transformers

    from ..verifiers.vlm.vqa_score import QUESTION, load_vqa_score
    from .small_vlm import llava

    llava(folder)
    verifier = load_vqa_score(folder, batch=3)
    model = transformers.AutoModelForImageTextToText.from_pretrained(str(folder)).eval()
    processor = transformers.AutoProcessor.from_pretrained(str(folder))
    yes = processor.tokenizer.convert_tokens_to_ids("Yes")

    def theirs(images: Tensor) -> Tensor:
        chances = []
        for image, prompt in zip(images, PROMPTS, strict=True):
            shown = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
            text = f"user : <image> {QUESTION.format(prompt)} assistant : "
            inputs = processor(text=text, images=shown, return_tensors="pt")
            chances.append(torch.softmax(model(**inputs).logits[0, -1].float(), -1)[yes])
        return torch.stack(chances)

    return scores(Row("vqa_score", "transformers, one image at a time"), lambda x: verifier.score(x, PROMPTS), theirs)


def objects_row(folder: Path, tokenizer: Path) -> Row:
    """Boxes' scores of OWLv2 against transformers' own processor and post-processing."""
    import transformers

    from ..verifiers.detectors import load_detector
    from ..verifiers.pictures import to_bytes, to_pictures
    from .small_detectors import owl

    owl(folder, tokenizer)
    detector, names = load_detector(folder), ["dog", "owl", "cat"]
    processor = transformers.AutoProcessor.from_pretrained(str(folder))

    def ours(images: Tensor) -> Tensor:
        found = detector(to_bytes(images), names)
        return _sorted([torch.cat([one.scores for one in image.values()]) for image in found])

    def theirs(images: Tensor) -> Tensor:
        shown = to_pictures(to_bytes(images))
        queries = [[f"a photo of a {name}" for name in names]] * len(shown)
        output = detector.model(**processor(text=queries, images=shown, return_tensors="pt"))
        sizes = [picture.size[::-1] for picture in shown]
        made = processor.post_process_grounded_object_detection(output, threshold=0.02, target_sizes=sizes)
        return _sorted([image["scores"] for image in made])

    return scores(Row("objects (boxes)", "transformers, OWLv2 post-processing"), ours, theirs)


def _sorted(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack([F.pad(row.sort(descending=True).values, (0, 64))[:64] for row in rows]).double()


def jpeg_row() -> Row:
    """JPEG sizes against Pillow."""
    import io

    def theirs(images: Tensor) -> Tensor:
        sizes = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray((image * 255).round().to(torch.uint8).numpy()).save(file, "JPEG", quality=95)
            sizes.append(-len(file.getvalue()) / 1000)
        return torch.tensor(sizes, dtype=torch.float64)

    return scores(Row("jpeg_compressibility", "Pillow, bytes of the file"), JPEGVerifier().score, theirs)
