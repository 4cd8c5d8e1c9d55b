"""One forward pass on one prompt, described by the names of the facts and of the coordinates.

Shapes: L length, D residual width, H heads, F hidden width, A answers; a slot holds E entries of M
coordinates each. The *answer positions* are the last one or, with chain of thought, all from the last
relation on.
"""

import dataclasses
import functools
import math
import textwrap
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from geomem import codes, model, queries
from geomem.config import Config
from geomem.errors import InputError
from geomem.facade import FactModel, html_table
from geomem.facts import Facts
from geomem.layout import ATTRIBUTE, BRANCH, OWN_ANSWER, RELATION, SUBJECT, Slot

COLUMNS, SHOWN, TOP = 100, 8, 5


@dataclasses.dataclass(frozen=True, eq=False)
class BlockTrace:
  """`read_LxD`: the residual after attention; `written_LxD`: after the MLP (equal to `read_LxD` without one)."""

  attention_HxLxL: np.ndarray
  read_LxD: np.ndarray
  hidden: tuple[np.ndarray, ...]
  written_LxD: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trace:
  """The forward pass of `construction`, a model of any kind, on one prompt; printing it describes it in words.

  >>> seen = constructions.build('selector', Facts.bijections(8, 2)).trace('s1 r0')
  >>> print(str(seen).splitlines()[-1])
  answer              s4, by a margin of 10
  """

  construction: FactModel
  dtype: str
  tokens_L: np.ndarray
  embedded_LxD: np.ndarray
  blocks: tuple[BlockTrace, ...]
  logits_LxA: np.ndarray

  @property
  def positions(self) -> range:
    """The positions at which an answer is due."""
    last = len(self.tokens_L)
    return range(self.construction.hops if self.construction.chain_of_thought else last - 1, last)

  def token(self, position: int) -> str:
    facts, token = self.construction.facts, int(self.tokens_L[position])
    if token < facts.subjects:
      return facts.subject_name(token)
    return facts.relation_name(token - facts.subjects)

  def top(self, position: int) -> list[tuple[str, float]]:
    """The largest logits, each with its answer's name."""
    logits_A = self.logits_LxA[position]
    best = np.argsort(-logits_A, kind='stable')[:TOP]
    return [(self.construction.facts.attribute_name(int(a)), float(logits_A[a])) for a in best]

  def before(self, block: int) -> np.ndarray:
    """The residual that the block reads, LxD."""
    return self.blocks[block - 1].written_LxD if block else self.embedded_LxD

  def __str__(self) -> str:
    return '\n'.join(lines(self))

  def __repr__(self) -> str:
    tokens = join_names([self.token(p) for p in range(len(self.tokens_L))])
    return f'<Trace of {tokens} in {self.construction.name}, {self.dtype}>'

  def _repr_html_(self) -> str:
    return html_table((label, '; '.join(items)) for label, items in rows(self))


def join_names(names: Sequence[str], separate: bool = False) -> str:
  """Join names into a query that can be asked, separated by | where a name contains spaces, or always."""
  return (' | ' if separate or any(' ' in name for name in names) else ' ').join(names)


def trace_prompt(construction: FactModel, tokens_L: ArrayLike, dtype: str = 'float32') -> Trace:
  """Run one forward pass and collect everything it sows."""
  c, tokens_L = construction, _checked(construction, np.asarray(tokens_L))
  logits, sown = _sow(c.config.replace(dtype=dtype), c.params, tokens_L)
  sown = jax.tree.map(lambda a: np.asarray(a[0], np.float32), sown['trace'])
  blocks = []
  for i in range(c.config.depth):
    parts = sown[f'blocks_{i}']
    (weights_HxLxL,), residual = parts['attention']['attention'], parts['residual']
    hidden = parts.get('mlp', {}).get('hidden', ())
    blocks.append(BlockTrace(weights_HxLxL, residual[0], hidden, residual[-1]))
  return Trace(c, dtype, tokens_L, sown['residual'][0], tuple(blocks), np.asarray(logits[0]))


def _checked(c: FactModel, tokens_L: np.ndarray) -> np.ndarray:
  """Check that tokens are a prompt of the model: a subject, its relations, and thoughts before the last step."""
  if tokens_L.ndim != 1 or not np.issubdtype(tokens_L.dtype, np.integer):
    raise InputError(
      f'tokens are {tokens_L.dtype} of shape {tokens_L.shape}; give a row of integers'
    )
  n, shortest = c.facts.subjects, 1 + c.hops
  longest = c.hops + len(c.said)
  if not shortest <= len(tokens_L) <= longest:
    raise InputError(
      f'{len(tokens_L)} tokens; the model reads a subject and {c.hops} relation(s), then up to '
      f'{longest - shortest} thought(s)'
    )
  for p, token in enumerate(tokens_L.tolist()):
    kind, low, high = 'subject', 0, n
    if 1 <= p < shortest:
      kind, low, high = 'relation', n, n + c.facts.relations
    if not low <= token < high:
      raise InputError(f'token {p} is {token}; a {kind} belongs there, {low} … {high - 1}')
  return tokens_L.astype(np.int32)


@functools.partial(jax.jit, static_argnames='config')
def _sow(config: Config, params, tokens_L):
  return model.Transformer(config).apply({'params': params}, tokens_L[None], mutable=['trace'])


def head_outputs(trace: Trace, block: int, position: int) -> np.ndarray:
  """The block's heads' output at `position` from each attended token, LxD; attention adds the sum over tokens."""
  config, params = trace.construction.config, trace.construction.params[f'blocks_{block}']
  scale = {'params': params.get('norm_attention', {})}
  x_LxD = np.asarray(model.Norm(config).apply(scale, jnp.asarray(trace.before(block))))
  weights_HxL = trace.blocks[block].attention_HxLxL[:, position]
  heads_HxLxK = np.einsum('ld,hdk->hlk', x_LxD, params['attention']['value'], optimize=True)
  heads_HxLxK = heads_HxLxK * weights_HxL[..., None]
  return np.einsum('hlk,hkd->ld', heads_HxLxK, params['attention']['output'], optimize=True)


def relation_outputs(trace: Trace, block: int, position: int) -> np.ndarray:
  """The heads' output at `position` from relation tokens alone: the part of attention that closes gates."""
  relation_L = trace.tokens_L >= trace.construction.facts.subjects
  return head_outputs(trace, block, position)[relation_L].sum(axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
  """For each of E entries, the nearest codeword c: the values are `scale`·c up to `error`.

  Kinds: 'empty' (all zero), 'exact', 'closed' (no value that a ReLU would let through), 'near'.
  """

  kind_E: np.ndarray
  symbol_E: np.ndarray
  scale_E: np.ndarray
  error_E: np.ndarray


def decode(
  values_ExM: ArrayLike, code: codes.Code, relations_ExM: ArrayLike | None = None
) -> Decoded:
  """Decode what entries hold.

  Values alone do not distinguish a closed entry from a word without positive coordinates. `relations_ExM`, what
  the relation tokens added there, does: it is negative where an entry was closed.
  """
  values = np.asarray(values_ExM, np.float32)
  symbol_E = _nearest(values, code)
  words = _words(code)[symbol_E]
  scale_E = np.ones(len(values), np.float32)
  if not code.has_levels:
    scale_E = np.sum(values * words, axis=1) / np.maximum(np.sum(words * words, axis=1), 1)
  error_E = np.max(np.abs(values - scale_E[:, None] * words), axis=1, initial=0)
  exact_E = (error_E == 0) & (scale_E > 0)
  empty_E = ~np.any(values, axis=1)
  closed_E = ~np.any(values > 0, axis=1)
  if relations_ExM is None:
    closed_E &= ~empty_E & ~(exact_E & (scale_E == 1))
  else:
    closed_E &= np.all(np.asarray(relations_ExM) < 0, axis=1)
  kinds = np.select([closed_E, empty_E, exact_E], ['closed', 'empty', 'exact'], 'near')
  return Decoded(kinds, symbol_E, scale_E, error_E)


@functools.lru_cache(maxsize=8)
def _words(code: codes.Code) -> np.ndarray:
  return code.words()


def _nearest(values_ExM, code: codes.Code) -> np.ndarray:
  """The word c with the largest ⟨v, c⟩, minus ½|c|² where words differ in norm."""
  words = _words(code)
  if type(code) is codes.Sign:
    symbol_E = (values_ExM > 0) @ (1 << np.arange(code.width))
  else:
    symbol_E = np.full(len(values_ExM), code.count)
  for e in np.flatnonzero(symbol_E >= code.count):  # one at a time: there can be a million words
    offset_A = np.sum(words * words, axis=1) / 2 if code.has_levels else 0
    symbol_E[e] = np.argmax(words @ values_ExM[e] - offset_A)
  return symbol_E


def symbol_name(facts: Facts, of: str, index: int) -> str:
  if of in (SUBJECT, RELATION, ATTRIBUTE):
    return getattr(facts, f'{of}_name')(index)
  return f'{of} {index + 1 if of == "hop" else index}'


def entry_label(facts: Facts, slot: Slot, entry: int) -> str:
  """An entry's label, such as `blocks[r2]`, `tree[r0 r1]` or `memory[s17, r2]`."""
  parts = []
  for (kind, size), i in zip(slot.axes, np.unravel_index(entry, slot.shape), strict=True):
    if kind == 'hop':  # numbered within one block, not within the query
      parts += [f"block's hop {i + 1}"] * (size > 1)
    elif kind != BRANCH:
      parts.append(symbol_name(facts, kind, int(i)))
    elif size > 1:
      hops = next(j for j in range(1, 63) if facts.relations**j >= size)
      path = queries.paths(facts.relations, hops, int(i))
      parts.append(' '.join(facts.relation_name(int(r)) for r in path))
  return f'{slot.name}[{", ".join(parts)}]' if parts else slot.name


def describe(
  facts: Facts, slot: Slot, values_ExM: np.ndarray, decoded: Decoded | None, entry: int
) -> str:
  """An entry's contents in words."""
  if decoded is None:
    return number(values_ExM[entry, 0], 4)
  kind, symbol = decoded.kind_E[entry], int(decoded.symbol_E[entry])
  name = symbol_name(facts, slot.of, symbol)
  if slot.of == OWN_ANSWER:  # relations with fewer answers leave some words without a meaning
    own = np.unique(facts.answers_RxN[entry])
    name = facts.attribute_name(own[symbol]) if symbol < len(own) else name
  if kind == 'empty' and symbol == 0 and slot.code and slot.code.has_levels:
    return f'{name} or empty'  # zero is a word too where words have levels
  if kind in ('empty', 'closed'):
    return str(kind)
  name += _times(decoded.scale_E[entry])
  return name if kind == 'exact' else f'≈ {name} ±{number(decoded.error_E[entry])}'


def changes(
  trace: Trace, values_D: np.ndarray, before_D: np.ndarray, relations_D: np.ndarray | None = None
) -> Iterator[tuple]:
  """Yield every slot, its values ExM, their decoding (None: plain numbers), which are new and which closed.

  Where a gate has closed some entries of a slot, the entries left open count as new too.
  """
  layout = trace.construction.layout
  for slot in layout.slots:
    if not slot.size:
      continue
    at, shape = layout[slot.name], (-1, slot.width)
    values = values_D[at].reshape(shape)
    relations = None if relations_D is None else relations_D[at].reshape(shape)
    if slot.of != ATTRIBUTE:  # gates close attributes only
      relations = np.zeros_like(values)
    decoded = decode(values, slot.code, relations) if slot.code else None
    new_E = np.any(values != before_D[at].reshape(shape), axis=1)
    closed_E = decoded.kind_E == 'closed' if decoded else np.zeros_like(new_E)
    if decoded and closed_E.any():
      new_E |= ~np.isin(decoded.kind_E, ('closed', 'empty'))
    yield slot, values, decoded, new_E & ~closed_E, closed_E


def unit_name(c: FactModel, block: int, layer: int, unit: int) -> str:
  """A hidden unit's name, such as `selected[r1] bit 2`, `memory[s17, r2]` or `detector = s3`."""
  if not c.hidden:
    return f'unit {unit}'
  for slot in c.hidden[block][layer].slots:
    if unit < slot.size:
      break
    unit -= slot.size
  entry, i = divmod(int(unit), slot.width)
  label = entry_label(c.facts, slot, entry)
  if slot.code is None:
    return label
  if isinstance(slot.code, codes.OneHot):
    return f'{label} = {symbol_name(c.facts, slot.of, i)}'
  return f'{label} {"bit" if isinstance(slot.code, codes.Bits) else "coordinate"} {i}'


def idle(trace: Trace, block: int, layer: int, position: int) -> str:
  """The text for a hidden layer in which no unit fires."""
  seen = trace.blocks[block]
  written = np.any(seen.written_LxD[position] != seen.read_LxD[position])
  last = layer == len(seen.hidden) - 1
  return 'none: the bias alone writes' if last and written else 'none'


def number(value: float, digits: int = 2, gap: float = 0) -> str:
  """Format with enough decimals to show `digits` digits of the value, or of its gap to another value."""
  value, size = float(value), abs(float(gap or value))
  if not math.isfinite(size) or not (gap or 1e-4 <= size < 1e6):
    return f'{value:.{digits}g}'
  decimals = max(0, digits - 1 - math.floor(math.log10(size)))
  text = f'{round(value, decimals) + 0:.{decimals}f}'  # + 0: no negative zero
  return text.rstrip('0').rstrip('.') if decimals else text


def lines(trace: Trace) -> list[str]:
  """The trace as lines for a terminal."""
  return [line for label, items in rows(trace) for line in _row(label, items)]


def rows(trace: Trace) -> Iterator[tuple[str, list[str]]]:
  """Yield labels and items: what each token holds, then block by block what happens at each answer position."""
  c = trace.construction
  yield f'{c.name} in {trace.dtype}', []
  for p in range(len(trace.tokens_L)):
    held = _changed(trace, trace.embedded_LxD[p], np.zeros(c.config.dim, np.float32))
    yield f'token {p}: {trace.token(p)}', held
  for p in trace.positions:
    yield '', []
    yield f'at position {p} ({trace.token(p)})', []
    for i in range(len(trace.blocks)):
      yield from _block_rows(trace, i, p)
    best = trace.top(p)
    margin = best[0][1] - best[1][1]
    yield 'logits', [f'{name} {number(logit, 4, margin)}' for name, logit in best]
    yield 'answer', [f'{best[0][0]}, by a margin of {number(margin, 4)}']


def _block_rows(trace: Trace, i: int, p: int) -> Iterator[tuple[str, list[str]]]:
  block, read_D = trace.blocks[i], trace.blocks[i].read_LxD[p]
  yield f'block {i + 1}', []
  for h, weights_L in enumerate(block.attention_HxLxL[:, p]):
    seen = [q for q in np.argsort(-weights_L, kind='stable') if weights_L[q] > 0]
    yield f'  head {h + 1} reads', [f'{trace.token(q)}@{q} {number(weights_L[q], 3)}' for q in seen]
  held = _changed(trace, read_D, trace.before(i)[p], relation_outputs(trace, i, p))
  yield '  after attention', held
  for j, hidden_LxF in enumerate(block.hidden):
    fired = np.flatnonzero(hidden_LxF[p])
    names = [
      f'{unit_name(trace.construction, i, j, u)}{_times(hidden_LxF[p, u])}' for u in fired[:SHOWN]
    ]
    names = names or [idle(trace, i, j, p)]
    count = f'{len(fired):,} of {hidden_LxF.shape[1]:,}'
    yield '  units firing', [count, *names, *_more(len(fired))]
  if block.hidden:
    yield '  after MLP', _changed(trace, block.written_LxD[p], read_D, np.zeros_like(read_D))


def _changed(trace: Trace, values_D, before_D, relations_D=None) -> list[str]:
  """The new and the closed entries, in words."""
  facts, held, closed = trace.construction.facts, [], []
  for slot, values, decoded, new_E, closed_E in changes(trace, values_D, before_D, relations_D):
    closed += [entry_label(facts, slot, int(e)) for e in np.flatnonzero(closed_E)]
    new = np.flatnonzero(new_E)
    if decoded is None and len(values) > 1 and len(new):
      norm = number(float(np.linalg.norm(values)), 3)
      held.append(f'{slot.name} = {len(values):,} numbers of norm {norm}')
      continue
    for e in new[:SHOWN]:
      words = describe(facts, slot, values, decoded, e)
      held.append(f'{entry_label(facts, slot, e)} {"" if words.startswith("≈ ") else "= "}{words}')
    held += _more(len(new))
  shut = [f'closed: {closed[0]}', *closed[1:SHOWN], *_more(len(closed))] if closed else []
  return [*held, *shut] or ['nothing new']


def _times(factor: float) -> str:
  return f' ×{number(factor, 3)}'.removesuffix(' ×1')


def _more(count: int) -> list[str]:
  return [f'… {count - SHOWN:,} more'] if count > SHOWN else []


def _row(label: str, items: list[str]) -> list[str]:
  """The items side by side, with no item broken across lines."""
  text = '; '.join(item.replace(' ', '\xa0') for item in items)
  wrap = textwrap.TextWrapper(COLUMNS, f'{label:<19} ', ' ' * 20, break_on_hyphens=False).wrap
  return [row.replace('\xa0', ' ') for row in wrap(text)] or [label]
