"""Find, start and talk to ComfyUI; write files whole; user-facing errors."""
