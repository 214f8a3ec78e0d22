"""Models of other libraries as processes: any text-to-image pipeline of diffusers, see ``diffusion.pipeline_process``.

diffusers is optional: nothing here imports it, a pipeline that was loaded brings it along.
"""

from .decode import PipelineDecode
from .diffusion import PipelineDenoise, pipeline_process

__all__ = ["PipelineDecode", "PipelineDenoise", "pipeline_process"]
