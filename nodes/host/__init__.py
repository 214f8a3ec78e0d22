"""The adapter to ComfyUI: guiders, VAEs, memory, previews, questions."""
