"""Pictures of a search, drawn with Pillow alone: scores over compute, the family tree, the finalists."""
