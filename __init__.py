"""Test-time scaling for image generation: ComfyUI node pack and Python library in one folder.

Importing this package is cheap: neither ComfyUI nor torch is imported until a node list is asked for
(``comfy_entrypoint``) or a sub-package is used (``testtime.samplers``, ``testtime.verifiers``, ...).
"""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI's V3 loader; returns the pack's ``ComfyExtension``."""
    from .installation.lifeline import end_with_parent
    from .nodes import comfy_entrypoint as entrypoint

    end_with_parent()

    return await entrypoint()
