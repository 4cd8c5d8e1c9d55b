"""A trace as a picture: the residual stream row by row, what heads move, which units fire.

Columns are the residual's coordinates, the same in all rows, so that a block can be followed down
the page. Lengths are in inches; y grows downwards.
"""

import collections
import itertools
import sys
import unicodedata
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.harness import plotting
from experiments.harness.plotting import BLACK, BLUE, GREY, ORANGE, STYLE
from experiments.web.entries import entries, label, stages
from geomem.inside import trace as tracing
from geomem.inside.trace import Trace

WIDTH, LEFT, RIGHT = 7.2, 1.35, 6.25
CELL, HEIGHT, ROW, SLOT_GAP, ENTRY_GAP = 0.52, 0.24, 0.6, 0.12, 0.05
MAX_CELLS, MAX_UNITS, MAX_EDGES, SIZE = 60, 160, 48, 7
GREEN, PURPLE, LIGHT, HATCH = '#007F5F', '#A8508A', '#BDBDBD', '/////'
COLORS = {'held': BLACK, 'new': GREEN, 'open': GREEN, 'closed': GREY, 'unchanged': BLACK}
VALUES = LinearSegmentedColormap.from_list('values', [BLUE, '#FFFFFF', ORANGE])
FONTS = (  # a character is drawn in the first installed font that has it
  'DejaVu Sans', 'Noto Sans', 'Noto Sans CJK JP', 'Noto Sans CJK SC', 'WenQuanYi Zen Hei', 'Unifont',
  'Droid Sans Fallback', 'Hiragino Sans', 'PingFang SC', 'Microsoft YaHei', 'Malgun Gothic', 'Arial Unicode MS',
)  # fmt: skip


def draw(trace: Trace, path: Path) -> None:
  """Draw `trace` to a .png, .pdf or .svg file, with the same bytes every time."""
  installed = set(font_manager.get_font_names())
  style = {'font.family': [font for font in FONTS if font in installed], 'font.size': SIZE}
  style['text.parse_math'] = False  # a $ in a user's name does not start a formula
  with matplotlib.rc_context(STYLE | style), warnings.catch_warnings(record=True) as missing:
    warnings.filterwarnings('always', 'Glyph')
    plotting.save(Picture(trace).figure, path.with_suffix(''), [path.suffix])
  if any('Glyph' in str(warning.message) for warning in missing):
    print(f'{path}: no font here has some of the characters; they are boxes', file=sys.stderr)


class Picture:
  """Draws from top to bottom; `y` is where the drawing ends so far.

  An end of an edge is its coordinates, the x and y of its top, its height, and whether anything is new there.
  """

  def __init__(self, trace: Trace):
    self.trace, c, self.y, self.figure = trace, trace.construction, 0.0, Figure(dpi=200)
    self.ax = self.figure.add_axes((0, 0, 1, 1), frameon=False, xticks=(), yticks=())
    self.entries = entries(c.facts, c.layout)
    query = tracing.join_names([trace.token(p) for p in range(c.hops + 1)])
    steps = ' → '.join(trace.top(p)[0][0] for p in trace.positions)
    name = f'{c.name}, d = {c.config.dim}'
    title = _fit(f'{query} → {steps}', WIDTH - 0.5 - _length(name), 12)  # 12: bold is wider
    self._text(0.12, 0.2, title, ha='left', size=10, weight='bold')
    self._text(WIDTH - 0.12, 0.2, name, GREY, ha='right')
    self.y = 0.4
    self.stream_y = 0.0
    for step, p in enumerate(trace.positions, 1):
      if len(trace.positions) > 1:
        self._text(0.12, 0.1, f'Step {step}', ha='left', weight='bold')
      self._step(p)
    self._legend()
    self.ax.set(xlim=(0, WIDTH), ylim=(self.y, 0))
    self.figure.set_size_inches(WIDTH, self.y)

  def _text(self, x: float, down: float, text: str, color=BLACK, **style):
    style = {'color': color, 'va': 'center', 'ha': 'center', **style}
    self.ax.text(x, self.y + down, text, **style)

  def _box(self, x: float, down: float, width: float, height: float, **style):
    self.ax.add_patch(Rectangle((x, self.y + down), width, height, **style))

  def _title(self, title: str, caption: str):
    self._text(LEFT - 0.2, 0.07, _fit(title, LEFT - 0.3, 8), ha='right', size=8)
    self._text(LEFT - 0.2, 0.21, _fit(caption, LEFT - 0.25), GREY, ha='right')

  def _step(self, p: int):
    """Draw one answer position: embeddings of the tokens that any head attends to there, blocks, logits."""
    self.p, blocks, c = p, self.trace.blocks, self.trace.construction
    self.top = max(float(np.abs(block.written_LxD[p]).max()) for block in blocks)
    self.closed_D, self.token_y = np.zeros(c.config.dim, bool), {}
    self._place_entries()
    self._header()
    weights_L = sum(block.attention_HxLxL[:, p].sum(axis=0) for block in blocks)
    for q in sorted({p, *np.flatnonzero(weights_L > 0.01).tolist()}):
      self.token_y[q], embedded_D = self.y, self.trace.embedded_LxD[q]
      self._row(self.trace.token(q), f'embedding, token {q}', embedded_D, np.zeros_like(embedded_D))
    for i in range(len(blocks)):
      self._block(i)
    self._logits()

  def _place_entries(self):
    """Choose the entries to show (if there are many, those that change here), and place every coordinate."""
    blocks, self.shown, gaps = range(len(self.trace.blocks)), {}, []
    rows = [label(self.trace, *stage) for i in blocks for stage in stages(self.trace, i, self.p)]
    new = [any(state == 'new' for _, state in own) for own in zip(*rows, strict=True)]
    for slot, group in itertools.groupby(range(len(new)), lambda i: self.entries[i].slot):
      some = sorted(group, key=lambda i: not new[i])[: max(8, MAX_CELLS // slot.width)]
      gaps += [SLOT_GAP] + [ENTRY_GAP] * (len(some) - 1)
      for i in sorted(some):
        at = self.entries[i].at
        self.shown[i] = at if slot.code else slice(at.start, min(at.stop, at.start + MAX_CELLS))
    self.index = np.concatenate([np.r_[at] for at in self.shown.values()])
    self.cell = min(CELL, (RIGHT - LEFT - sum(gaps[1:])) / len(self.index))
    self.x_D, self.right = np.full(len(self.closed_D), np.nan), LEFT - SLOT_GAP
    for at, gap in zip(self.shown.values(), gaps, strict=True):
      self.x_D[at] = self.right + gap + self.cell * np.arange(at.stop - at.start)
      self.right = self.x_D[at.stop - 1] + self.cell
    self.channel = self.right + 0.6

  def _span(self, i: int) -> tuple[float, float]:
    """Left edge and width of an entry."""
    x_M = self.x_D[self.shown[i]]
    return x_M[0], len(x_M) * self.cell

  def _header(self):
    """Draw the names of entries, and of slots above them; vertically where they would not fit."""
    height = lambda text, room: 0.1 if _length(text) <= room + SLOT_GAP else _length(text)
    labels = []
    for slot, some in itertools.groupby(self.shown, lambda i: self.entries[i].slot):
      group, named = [*some], False
      left, (last, width) = self._span(group[0])[0], self._span(group[-1])
      right = last + width
      for i in group:
        x, width = self._span(i)
        if name := _fit(self.entries[i].name, max(width, 1)):
          labels.append((name, x + width / 2, height(name, width), GREY, False))
          named = True
      more = (
        slot.size - sum(self.shown[i].stop - self.shown[i].start for i in group)
      ) // slot.width
      title = f'{slot.name} (and {more:,} more)' if more else slot.name
      labels.append((title, (left + right) / 2, height(title, right - left), BLACK, named))
    above = max(tall + 0.05 if color == GREY else 0 for _, _, tall, color, _ in labels)
    self.y += max(tall + above * up for _, _, tall, _, up in labels) + 0.1
    for name, x, tall, color, up in labels:
      style = {'rotation': 90 if tall > 0.1 else 0, 'va': 'bottom'}
      self._text(x, -0.05 - above * up, name, color, **style)

  def _row(self, title: str, caption: str, values_D, before_D, relations_D=None) -> list:
    """Draw the residual at one stage (without `relations_D`: an embedding), and name what is new; returns ends of edges."""
    ends, embedding = [], relations_D is None
    self._title(title, caption)
    if not embedding:  # the residual connection, from the row before
      ys = self.stream_y, self.y + HEIGHT / 2
      self.ax.plot([LEFT - 0.1] * 2, ys, '-o', color=LIGHT, lw=1.5, ms=7, markevery=[1])
      self._text(LEFT - 0.1, HEIGHT / 2, '+')
    self.stream_y = self.y + HEIGHT / 2
    labels = label(self.trace, values_D, before_D, relations_D)
    for i, at in self.shown.items():
      (x, width), (word, state), slot = self._span(i), labels[i], self.entries[i].slot
      new = state == 'new'
      if not embedding and state in ('new', 'closed'):
        self.closed_D[at] = not new
      word = _fit(word, width) if state != 'closed' or width > 0.3 else ''  # hatching shows it too
      weight = 'bold' if new else 'normal'
      self._text(x + width / 2, HEIGHT + 0.09, word, COLORS[state], weight=weight)
      if slot.code and new:
        self._box(x, 0, width, HEIGHT, fill=False, ec=GREEN, lw=1.6, zorder=4)
      useful = (slot.code or slot.axes) and not self.closed_D[at.start]
      if useful and (new or values_D[at].any()):
        ends.append((at, x + width / 2, self.y, HEIGHT + 0.16 * bool(word), new))
    self._cells(values_D)
    self.y += ROW
    return ends

  def _cells(self, values_D):
    """Draw coordinates as colours, and as numbers too if all of them fit."""
    roomy = self.cell > 0.2 and all(_length(_number(v)) <= self.cell for v in values_D[self.index])
    for i in self.index:
      x, value, closed = self.x_D[i], values_D[i], self.closed_D[i]
      shade = np.sign(value) * np.sqrt(abs(value) / max(self.top, abs(value), 1e-9))
      fill, hatch = (*VALUES(0.5 + 0.5 * shade)[:3], 0.35 if closed else 1), HATCH * bool(closed)
      self._box(x, 0, self.cell, HEIGHT, fc=fill, ec=LIGHT, lw=0.4, hatch=hatch or None)
      if roomy:
        color = LIGHT if value == 0 else GREY if closed else 'white' if shade < -0.9 else BLACK
        self._text(x + self.cell / 2, HEIGHT / 2, _number(value), color)

  def _block(self, i: int):
    """Draw attention, the units that fire, and what the MLP writes."""
    block, (after_attention, after_mlp) = self.trace.blocks[i], stages(self.trace, i, self.p)
    name = f'block {i + 1}' if len(self.trace.blocks) > 1 else ''
    self._attention(block.attention_HxLxL[:, self.p])
    mixture = name or self._mixture(block.read_LxD[self.p])
    ends = self._row('after attention', mixture, *after_attention)
    if block.hidden:
      mlp = self.trace.construction.params[f'blocks_{i}']['mlp']
      weights = [mlp[layer] for layer in ('in', 'middle', 'out') if layer in mlp]
      for j, hidden_LxF in enumerate(block.hidden):
        sources, ends = ends, self._hidden(i, j, hidden_LxF[self.p], weights[j])
        self._edges(sources, ends, weights[j])
      written = self._row('after MLP', name, *after_mlp)
      self._edges(ends, [end for end in written if end[4]], weights[-1])

  def _attention(self, weights_HxL):
    """Draw a line from each attended token to the next row."""
    for q, y in self.token_y.items():
      heads = np.flatnonzero(weights_HxL[:, q] > 0.01)
      if heads.size:
        left, text = self.right + 0.05, _heads(heads, weights_HxL[heads, q])
        box, up = {'fc': 'white', 'lw': 0, 'pad': 0}, y + HEIGHT / 2
        self._text(left, up - self.y - 0.03, text, PURPLE, ha='left', va='bottom', bbox=box)
        xs = left, self.channel, self.channel, left + 0.03
        ys = up, up, self.y + HEIGHT / 2, self.y + HEIGHT / 2
        self.ax.plot(xs, ys, color=PURPLE, lw=1, marker='<', ms=4, markevery=[3])
        self.channel += 0.07
        self.token_y[q] += 0.2  # room for the next block's line

  def _mixture(self, read_D) -> str:
    """`= s2 + 2 r1` if the row is such a sum of the embeddings above, as in a selector."""
    own_LxD = self.trace.embedded_LxD[: self.p + 1]
    factor_L = np.linalg.lstsq(own_LxD.T, read_D)[0]
    if not np.allclose(factor_L @ own_LxD, read_D, atol=1e-4):
      return ''
    names = (f'{_number(f)} {self.trace.token(q)}' for q, f in enumerate(factor_L) if abs(f) > 1e-4)
    return '= ' + ' + '.join(name.removeprefix('1 ') for name in names)

  def _edges(self, sources, targets, weight):
    """Draw an arrow for every pair that a weight connects, unless there are too many."""
    style = {'arrowstyle': '-|>', 'mutation_scale': 6, 'lw': 0.7, 'shrinkA': 0, 'shrinkB': 0}
    pairs = [(s, t) for s in sources for t in targets if np.any(weight[s[0], t[0]])]
    for (_, x0, y0, height, _), (_, x1, y1, _, _) in pairs if len(pairs) <= MAX_EDGES else ():
      self.ax.annotate('', (x1, y1), (x0, y0 + height), arrowprops={**style, 'color': GREEN})

  def _hidden(self, i: int, j: int, values_F, weight) -> list:
    """Draw a hidden layer as a strip, right under the slot that it copies, if any, and name what fires; returns ends of edges."""
    fired, width = np.flatnonzero(values_F), self.right - LEFT
    units = np.arange(len(values_F)) if len(values_F) <= MAX_UNITS else fired[:MAX_EDGES]
    cell, x_F = min(self.cell, width / max(1, len(units))), np.full(len(values_F), np.nan)
    x_F[units] = (LEFT + self.right) / 2 + cell * (np.arange(len(units)) - len(units) / 2)
    layout = self.trace.construction.layout
    for at in [layout[slot.name] for slot in layout.slots] if j == 0 else ():
      if np.array_equal(weight[at], np.eye(len(values_F))):
        cell, x_F = self.cell, self.x_D[at]
    self._title('units firing', f'{len(fired):,} of {len(values_F):,}')
    shown = np.flatnonzero(~np.isnan(x_F))
    for u in shown:
      self._box(x_F[u], 0, cell, 0.18, fc=GREEN if values_F[u] > 0 else 'white', ec=LIGHT, lw=0.4)
    names = [tracing.unit_name(self.trace.construction, i, j, u) for u in fired[: tracing.SHOWN]]
    text = _fit(', '.join(names) or tracing.idle(self.trace, i, j, self.p), width)
    fired, half = np.intersect1d(fired, shown), _length(text) / 2
    middle = np.mean(x_F[fired if len(fired) else shown]) + cell / 2 if len(shown) else LEFT
    self._text(max(min(middle, self.right - half), LEFT + half), 0.27, text, GREEN)
    self.y += ROW
    return [(slice(u, u + 1), x_F[u] + cell / 2, self.y - ROW, 0.34, True) for u in fired]

  def _logits(self):
    best = self.trace.top(self.p)
    margin, low = best[0][1] - best[1][1], min(0, best[-1][1])
    self._title('logits', f'margin {_number(margin)}')
    scale = 3.2 / max(best[0][1] - low, 1e-9)
    zero = LEFT + 0.75 - low * scale
    for i, (name, logit) in enumerate(best):
      style = {} if i else {'color': GREEN, 'weight': 'bold'}
      self._box(zero, 0, logit * scale, 0.11, fc=LIGHT if i else GREEN)
      self._text(LEFT + 0.65, 0.055, _fit(name, 0.7), ha='right', **style)
      x = zero + max(0, logit * scale) + 0.05
      self._text(x, 0.055, _number(logit, margin), ha='left', **style)
      self.y += 0.15
    self.y += 0.2

  def _legend(self):
    """Explain the colours."""
    x = 0.12
    styles: dict[str, dict] = {
      'negative': {'fc': BLUE},
      'positive': {'fc': ORANGE},
      'closed: a ReLU lets nothing through': {'fc': 'white', 'ec': LIGHT, 'hatch': HATCH},
      'new, or left open': {'fc': 'white', 'ec': GREEN, 'lw': 1.4},
    }
    for text, style in styles.items():
      self._box(x, 0.04, 0.14, 0.12, **style)
      self._text(x + 0.2, 0.1, text, GREY, ha='left')
      x += 0.4 + _length(text)
    self.y += 0.26


def _length(text: str, size: float = SIZE) -> float:
  """The approximate width of a text in inches; Chinese, Japanese and Korean are more than twice as wide."""
  wide = 1.2 * sum(unicodedata.east_asian_width(letter) in 'WF' for letter in text)
  return (len(text) + wide) * size * 0.55 / 72


def _fit(text: str, width: float, size: float = SIZE) -> str:
  """As much of a text as fits into a width."""
  short = text.split(' ×')[0]
  parts = [text, short, *(f'{short[:n]}…' for n in range(len(short) - 1, 0, -1))]
  return next((s for s in parts if _length(s, size) <= width + ENTRY_GAP), '…' if text else '')


def _heads(heads, weights) -> str:
  """`head 2`; `heads 1–3, 5: ½` if the weight is not 1; one line per weight."""
  groups, lines = collections.defaultdict(list), []
  for head, weight in zip(heads.tolist(), map(_number, weights), strict=True):
    groups[weight].append(head + 1)
  for weight, group in [*groups.items()][:4]:
    runs = np.split(group, np.flatnonzero(np.diff(group) > 1) + 1)
    names = ', '.join(f'{run[0]}–{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs)
    text = f'head{"s" * (len(group) > 1)} {names}: {weight}'
    lines.append(_fit(text.removesuffix(': 1') if len(groups) == 1 else text, WIDTH - RIGHT))
  return '\n'.join(lines)


def _number(value: float, gap: float = 0) -> str:
  text = '½' if abs(value) == 0.5 else tracing.number(abs(value), gap=gap)
  return f'−{text}' if value < 0 else text
