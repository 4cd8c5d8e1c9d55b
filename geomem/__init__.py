"""Geometric factual recall: facts, transformers that store them, analyses and lower bounds.

The names exported here suffice to build, train, query and check models; the submodules hold the rest.
Imports nothing from the other packages.
"""

from geomem.checks.accounting import Ledger
from geomem.checks.verify import Report
from geomem.config import BlockConfig, Config
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facade import FactModel, load
from geomem.facts import Facts
from geomem.inside.asking import Answer
from geomem.inside.trace import Trace
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task
from geomem.training.trained import Trained, sweep, train

__version__ = '0.2.0'
__all__ = [
  'Answer', 'BlockConfig', 'Config', 'Construction', 'FactModel', 'Facts', 'InputError', 'Ledger', 'Recipe',
  'Report', 'Task', 'Trace', 'Trained', '__version__', 'load', 'sweep', 'train',
]  # fmt: skip
