"""A feature extractor whose network lives under ComfyUI's model management."""

from __future__ import annotations

import comfy.model_management as management
import comfy.model_patcher
from torch import Tensor

from ...samplers.clustering import Extractor
from .managed_verifier import TOWER_BYTES, Wrapper


class ManagedExtractor:
    """Loads the extractor's network when features are asked for.

    Decoding comes before clustering, so the sampling run already knows that its own models may have been moved.
    """

    def __init__(self, extractor: Extractor):
        self.extractor, self.name = extractor, extractor.name
        self.patcher = comfy.model_patcher.ModelPatcher(
            Wrapper(extractor.module),
            load_device=management.get_torch_device(),
            offload_device=management.text_encoder_offload_device(),
        )

    def tokens(self, images: Tensor) -> Tensor:
        """See ``samplers.clustering.Extractor``."""
        needed = len(images) * (TOWER_BYTES + 4 * images[:1].numel())
        management.load_models_gpu([self.patcher], memory_required=needed, force_full_load=True)
        return self.extractor.tokens(images)
