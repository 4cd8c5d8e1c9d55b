"""`FactModel`: a model that stores facts, constructed or trained, and what can be done with it.

Its methods only delegate to the library's subpackages. Besides `geomem/__init__.py`, no other module
at the top level imports these, and this one does so only when a method is called.
"""

import dataclasses
import html
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import Layout

if TYPE_CHECKING:
  from geomem.checks.accounting import Ledger
  from geomem.checks.verify import Report
  from geomem.construction import OwnReadout, Readout
  from geomem.inside.asking import Answer
  from geomem.inside.trace import Trace

AUTO_LOGITS = 2**31


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FactModel:
  """Parameters for `config`, the facts that they should store, and the names of their coordinates.

  `layout` names the coordinates of the residual stream, `hidden` the units of every block's hidden
  layers (empty: they have no names). Only constructions set the following; elsewhere they are None:
  `margin`: the least margin any query can have (None: no promise, accuracy has to be measured).
  `readout`: where answers are read from, and in which code; a certificate needs it.
  `encode`: maps answers WxN to subject embeddings NxD, where the embedding *is* the memory of the W
  questions that can be asked about a subject; None where facts are stored elsewhere.
  `choices`: the possible answers to each of those W questions, if not all attributes.
  `thoughts`: how many of the k − 1 intermediate subjects a chain of thought states, if not all.

  >>> model = constructions.build('selector', Facts.bijections(8, 2))
  >>> model.queries, model.verify().holds(model.margin)
  (16, True)
  """

  name: str
  config: Config
  params: dict
  layout: Layout
  facts: Facts
  hops: int = 1
  hidden: tuple[tuple[Layout, ...], ...] = ()
  margin: float | None = None
  readout: 'Readout | OwnReadout | None' = None
  encode: Callable[[np.ndarray], np.ndarray] | None = None
  choices: tuple[np.ndarray, ...] | None = None
  chain_of_thought: bool = False
  thoughts: int | None = None

  @property
  def said(self) -> tuple[int, ...]:
    """The numbers of hops after which the model states a subject; the last one is the answer."""
    from geomem import queries

    most = self.hops - 1 if self.thoughts is None else self.thoughts
    return queries.stops(self.hops, most if self.chain_of_thought else 0)

  @property
  def queries(self) -> int:
    return self.facts.subjects * self.facts.relations**self.hops

  def replace(self, **changes: Any) -> Self:
    return dataclasses.replace(self, **changes)

  def ask(self, query: str, dtype: str = 'float32') -> 'Answer':
    """Answer a query by name, a subject and one relation per hop: 's17 r2' or 'Ann Lee | knows'."""
    from geomem.inside import asking

    return asking.answer(self, *asking.parse_query(self.facts, query, self.hops), dtype)

  def verify(
    self,
    check: str = 'auto',
    dtype: str = 'float32',
    on_progress: Callable[[int, int], None] | None = None,
  ) -> 'Report':
    """Check every query: 'exhaustive', by 'certificate', or 'universal', for all tables of facts.

    'auto': exhaustive up to 2³¹ logits, beyond that by certificate if the model has a readout.
    `on_progress` is called with the number of query blocks done and their total number.
    """
    from geomem.checks import verify

    if check == 'auto':
      few = self.queries * self.facts.attributes <= AUTO_LOGITS
      check = 'exhaustive' if few or self.readout is None else 'certificate'
    if check not in verify.CHECKS:
      raise InputError(f'check is {check!r}; it must be one of auto, {", ".join(verify.CHECKS)}')
    return getattr(verify, check)(self, dtype, progress=on_progress)

  def trace(self, query: str, dtype: str = 'float32') -> 'Trace':
    """A printable trace of the forward pass on the query, in terms of named coordinates."""
    from geomem.inside import trace

    return trace.trace_prompt(self, self.ask(query, dtype).tokens_L, dtype)

  def ledger(self) -> 'Ledger':
    """What the model uses and what it stores, in parameters and in bits."""
    from geomem.checks import accounting

    hops, chain = self.hops, self.chain_of_thought
    if self.thoughts is not None:  # the first stated subject is an answer without chain of thought
      hops, chain = self.said[0], False
    return accounting.ledger(self.config, self.params, self.facts, hops, chain_of_thought=chain)

  def save(self, path: str | os.PathLike) -> None:
    """Write the model to the folder `path`; `geomem.load` or `constructions.load` read it."""
    from geomem.saved import models

    models.save(path, self)

  def export(self, path: str | os.PathLike, license: str = 'Apache-2.0') -> None:
    """Write the folder `path` for other tools: model.safetensors, and a config.json that names everything.

    It can also be read by `geomem.load` and `constructions.load`.
    """
    from geomem import export

    export.write(path, self, license)

  def _about(self) -> dict[str, float]:
    """The numbers that summarise the model."""
    promise = {} if self.margin is None else {'margin': self.margin}
    parameters = sum(np.size(weight) for weight in jax.tree.leaves(self.params))
    return {
      'subjects': self.facts.subjects, 'relations': self.facts.relations, 'hops': self.hops,
      'dim': self.config.dim, 'depth': self.config.depth, 'parameters': parameters, **promise,
    }  # fmt: skip

  def __repr__(self) -> str:
    about = ', '.join(f'{name}={value:.7g}' for name, value in self._about().items())
    return f'<{type(self).__name__} {self.name}: {about}>'

  def _repr_html_(self) -> str:
    slots = [
      (f'slot {slot.name}', f'{slot.size} coordinates from {self.layout[slot.name].start} on')
      for slot in self.layout.slots
    ]
    return html_table([(type(self).__name__, self.name), *self._about().items(), *slots])


def load(path: str | os.PathLike) -> FactModel:
  """The model in the folder `path` exactly as saved; `constructions.load` rebuilds a construction.

  >>> constructions.build('selector', Facts.bijections(8, 2)).save('mine')
  >>> load('mine').margin
  4
  """
  from geomem import export
  from geomem.saved import models

  return (export if export.is_export(path) else models).load(path)


def html_table(rows: Iterable[Sequence[object]]) -> str:
  """The rows as an HTML table, which notebooks show if `_repr_html_` returns it."""
  cells = lambda row: ''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)
  return f'<table>{"".join(f"<tr>{cells(row)}</tr>" for row in rows)}</table>'
