"""What the example workflows are called in ComfyUI's template browser, which shows the names of their files.

The browser keeps no order, so what to open first is said by the name; so is what has to be downloaded. Files in API
format, which are for scripts, keep the short names on the left.
"""

from __future__ import annotations

NEEDS = "(needs weights)"
"""Ends the name of every workflow that does not run on the included models alone."""

TITLES = {
    "best_of_n": "1 Best-of-N (start here)",
    "compare_with_ksampler": "2 Beside KSampler",
    "pick_by_hand": "3 Pick by hand",
    "beam_search": "Method - Beam Search",
    "das": "Method - DAS",
    "fk_steering": "Method - FK Steering",
    "importance_sampling": "Method - Importance Sampling",
    "path_search": "Method - Path Search",
    "random_search": "Method - Random Search",
    "smc": "Method - SMC",
    "svdd": "Method - SVDD",
    "svdd_reprompted": "Method - SVDD with rewritten prompts",
    "ttgen": "Method - TTGen",
    "zero_order_search": "Method - Zero-Order Search",
    "flow_budget": "Flow - Fit to Budget",
    "flow_rbf": "Flow - Rollover Budget Forcing",
    "flow_vp_svdd": "Flow - SVDD on the VP path",
    "var_sampler": "Next-scale - Plain sampling",
    "tts_var": "Next-scale - TTS-VAR",
    "continue_search": "Use - Continue a search",
    "image_to_image": "Use - Image to image",
    "inpainting": "Use - Inpainting",
    "rank_images": "Use - Rank a batch",
    "replay_winner": "Use - Re-render the winner",
    "search_sampler": "Use - SamplerCustomAdvanced",
    "flux2_klein_best_of_n": f"FLUX.2 Klein - Best-of-N {NEEDS}",
    "flux_rbf": f"FLUX.1 schnell - Rollover Budget Forcing {NEEDS}",
    "hunyuan_video": f"HunyuanVideo - Best-of-N {NEEDS}",
    "infinity_sampler": f"Infinity - Plain sampling {NEEDS}",
    "infinity_tts_var": f"Infinity - TTS-VAR {NEEDS}",
    "ltx2_t2v": f"LTX-2 - Best-of-N with sound {NEEDS}",
    "qwen_edit_best_of_n": f"Qwen-Image-Edit - Best-of-N {NEEDS}",
    "qwen_image_zero_order": f"Qwen-Image - Zero-Order Search {NEEDS}",
    "sd15_best_of_n": f"SD 1.5 - Best-of-N {NEEDS}",
    "sd15_svdd": f"SD 1.5 - SVDD {NEEDS}",
    "sd15_ttgen": f"SD 1.5 - TTGen {NEEDS}",
    "sd3_svdd": f"SD 3.5 - SVDD {NEEDS}",
    "sdxl_best_of_n": f"SDXL - Best-of-N {NEEDS}",
    "sdxl_fk_steering": f"SDXL - FK Steering {NEEDS}",
    "wan22_i2v": f"Wan 2.2 - Image to video {NEEDS}",
    "wan22_t2v": f"Wan 2.2 - Text to video {NEEDS}",
    "z_image_turbo_random_search": f"Z-Image-Turbo - Random Search {NEEDS}",
}
