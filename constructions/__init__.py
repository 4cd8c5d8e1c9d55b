"""Exact constructions: each module writes one theorem's weights; `registry.build` makes them by name."""
