"""Export models for use in other tools: as files, and in TransformerLens."""

from geomem.export.bridge import to_transformer_lens
from geomem.export.files import DESCRIPTION, WEIGHTS, is_export, load, write

__all__ = ['DESCRIPTION', 'WEIGHTS', 'is_export', 'load', 'to_transformer_lens', 'write']
