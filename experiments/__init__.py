"""Studies that measure what is claimed, each in a file of its own, and the other binaries."""

STUDIES = (  # in the order of the report; each is `STUDY` of the module of its name
  'construct', 'bounds', 'threshold', 'capacity', 'structure', 'transfer', 'frozen_embeddings', 'multihop',
  'from_constructed', 'language_model',
)  # fmt: skip
