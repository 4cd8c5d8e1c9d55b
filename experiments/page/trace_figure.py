"""A trace as a picture: the residual stream row by row, what heads bring, which units fire.

Columns are the residual's coordinates, the same in all rows, so that a block can be followed down
the page. Lengths are inches, y grows downwards.
"""

import itertools
import sys
import unicodedata
import warnings

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.harness.plotting import BLACK, BLUE, GREY, ORANGE
from geomem.inside import trace as tracing
from geomem.inside.trace import Trace

WIDTH, LEFT, RIGHT = 7.2, 1.35, 6.25
CELL, HEIGHT, ROW, SLOT_GAP, ENTRY_GAP = 0.52, 0.24, 0.6, 0.12, 0.05
MAX_CELLS, MAX_UNITS, MAX_EDGES, SIZE = 60, 160, 48, 7
NEGATIVE, POSITIVE, FRESH, HEADS = BLUE, ORANGE, '#007F5F', '#A8508A'
LIGHT = '#BDBDBD'
# The first that is installed and has a character draws it.
FONTS = (
  *('DejaVu Sans', 'Noto Sans', 'Noto Sans CJK JP', 'Noto Sans CJK SC', 'Noto Sans CJK KR'),
  *('Source Han Sans', 'IPAexGothic', 'WenQuanYi Zen Hei', 'WenQuanYi Micro Hei', 'Unifont'),
  *('Droid Sans Fallback', 'Hiragino Sans', 'PingFang SC', 'Apple SD Gothic Neo', 'Yu Gothic'),
  *('Microsoft YaHei', 'Malgun Gothic', 'Arial Unicode MS'),
)
VALUES = LinearSegmentedColormap.from_list('values', [NEGATIVE, '#FFFFFF', POSITIVE])


def draw(trace: Trace, path) -> None:
  """Draw `trace` to a .png, .pdf or .svg file, the same bytes every time."""
  c, y, installed = trace.construction, 0.4, set(font_manager.get_font_names())
  style = {'svg.hashsalt': 'geomem', 'font.family': [f for f in FONTS if f in installed]}
  with matplotlib.rc_context(style), warnings.catch_warnings(record=True) as missing:
    warnings.filterwarnings('always', 'Glyph')
    figure = Figure(dpi=200)
    ax = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=(), yticks=())
    names = [trace.token(p) for p in range(c.hops + 1)]
    query = tracing.join_names(names)
    steps = ' → '.join(trace.top(p)[0][0] for p in trace.positions)
    name = f'{c.name}, d = {c.config.dim}'
    title = _fit(f'{query} → {steps}', WIDTH - 0.5 - _length(name), 12)  # 12: bold is wider
    _text(ax, 0.12, 0.2, title, size=10, weight='bold')
    _text(ax, WIDTH - 0.12, 0.2, name, color=GREY, ha='right')
    for step, p in enumerate(trace.positions):
      if len(trace.positions) > 1:
        _text(ax, 0.12, y + 0.1, f'Step {step + 1}', weight='bold')
      y = Panel(ax, trace, p, y).y
    y = _legend(ax, y)
    ax.set(xlim=(0, WIDTH), ylim=(y, 0))
    figure.set_size_inches(WIDTH, y)
    undated = {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}
    figure.savefig(path, metadata=undated.get(str(path)[-4:].lower()))
  if any('Glyph' in str(warning.message) for warning in missing):
    print(f'{path}: no font here has some of the characters; they are boxes', file=sys.stderr)


class Panel:
  """One answer position, drawn as it is made: tokens, residual, logits. `y` is then where it ends."""

  def __init__(self, ax, trace: Trace, position: int, y: float):
    self.ax, self.trace, self.position, self.y = ax, trace, position, y
    self.facts, self.layout = trace.construction.facts, trace.construction.layout
    self.top = max(float(np.abs(block.written_LxD[position]).max()) for block in trace.blocks)
    self.closed, self.token_y = set(), {}
    self._place()
    self._header()
    self._tokens()
    for i in range(len(trace.blocks)):
      self._block(i)
    self._logits()

  def _stages(self, i: int):
    """What the i-th block's attention changes, and what its MLP does."""
    block, p = self.trace.blocks[i], self.position
    read_D, before_D = block.read_LxD[p], self.trace.before(i)[p]
    yield tracing.changes(self.trace, read_D, before_D, tracing.relation_outputs(self.trace, i, p))
    yield tracing.changes(self.trace, block.written_LxD[p], read_D, np.zeros_like(read_D))

  def _place(self):
    """Which entries are shown (of many, those that matter here), and where each coordinate stands."""
    self.slots = [slot for slot in self.layout.slots if slot.size]
    matter = {slot.name: set() for slot in self.slots}
    for changes in itertools.chain(*map(self._stages, range(len(self.trace.blocks)))):
      for slot, _, _, new_E, _ in changes:
        matter[slot.name] |= set(np.flatnonzero(new_E).tolist())
    self.shown, index, gaps = {}, [], []
    for slot in self.slots:
      order = itertools.chain(sorted(matter[slot.name]), range(slot.size // slot.width))
      some = itertools.islice(dict.fromkeys(order), max(8, MAX_CELLS // slot.width))
      self.shown[slot.name] = sorted(some)
      for i, e in enumerate(self.shown[slot.name]):
        index += range(self.layout.dim)[self._at(slot, e)]
        gaps += [ENTRY_GAP * bool(slot.code) if i else SLOT_GAP] + [0] * (slot.width - 1)
    self.cell = min(CELL, (RIGHT - LEFT - sum(gaps[1:])) / len(index))
    self.x_D = np.full(self.layout.dim, np.nan)
    self.x_D[index] = LEFT - SLOT_GAP + np.cumsum(gaps) + self.cell * np.arange(len(index))
    self.right = self.x_D[index[-1]] + self.cell
    self.channel = self.right + 0.6

  def _at(self, slot, entry: int) -> slice:
    return self.layout[(slot.name, *np.unravel_index(entry, slot.shape))]

  def _span(self, slot, entry: int) -> tuple[float, float]:
    """An entry's left edge and width."""
    return self.x_D[self._at(slot, entry)][0], self.cell * slot.width

  def _header(self):
    """Names of entries, and of slots above them; upright where they would not fit."""
    labels = []
    for slot in self.slots:
      shown = self.shown[slot.name]
      spans = [self._span(slot, e) for e in shown]
      left, right, more = spans[0][0], sum(spans[-1]), slot.size // slot.width - len(shown)
      title = f'{slot.name} (and {more:,} more)' if more else slot.name
      names = [tracing.entry_label(self.facts, slot, e).removeprefix(slot.name) for e in shown]
      names = [_fit(name[1:-1], max(spans[0][1], 1)) for name in names if name and slot.code]
      labels.append((title, (left + right) / 2, right - left, bool(names), BLACK))
      for name, (x, width) in zip(names, spans, strict=False):
        labels.append((name, x + width / 2, width, False, GREY))
    tall = [t if (t := _length(label[0])) > label[2] + SLOT_GAP else 0.1 for label in labels]
    raised = max(t + 0.05 if label[4] == GREY else 0 for t, label in zip(tall, labels, strict=True))
    self.y += max(t + raised * label[3] for t, label in zip(tall, labels, strict=True)) + 0.1
    for t, (name, x, _, up, color) in zip(tall, labels, strict=True):
      style = {'rotation': 90 if t > 0.1 else 0, 'color': color, 'ha': 'center', 'va': 'bottom'}
      _text(self.ax, x, self.y - 0.05 - raised * up, name, **style)

  def _tokens(self):
    """The embeddings of the tokens that any head attends to here, and of the last one."""
    p, nothing = self.position, np.zeros(self.layout.dim, np.float32)
    weights_L = sum(block.attention_HxLxL[:, p].sum(axis=0) for block in self.trace.blocks)
    for q in sorted({p, *np.flatnonzero(weights_L > 0.01).tolist()}):
      self.token_y[q] = self.y
      held = tracing.changes(self.trace, self.trace.embedded_LxD[q], nothing)
      self._row(self.trace.token(q), f'embedding, token {q}', held, embedding=True)

  def _row(self, title: str, caption: str, changes, embedding: bool = False) -> list:
    """The residual at one stage; in words what is new. Returns its entries as ends of edges."""
    ends, changes = [], list(changes)
    self._title(title, caption)
    if not embedding:  # the residual connection, from the row before
      x, y = LEFT - 0.1, self.y + HEIGHT / 2
      self.ax.plot([x, x], [self.stream_y, y], '-o', color=LIGHT, lw=1.5, ms=7, markevery=[1])
      _text(self.ax, x, y, '+', ha='center')
    self.stream_y = self.y + HEIGHT / 2
    cells = itertools.chain(*(values[self.shown[slot.name]].flat for slot, values, *_ in changes))
    told = self.cell > 0.2 and all(_length(_number(v)) <= self.cell for v in cells)
    for slot, values, decoded, new_E, closed_E in changes:
      for e in self.shown[slot.name]:
        (x, width), key = self._span(slot, e), (slot.name, e)
        if not embedding and (closed_E[e] or new_E[e]):
          (self.closed.add if closed_E[e] else self.closed.discard)(key)
        self._cells(x, values[e], key in self.closed, told)
        word, style = '', {'color': FRESH}
        if closed_E[e]:
          word, style = 'closes' if embedding else 'closed', {'color': GREY}
          word *= width > 0.3  # the hatching says it too
        elif new_E[e] and decoded:
          word = tracing.describe(self.facts, slot, values, decoded, e).split(' ±')[0]
          word = _fit(word.removeprefix(f'{slot.of} '), width)
          style = {'color': BLACK} if embedding else {'color': FRESH, 'weight': 'bold'}
        elif embedding and closed_E.any():
          word = _fit('open', width)
        _text(self.ax, x + width / 2, self.y + HEIGHT + 0.09, word, ha='center', **style)
        if new_E[e] and decoded and not embedding:
          _box(self.ax, x, self.y, width, HEIGHT, fill=False, ec=FRESH, lw=1.6, zorder=4)
        if decoded and key not in self.closed and (new_E[e] or values[e].any()):
          height = HEIGHT + 0.16 * bool(word)
          ends.append((self._at(slot, e), x + width / 2, self.y, height, new_E[e]))
      if not decoded and slot.axes and values.any():  # plain numbers act together
        middle = (self._span(slot, self.shown[slot.name][0])[0] + x + width) / 2
        ends.append((self.layout[slot.name], middle, self.y, HEIGHT, new_E.any()))
    self.y += ROW
    return ends

  def _cells(self, x: float, values_M, faded: bool, told: bool):
    for i, value in enumerate(values_M):
      shade = np.sign(value) * np.sqrt(abs(value) / max(self.top, abs(value), 1e-9))
      fill = (*VALUES(0.5 + 0.5 * shade)[:3], 0.35 if faded else 1)
      style = {'fc': fill, 'ec': LIGHT, 'lw': 0.4, 'hatch': '/////' if faded else None}
      _box(self.ax, x + i * self.cell, self.y, self.cell, HEIGHT, **style)
      if told:
        color = LIGHT if value == 0 else GREY if faded else 'white' if shade < -0.9 else BLACK
        middle = x + (i + 0.5) * self.cell, self.y + HEIGHT / 2
        _text(self.ax, *middle, _number(value), color=color, ha='center')

  def _title(self, title: str, caption: str):
    _text(self.ax, LEFT - 0.2, self.y + 0.07, _fit(title, LEFT - 0.3, 8), size=8, ha='right')
    _text(self.ax, LEFT - 0.2, self.y + 0.21, _fit(caption, LEFT - 0.25), ha='right', color=GREY)

  def _block(self, i: int):
    """Attention, the units that fire, what the MLP writes."""
    block, p, (after_attention, after_mlp) = self.trace.blocks[i], self.position, self._stages(i)
    name = f'block {i + 1}' if len(self.trace.blocks) > 1 else ''
    self._attention(block.attention_HxLxL[:, p])
    ends = self._row('after attention', name or self._mixture(block.read_LxD[p]), after_attention)
    if not block.hidden:
      return
    mlp = self.trace.construction.params[f'blocks_{i}']['mlp']
    weights = [mlp[name] for name in ('in', 'middle', 'out') if name in mlp]
    for j, hidden_LxF in enumerate(block.hidden):
      sources, ends = ends, self._hidden(i, j, hidden_LxF[p], weights[j])
      self._edges(sources, ends, weights[j])
    written = self._row('after MLP', name, after_mlp)
    self._edges(ends, [end for end in written if end[4]], weights[-1])

  def _mixture(self, read_D) -> str:
    """`= s2 + 2 r1` if the row is such a sum of the embeddings above, as it is in a selector."""
    own_LxD = self.trace.embedded_LxD[: self.position + 1]
    factor_L = np.linalg.lstsq(own_LxD.T, read_D)[0]
    if not np.allclose(factor_L @ own_LxD, read_D, atol=1e-4):
      return ''
    names = (f'{_number(f)} {self.trace.token(q)}' for q, f in enumerate(factor_L) if abs(f) > 1e-4)
    return '= ' + ' + '.join(name.removeprefix('1 ') for name in names)

  def _edges(self, sources, targets, weight):
    """An arrow for every pair that a weight connects, unless they are a thicket."""
    pairs = [(s, t) for s in sources for t in targets if np.any(weight[s[0], t[0]])]
    for (_, x0, y0, down, _), (_, x1, y1, _, _) in pairs if len(pairs) <= MAX_EDGES else ():
      style = {'arrowstyle': '-|>', 'mutation_scale': 6, 'lw': 0.7, 'shrinkA': 0, 'shrinkB': 0}
      self.ax.annotate('', (x1, y1), (x0, y0 + down), arrowprops={**style, 'color': FRESH})

  def _hidden(self, i: int, j: int, values_F, weight) -> list:
    """The hidden layer as a strip, right under the slot that it copies if it does; what fires."""
    fired = np.flatnonzero(values_F)
    units = np.arange(len(values_F)) if len(values_F) <= MAX_UNITS else fired[:MAX_EDGES]
    cell = min(self.cell, (self.right - LEFT) / max(1, len(units)))
    x_F = np.full(len(values_F), np.nan)
    x_F[units] = (LEFT + self.right) / 2 + cell * (np.arange(len(units)) - len(units) / 2)
    for slot in self.slots if j == 0 else ():
      part = weight[self.layout[slot.name]]
      if part.shape[0] == part.shape[1] and np.array_equal(part, np.eye(len(part))):
        cell, x_F = self.cell, self.x_D[self.layout[slot.name]]
    self._title('units firing', f'{len(fired):,} of {len(values_F):,}')
    shown = np.flatnonzero(~np.isnan(x_F))
    for u in shown:
      style = {'fc': FRESH if values_F[u] > 0 else 'white', 'ec': LIGHT, 'lw': 0.4}
      _box(self.ax, x_F[u], self.y, cell, 0.18, **style)
    names = [tracing.unit_name(self.trace, i, j, u) for u in fired[: tracing.SHOWN]]
    text = ', '.join(names) or tracing.idle(self.trace, i, j, self.position)
    text = _fit(text, self.right - LEFT)
    fired = np.intersect1d(fired, shown)
    middle = np.mean(x_F[fired if len(fired) else shown]) + cell / 2 if len(shown) else LEFT
    x = max(min(middle, self.right - _length(text) / 2), LEFT + _length(text) / 2)
    _text(self.ax, x, self.y + 0.27, text, color=FRESH, ha='center')
    ends = [(slice(u, u + 1), x_F[u] + cell / 2, self.y, 0.34, True) for u in fired]
    self.y += ROW
    return ends

  def _attention(self, weights_HxL):
    """From each token that is read a line to the row that comes next."""
    for q in self.token_y:
      heads = np.flatnonzero(weights_HxL[:, q] > 0.01)
      if heads.size:
        y, target = self.token_y[q] + HEIGHT / 2, self.y + HEIGHT / 2
        left, bend = self.right + 0.05, self.channel
        style = {'va': 'bottom', 'color': HEADS, 'bbox': {'fc': 'white', 'lw': 0, 'pad': 0}}
        _text(self.ax, left, y - 0.03, _heads(heads, weights_HxL[heads, q]), **style)
        x, tip = [left, bend, bend, left + 0.03], {'marker': '<', 'ms': 4, 'markevery': [3]}
        self.ax.plot(x, [y, y, target, target], color=HEADS, lw=1, **tip)
        self.channel += 0.07
        self.token_y[q] += 0.2  # room for the next block's line

  def _logits(self):
    best = self.trace.top(self.position)
    margin = best[0][1] - best[1][1]
    self._title('logits', f'margin {_number(margin)}')
    low = min(0, best[-1][1])
    scale = 3.2 / max(best[0][1] - low, 1e-9)
    zero = LEFT + 0.75 - low * scale
    for i, (name, logit) in enumerate(best):
      y, style = self.y + 0.15 * i, {'color': BLACK} if i else {'color': FRESH, 'weight': 'bold'}
      _box(self.ax, zero, y, logit * scale, 0.11, fc=LIGHT if i else FRESH)
      _text(self.ax, LEFT + 0.65, y + 0.055, _fit(name, 0.7), ha='right', **style)
      x = zero + max(0, logit * scale) + 0.05
      _text(self.ax, x, y + 0.055, _number(logit, margin), **style)
    self.y += 0.15 * len(best) + 0.2


def _legend(ax, y: float) -> float:
  """What the colours mean."""
  x = 0.12
  for style, text in (
    ({'fc': NEGATIVE}, 'negative'),
    ({'fc': POSITIVE}, 'positive'),
    ({'fc': 'white', 'ec': LIGHT, 'hatch': '/////'}, 'closed: a ReLU lets nothing through'),
    ({'fc': 'white', 'ec': FRESH, 'lw': 1.4}, 'new, or left open'),
  ):
    _box(ax, x, y + 0.04, 0.14, 0.12, **style)
    _text(ax, x + 0.2, y + 0.1, text, color=GREY)
    x += 0.4 + _length(text)
  return y + 0.26


def _box(ax, x: float, y: float, width: float, height: float, **style):
  ax.add_patch(Rectangle((x, y), width, height, **style))


def _text(ax, x: float, y: float, text: str, **style):
  style = {'size': SIZE, 'va': 'center', 'ha': 'left', **style}
  ax.text(x, y, text, parse_math=False, **style)  # a $ in a user's name is no formula


def _length(text: str, size: float = SIZE) -> float:
  """About how many inches a text takes; Chinese, Japanese and Korean are more than twice as wide."""
  wide = 1.2 * sum(unicodedata.east_asian_width(letter) in 'WF' for letter in text)
  return (len(text) + wide) * size * 0.55 / 72


def _fit(text: str, width: float, size: float = SIZE) -> str:
  fits = lambda part: len(part) <= 1 or _length(part, size) <= width + ENTRY_GAP
  text = text if fits(text) else text.split(' ×')[0]
  if fits(text):
    return text
  return next(part for n in range(len(text), 0, -1) if fits(part := text[: n - 1] + '…'))


def _heads(heads, weights) -> str:
  """`head 2`; `heads 1–3, 5: ½` if the weight is not 1; a line for every weight."""
  groups = {}
  for h, weight in zip(heads, weights, strict=True):
    groups.setdefault(_number(weight), []).append(int(h) + 1)
  lines = []
  for weight, group in itertools.islice(groups.items(), 4):
    runs = itertools.groupby(enumerate(group), lambda pair: pair[1] - pair[0])
    runs = [[h for _, h in run] for _, run in runs]
    names = ', '.join(f'{run[0]}–{run[-1]}' if run[1:] else str(run[0]) for run in runs)
    text = f'head{"s" * (len(group) > 1)} {names}: {weight}'
    lines.append(_fit(text if groups.keys() != {'1'} else text.removesuffix(': 1'), WIDTH - RIGHT))
  return '\n'.join(lines)


def _number(value: float, gap: float = 0) -> str:
  text = '½' if abs(value) == 0.5 else tracing.number(abs(value), gap=gap)
  return f'−{text}' if value < 0 else text
