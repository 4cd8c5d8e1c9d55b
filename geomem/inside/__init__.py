"""Interpreting a model: one prompt in words, linear maps of embeddings, interventions, new facts."""
