"""Exact constructions: each module writes one theorem's weights; `registry.build` makes them by name.

Letters: N subjects, R relations, k hops, A attributes, m coordinates of a code, d residual width,
F hidden width, H heads. An array's name ends in its shape: `answers_RxN`, `words_AxM`. Weights are
written in the names of a `geomem.layout.Layout`: `w[layout['state'], hidden['match']] = ...`.
"""

from constructions.registry import build, entry, load, names

__all__ = ['build', 'entry', 'load', 'names']
