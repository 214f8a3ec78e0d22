"""Public benchmarks: official prompts in, folders out that the published evaluators read as they are."""
