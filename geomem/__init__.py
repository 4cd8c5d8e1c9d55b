"""Geometric factual recall: facts, the transformer, checks, bounds. Imports nothing from the other packages."""
