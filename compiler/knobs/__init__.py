"""Knobs: what can be set, where it is legal, and how a model and a target make dimensions of them."""
