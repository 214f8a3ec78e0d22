"""Shapes World: scenes, captions, drawings, and an exact judge of them."""
