"""How well image and prompt fit in a space that both are embedded in."""
