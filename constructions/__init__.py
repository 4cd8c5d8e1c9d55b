"""Constructions: each module writes the weights of a theorem; `registry.build` makes them by name.

Notation: N subjects, R relations, k hops, A attributes, m coordinates per code word, d residual
width, F hidden width, H heads. Array names end in their shapes: `answers_RxN`, `words_AxM`. Weights
are addressed by the slot names of a `geomem.layout.Layout`:
`w[layout['state'], hidden['match']] = ...`.
"""

from constructions.registry import build, entry, load, names

__all__ = ['build', 'entry', 'load', 'names']
