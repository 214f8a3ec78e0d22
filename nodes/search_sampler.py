"""``SearchSampler``: a search as a stock ComfyUI SAMPLER, and the node that makes one."""

from __future__ import annotations

import logging

import comfy.samplers
import torch
from comfy_api.latest import io

from .host.diffusion_call import DiffusionCall
from .host.run import SearchOptions, run_in_host
from .host.sampling_call import SamplingCall
from .host.stock_samplers import host_sampler
from .search_inputs import clip_inputs, common_inputs, prompt_problem, source_inputs
from .types import CATEGORY

log = logging.getLogger("testtime")


class SearchSampler(comfy.samplers.Sampler):
    """A SAMPLER that searches: takes G latents, returns the best of N particles for each.

    Slot 0 of every image starts from the noise of the NOISE object, so with one particle ``eta = 0`` is ``euler`` and
    ``eta = 1`` is ``euler_ancestral`` with our noise; on flow models, whose ``euler_ancestral`` is another one, it is
    the SDE with the flow's own marginals.
    """

    def __init__(self, options: SearchOptions):
        options.check()
        self.options = options

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        """See ``comfy.samplers.Sampler``. Raises the host's interruption exception when cancelled under ``STOP``."""
        call = SamplingCall(
            guider=model_wrap,
            sigmas=sigmas,
            model_options=extra_args.get("model_options", {}),
            seed=extra_args.get("seed"),
            noise=noise,
            latent_image=torch.zeros_like(noise) if latent_image is None else latent_image,
            denoise_mask=denoise_mask,
        )
        hosted = DiffusionCall(call, callback)
        result = run_in_host(hosted, self.options)
        return hosted.from_sampler(result.status)(result.latents)


class SearchSamplerNode(io.ComfyNode):
    """Search Sampler: SEARCH + VERIFIER + VAE + prompt -> SAMPLER."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSearchSampler",
            display_name="Search Sampler",
            category=f"{CATEGORY}/search",
            description="Turns a search into a SAMPLER for SamplerCustomAdvanced, with any guider, sigmas and noise. "
            "Returns the best latent of each image.",
            inputs=[
                *common_inputs(),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Whose steps the search makes, e.g. from KSamplerSelect. Without it: euler, with eta.",
                ),
                *clip_inputs(),
                *source_inputs(),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def validate_inputs(cls, prompt=None):
        return prompt_problem(prompt)

    @classmethod
    def execute(cls, verifier, vae, search, eta, prompt, sampler=None, **optional) -> io.NodeOutput:
        options = SearchOptions(search, verifier, vae, prompt, eta=eta, **optional)
        if sampler is not None:
            options = options.sampled_by(host_sampler(sampler))
        return io.NodeOutput(SearchSampler(options))


NODES = [SearchSamplerNode]
