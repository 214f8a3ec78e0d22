"""Networks of this pack: Infinity, and the small family of Shapes World."""
