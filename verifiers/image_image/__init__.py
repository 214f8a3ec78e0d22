"""Pictures against pictures: similarity to references, features for clustering."""
