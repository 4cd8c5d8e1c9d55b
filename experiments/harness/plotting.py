"""Figure style: colours that colour-blind readers can tell apart and that survive printing, consistent font sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from experiments.harness import statistics

# Okabe and Ito.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
  '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7',
)  # fmt: skip
WIDE = 1e4  # a range of this many times its start
GREY = '#6B6B6B'
KINDS = '.png', '.pdf'
UNDATED: dict[str, Any] = {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}
MARKERS = 'osD^v<>P*Xph'
STYLE: Any = {  # for the figures of all studies; other code draws under matplotlib.rc_context(plotting.STYLE)
  'font.family': 'DejaVu Sans', 'font.size': 8, 'axes.titlesize': 9, 'legend.fontsize': 7,
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.25,
  'grid.linewidth': 0.5, 'lines.linewidth': 1.4, 'lines.markersize': 6, 'legend.frameon': False,
  'svg.hashsalt': 'geomem',
}  # fmt: skip


def new(width: float = 4.8, height: float = 3.2, rows: int = 1, columns: int = 1, **options):
  """A figure and its axes, without pyplot's global state."""
  figure = Figure(figsize=(width, height), dpi=200, layout='constrained')
  return figure, figure.subplots(rows, columns, **options)


def cycle(i: int) -> tuple[str, str]:
  """Colour and marker of the i-th series; the first 77 are all different."""
  colors = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)
  return colors[i % len(colors)], MARKERS[i % len(MARKERS)]


def draw_seeds(ax, rows, x: str, i: int, label: str | None = None, **options):
  """Draw the i-th series against a column: a mark for every seed, and a line through their means."""
  color, marker = cycle(i)
  ax.plot(rows[x], rows['value'], marker, color=color, alpha=0.4, markersize=3, markeredgewidth=0)
  means = statistics.summarize(rows, x)
  options = {'color': color, 'marker': marker, 'markersize': 4, **options}
  ax.plot(means[x], means['value'], label=label, **options)


def logarithmic(*axes):
  """Use a log scale on x or y axes, with ticks such as 10k, 20k, 50k, or at powers of ten alone if the range is wide."""
  for axis in axes:
    axis.axes.set(**{f'{axis.axis_name}scale': 'log'})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < WIDE * low else (1,)))
    axis.set_major_formatter(EngFormatter(sep=''))
    axis.set_minor_formatter(NullFormatter())


def legend(ax, below: float | None = None, **options):
  """A small legend, if there is anything to label; or one that is this many heights of the panel below it."""
  if below is not None:
    options = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -below), 'fontsize': 5, **options}
  if ax.get_legend_handles_labels()[0]:
    ax.legend(**{'fontsize': 6, **options})


def legend_beside(ax):
  ax.legend(loc='center left', bbox_to_anchor=(1.01, 0.5))


def save(figure: Figure, stem: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
  """Save STEM.png and STEM.pdf, or the kinds given, with the same bytes every time."""
  paths = [Path(f'{stem}{kind}') for kind in kinds]
  for path in paths:
    figure.savefig(path, metadata=UNDATED.get(path.suffix.lower()))
  return paths
