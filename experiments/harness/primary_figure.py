"""One figure of all primary outcomes: each with its interval, its bounds, and the controls that might have reached it."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.harness import plotting
from experiments.harness.findings import Finding

ROW = 0.17  # inches


def primary_outcomes(claims: Mapping[str, Sequence[Finding]]) -> Figure:
  """A panel for each claim that has primary outcomes: the range within the bounds is shaded, values outside are orange."""
  claims = {name: [f for f in own if f.primary] for name, own in claims.items()}
  claims = {name: own for name, own in claims.items() if own}
  if not claims:
    return plotting.new()[0]
  rows = [len(own) + 2 for own in claims.values()]
  figure, axes = plotting.new(
    9, ROW * sum(rows) + 0.8, len(rows), squeeze=False, height_ratios=rows
  )
  names = dict.fromkeys(name for own in claims.values() for f in own for name in f.controls)
  marks = dict(zip(names, itertools.cycle(plotting.MARKERS), strict=False))
  for ax, (name, own) in zip(axes[:, 0], claims.items(), strict=True):
    shared = shared_start([f.what for f in own])
    _panel(ax, own, shared, marks)
    ax.set_title(f'{name}, {shared}'.rstrip(' ,'), loc='left', fontsize=8)
  handles = [
    Line2D(
      [],
      [],
      marker=mark,
      color=plotting.GREY,
      mfc='none',
      markersize=3.5,
      linestyle='',
      label=control,
    )
    for control, mark in marks.items()
  ]
  if handles:
    figure.legend(
      handles=handles, loc='outside lower center', ncols=5, title='controls', title_fontsize=7
    )
  return figure


def _panel(ax, own: Sequence[Finding], shared: str, marks: Mapping[str, str]):
  """A row for each finding; what all of them begin with is left out."""
  ends = [0.0, 1.0]
  for f in own:
    ends += [f.value, f.low, f.high, *f.controls.values(), f.at_least or 0, f.at_most or 0]
  ends = [end for end in ends if np.isfinite(end)]
  margin = 0.04 * (max(ends) - min(ends))
  left, right = min(ends) - margin, max(ends) + margin
  for y, f in enumerate(own):
    value = np.nan_to_num(
      f.value, nan=right, posinf=right
    )  # what is unknown or beyond all is at the edge
    interval = [end if np.isfinite(end) else value for end in (f.low, f.high)]
    for control, reached in f.controls.items():
      ax.plot(reached, y, marks[control], color=plotting.GREY, mfc='none', markersize=3.5, zorder=3)
    color = plotting.BLUE if f.holds else plotting.RED
    ax.plot(interval, [y, y], color=color)
    ax.plot(
      value, y, 'o' if np.isfinite(f.value) else '>', color=color, markersize=4, clip_on=False
    )
  ax.set(xlim=(left, right), ylim=(len(own) - 0.4, -0.6))
  for y, f in enumerate(own):
    start = left if f.at_least is None else f.at_least
    end = right if f.at_most is None else f.at_most
    ax.barh(y, end - start, 0.8, start, color=plotting.GREEN, alpha=0.18, linewidth=0, zorder=0)
    for bound in (f.at_least, f.at_most):
      if bound is not None:
        ax.plot([bound, bound], [y - 0.4, y + 0.4], color=plotting.GREEN, linewidth=1, zorder=1)
  ax.set_yticks(range(len(own)), [f.what.removeprefix(shared) for f in own], fontsize=6)
  ax.tick_params(axis='x', labelsize=6)
  ax.grid(axis='y', visible=False)


def shared_start(texts: Sequence[str]) -> str:
  """What all texts begin with, up to a comma; nothing if there is only one text."""
  start = os.path.commonprefix(list(texts)) if len(texts) > 1 else ''
  return start[: start.rfind(', ') + 2] if ', ' in start else ''
