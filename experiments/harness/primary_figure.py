"""One figure of all primary outcomes: each with its interval, its bounds, and the controls that might have reached it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import plotting
from experiments.harness.findings import Finding

ROW = 0.17  # inches


def primary_outcomes(claims: Mapping[str, Sequence[Finding]]) -> Figure:
  """A panel for each claim that has primary outcomes: the range within the bounds is shaded, values outside are red."""
  claims = {name: [f for f in own if f.primary] for name, own in claims.items()}
  claims = {name: own for name, own in claims.items() if own}
  rows = [len(own) + 2 for own in claims.values()]
  figure, axes = plotting.new(
    9, ROW * sum(rows) + 0.4, len(rows), squeeze=False, height_ratios=rows
  )
  for ax, (name, own) in zip(axes[:, 0], claims.items(), strict=True):
    ends = [0.0, 1.0]
    for y, f in enumerate(own):
      interval = [f.value if np.isnan(end) else end for end in (f.low, f.high)]
      controls = list(f.controls.values())
      ends += [f.value, *interval, *controls, f.at_least or 0, f.at_most or 0]
      color = plotting.BLUE if f.holds else plotting.RED
      ax.plot(controls, [y] * len(controls), 'o', color=plotting.GREY, mfc='none', markersize=3)
      ax.plot(interval, [y, y], color=color)
      ax.plot(f.value, y, 'o', color=color, markersize=4)
    least, most = min(ends), max(ends)
    margin = 0.04 * (most - least)
    ax.set(xlim=(least - margin, most + margin), ylim=(len(own) - 0.4, -0.6))
    for y, f in enumerate(own):
      left, right = ax.get_xlim()
      start = left if f.at_least is None else f.at_least
      end = right if f.at_most is None else f.at_most
      ax.barh(y, end - start, 0.8, start, color=plotting.GREEN, alpha=0.18, linewidth=0, zorder=0)
    ax.set_yticks(range(len(own)), [f.what for f in own], fontsize=6)
    ax.tick_params(axis='x', labelsize=6)
    ax.grid(axis='y', visible=False)
    ax.set_title(name, loc='left', fontsize=8)
  return figure
