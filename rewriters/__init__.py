"""Preview + prompt + history -> better prompts."""
