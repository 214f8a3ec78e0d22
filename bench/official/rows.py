"""One function per row: ``(folder for files, pictures by name) -> arrays``.

Arrays are ``scores [pictures]``, ``pixels-NAME [3, s, s]`` as the tower sees them, and ``ids [pictures, tokens]`` where
the package makes them itself. What the pack needs to load the same model is left in the folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import models
from .pictures import PROMPTS

Arrays = dict[str, np.ndarray]
Pictures = Mapping[str, Path]


def _said(scores: list[Any], pixels: Mapping[str, Any], ids: Any = None) -> Arrays:
    arrays = {f"pixels-{name}": np.asarray(value, dtype=np.float32) for name, value in pixels.items()}
    if ids is not None:
        arrays["ids"] = np.asarray(ids)
    return {"scores": np.asarray([float(score) for score in scores]), **arrays}


def _opened(pictures: Pictures) -> dict[str, Image.Image]:
    return {name: Image.open(path) for name, path in pictures.items()}


def clip_score(folder: Path, pictures: Pictures) -> Arrays:
    """``CLIPProcessor`` and ``CLIPModel`` of transformers."""
    from transformers import CLIPModel, CLIPProcessor

    models.hub_clip(folder, "quick_gelu")
    clip = CLIPModel.from_pretrained(folder, trust_remote_code=False).eval()
    processor = CLIPProcessor.from_pretrained(folder, trust_remote_code=False)
    scores, pixels = [], {}
    for name, picture in _opened(pictures).items():
        inputs = processor(text=[PROMPTS[name]], images=picture, return_tensors="pt", truncation=True, max_length=77)
        pixels[name] = inputs["pixel_values"][0]
        scores.append(clip(**inputs).logits_per_image[0, 0] / clip.logit_scale.exp())
    return _said(scores, pixels)


def pickscore(folder: Path, pictures: Pictures) -> Arrays:
    """``PickScoreModel`` of t2v_metrics."""
    from transformers import AutoModel, AutoProcessor

    package = models.without_init("t2v_metrics.models.clipscore_models", "pickscore_model")
    loader = importlib.import_module("t2v_metrics.models.model").image_loader
    models.hub_clip(folder, "gelu")
    score = package.PickScoreModel.__new__(package.PickScoreModel)  # its constructor asks the hub
    score.device, score.image_loader = "cpu", loader
    score.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    score.model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    pixels = {name: score.load_images([str(path)])["pixel_values"][0] for name, path in pictures.items()}
    scores = [score.forward([str(path)], [PROMPTS[name]]) for name, path in pictures.items()]
    return _said(scores, pixels)


def hps_v2_1(folder: Path, pictures: Pictures) -> Arrays:
    """``hpsv2.img_score.score``, with the transform that its ``initialize_model`` asks its factory for."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import get_tokenizer, image_transform

    models.clip_tokenizer(folder)
    file = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": models.hps_clip().state_dict()}, file)
    transform = image_transform(models.SIZE, is_train=False, resize_longest_max=True)
    img_score.model_dict.update(model=models.hps_clip(), preprocess_val=transform)
    ids = get_tokenizer("ViT-H-14")(list(PROMPTS.values()))
    scores, pixels = [], {}
    for name, picture in _opened(pictures).items():
        # four channels are kept by its transform and refused by its tower
        picture = picture.convert("RGB") if picture.mode == "RGBA" else picture
        pixels[name] = transform(picture)
        scores.append(img_score.score(picture, PROMPTS[name], str(file))[0])
    return _said(scores, pixels, ids)


def image_reward(folder: Path, pictures: Pictures) -> Arrays:
    """``ImageReward.score``."""
    reward = models.image_reward(folder)
    torch.save(reward.state_dict(), folder / "ImageReward.pt")
    shown = _opened(pictures)
    pixels = {name: reward.preprocess(picture) for name, picture in shown.items()}
    return _said([reward.score(PROMPTS[name], picture) for name, picture in shown.items()], pixels)


def _openai(folder: Path, kind: str) -> Any:
    """A score of the ImageReward package that stands on OpenAI's CLIP, with a small one."""
    from clip.clip import _transform

    models.without_init("ImageReward", "ImageReward")
    package = getattr(importlib.import_module(f"ImageReward.models.{kind}"), kind)
    score = package.__new__(package)  # its constructor asks the network
    torch.nn.Module.__init__(score)
    score.device, score.clip_model, score.preprocess = "cpu", models.openai_clip(), _transform(models.SIZE)
    models.clip_tokenizer(folder)
    torch.save({"state_dict": score.clip_model.state_dict()}, folder / "clip.pt")
    return score


def hessel(folder: Path, pictures: Pictures) -> Arrays:
    """2.5 max(cos, 0) of ``ImageReward.models.CLIPScore``, on OpenAI's CLIP, after the prefix of the paper."""
    import clip

    score = _openai(folder, "CLIPScore")
    asked = {name: f"A photo depicts {prompt}" for name, prompt in PROMPTS.items()}
    pixels = {name: score.preprocess(picture) for name, picture in _opened(pictures).items()}
    scores = [2.5 * max(float(score.score(asked[name], str(path))), 0.0) for name, path in pictures.items()]
    return _said(scores, pixels, clip.tokenize(list(asked.values()), truncate=True))


def laion_aesthetic(folder: Path, pictures: Pictures) -> Arrays:
    """``ImageReward.models.AestheticScore`` (the authors' script as a class), on OpenAI's CLIP."""
    score = _openai(folder, "AestheticScore")
    torch.manual_seed(7)
    score.mlp = importlib.import_module("ImageReward.models.AestheticScore").MLP(models.JOINT).eval()
    torch.save(score.mlp.state_dict(), folder / "head.pth")
    pixels = {name: score.preprocess(picture) for name, picture in _opened(pictures).items()}
    return _said([score.score("", str(path)) for path in pictures.values()], pixels)


def simple_aesthetics(folder: Path, pictures: Pictures) -> Arrays:
    """``AestheticsPredictorV2Linear`` of simple-aesthetics-predictor, with the CLIP processor of its instructions."""
    from aesthetics_predictor import AestheticsPredictorV2Linear
    from transformers import CLIPModel, CLIPProcessor

    models.hub_clip(folder, "quick_gelu")
    processor = CLIPProcessor.from_pretrained(folder, trust_remote_code=False)
    config = CLIPModel.from_pretrained(folder, trust_remote_code=False).config.vision_config
    torch.manual_seed(8)
    predictor = AestheticsPredictorV2Linear(config)
    clip = CLIPModel.from_pretrained(folder, trust_remote_code=False)
    predictor.vision_model.load_state_dict(clip.vision_model.state_dict())
    predictor.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    models.shaken(predictor.layers, 8)
    predictor.eval()
    torch.save({f"layers.{key}": value for key, value in predictor.layers.state_dict().items()}, folder / "head.pth")
    pixels = {name: processor(images=picture, return_tensors="pt")["pixel_values"][0]
              for name, picture in _opened(pictures).items()}  # fmt: skip
    return _said([predictor(pixel_values=value[None]).logits for value in pixels.values()], pixels)


def aesthetic_v25(folder: Path, pictures: Pictures) -> Arrays:
    """``convert_v2_5_from_siglip`` of aesthetic-predictor-v2-5 and what it returns."""
    from aesthetic_predictor_v2_5 import convert_v2_5_from_siglip
    from aesthetic_predictor_v2_5.siglip_v2_5 import AestheticPredictorV2_5Head
    from transformers import SiglipVisionConfig

    models.hub_siglip(folder)
    torch.manual_seed(9)
    config = SiglipVisionConfig.from_pretrained(folder, trust_remote_code=False)
    head = models.shaken(AestheticPredictorV2_5Head(config), 9)
    torch.save(head.state_dict(), folder / "head.pth")
    model, processor = convert_v2_5_from_siglip(str(folder / "head.pth"), str(folder))
    pixels = {name: processor(images=picture.convert("RGB"), return_tensors="pt").pixel_values[0]
              for name, picture in _opened(pictures).items()}  # fmt: skip
    return _said([model(value[None]).logits for value in pixels.values()], pixels)


def similarity(folder: Path, pictures: Pictures) -> Arrays:
    """Cosine to the first picture of ``Dinov2WithRegistersModel`` behind its image processor, of transformers."""
    from transformers import AutoImageProcessor, AutoModel

    models.hub_dinov2(folder)
    tower = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    return _cosines(tower, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False), pictures)


def similarity_clip(folder: Path, pictures: Pictures) -> Arrays:
    """The same of CLIP's image tower."""
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    models.hub_clip(folder, "quick_gelu")
    tower = CLIPVisionModelWithProjection.from_pretrained(folder, trust_remote_code=False).eval()
    return _cosines(tower, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False), pictures)


def _cosines(tower: Callable[..., Any], processor: Any, pictures: Pictures) -> Arrays:
    shown = {name: picture.convert("RGB") for name, picture in _opened(pictures).items()}
    pixels = {name: processor(images=picture, return_tensors="pt")["pixel_values"][0]
              for name, picture in shown.items()}  # fmt: skip
    output = [tower(pixel_values=value[None]) for value in pixels.values()]
    found = torch.cat([one.image_embeds if hasattr(one, "image_embeds") else one.pooler_output for one in output])
    found = torch.nn.functional.normalize(found, dim=-1)
    return _said(list(found @ found[0]), pixels)


def dinov2_features(folder: Path, pictures: Pictures) -> Arrays:
    """Patch tokens: torchvision's stretch to 224 x 224 as TTS-VAR composes it, and transformers' DINOv2."""
    from torchvision import transforms
    from transformers import AutoModel

    models.hub_dinov2(folder)
    tower = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    prepare = transforms.Compose([
        transforms.Resize((224, 224)), transforms.ToTensor(),
        transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ])  # fmt: skip
    pixels = {name: prepare(picture.convert("RGB")) for name, picture in _opened(pictures).items()}
    tokens = [tower(pixel_values=value[None]).last_hidden_state[0, 5:] for value in pixels.values()]
    return _said([token.mean() for token in tokens], pixels) | {"tokens": torch.stack(tokens).numpy()}


def jpeg(folder: Path, pictures: Pictures) -> Arrays:
    """Minus the kilobytes that Pillow writes at quality 95."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    for name, picture in _opened(pictures).items():
        picture.convert("RGB").save(folder / f"{name}.jpg", quality=95)
        scores.append(-(folder / f"{name}.jpg").stat().st_size / 1000)
    return _said(scores, {})


ROWS: dict[str, Callable[[Path, Pictures], Arrays]] = {
    function.__name__: function
    for function in (clip_score, hessel, pickscore, hps_v2_1, image_reward, laion_aesthetic, simple_aesthetics,
                     aesthetic_v25, similarity, similarity_clip, dinov2_features, jpeg)
}  # fmt: skip
