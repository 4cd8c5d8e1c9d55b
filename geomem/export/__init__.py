"""Export models for use in other tools: as files, and in TransformerLens.

>>> built = constructions.build('selector', geomem.Facts.bijections(8, 2))
>>> write('selector', built)  # or built.export('selector')
>>> is_export('selector'), load('selector').verify().accuracy
(True, 1.0)
>>> sorted(path.name for path in Path('selector').iterdir()) == sorted([DESCRIPTION, WEIGHTS])
True
>>> bridge = to_transformer_lens('selector')  # doctest: +SKIP
>>> bridge.run_with_cache(torch.tensor([[3, 8]]))  # doctest: +SKIP
"""

from geomem.export.bridge import to_transformer_lens
from geomem.export.files import DESCRIPTION, WEIGHTS, is_export, load, write

__all__ = ['DESCRIPTION', 'WEIGHTS', 'is_export', 'load', 'to_transformer_lens', 'write']
