"""Rewards that were trained on what people preferred."""
