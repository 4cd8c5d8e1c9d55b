"""Draw what was found in a language model: R² by depth, swaps, where facts leave, linear predictions."""

import matplotlib
import pandas as pd

from experiments.figures import drawing

FEATURES = ('own token + attributes', 'own token', 'attribute embeddings', 'attributes')
METHODS = (
  'superposition', 'embedding maps', 'class means', 'relational embedding',
  "donor's whole vector", 'shuffled facts', 'random direction',
)  # fmt: skip


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Four panels of the first table; bands and bars are bootstrap intervals over subjects, averaged."""
  data = pd.DataFrame(records)
  data = data[data['table'] == data['table'].iloc[0]]
  of = lambda *names: data[data['measurement'].isin(names)]
  figure, panels = drawing.new(12.4, 3.1, 1, 4)
  _r2(panels[0], of('R2'))
  _swaps(panels[1], of('flipped', 'kept'))
  _depth(panels[2], of('donor answer'))
  _faithful(panels[3], of('faithful'))
  return drawing.save(figure, folder / 'language_model')


def _line(ax, data: pd.DataFrame, i: int, label: str, **options):
  """Means over templates and seeds by layer, in a band of their mean intervals."""
  mean = data.groupby('layer')[['value', 'low', 'high']].mean()
  color = options.pop('color', drawing.cycle(i)[0])
  ax.plot(mean.index, mean['value'], color=color, label=label, **options)
  ax.fill_between(mean.index, mean['low'], mean['high'], color=color, alpha=0.15, linewidth=0)


def _r2(ax, data: pd.DataFrame):
  for i, name in enumerate(FEATURES):
    _line(ax, data[(data['features'] == name) & data['control'].isna()], i, name)
  shuffled = data[(data['features'] == 'attributes') & (data['control'] == 'shuffled facts')]
  _line(ax, shuffled, 0, 'attributes, shuffled', color=drawing.GREY, linestyle=':')
  ax.set(xlabel='after block', ylabel='$R^2$ on held-out subjects', title='what explains a subject')
  drawing.legend(ax)


def _swaps(ax, data: pd.DataFrame):
  """Every method a curve over its alphas or ranks; the one chosen beforehand is filled."""
  data = data[data['relation'].isna()].fillna({'alpha': 0, 'rank': 0})
  for i, method in enumerate(METHODS):
    color, marker = drawing.cycle(i)
    own = data[data['control'] == method]
    if own.empty:
      continue
    curve = own.groupby(['alpha', 'rank', 'measurement'])['value'].mean().unstack()
    ax.plot(curve['flipped'], curve['kept'], marker, linestyle='-', color=color, markersize=4,
            markerfacecolor='white', linewidth=0.8)  # fmt: skip
    chosen = own[own['chosen'].astype(bool)].groupby('measurement')['value'].mean()
    ax.plot(chosen['flipped'], chosen['kept'], marker, color=color, label=method)
  ax.set(
    xlabel='answers flipped as wanted', ylabel='other answers kept', title='swapping one attribute'
  )
  ax.set(xlim=(-0.03, 1.8), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1))  # beside them the legend
  drawing.legend(ax, loc='upper right')


def _depth(ax, data: pd.DataFrame):
  for i, (relation, rows) in enumerate(data.groupby('relation', sort=False)):
    _line(ax, rows, i, relation, marker=drawing.cycle(i)[1], markersize=3)
  ax.set(
    xlabel="donor's vector put in after block",
    ylabel="gives the donor's answer",
    ylim=(-0.03, 1.03),
  )
  ax.set_title('where the fact leaves the subject')
  drawing.legend(ax)


def _faithful(ax, data: pd.DataFrame):
  """How often each linear prediction is what the model says, a bar a relation; of layers the deepest."""
  relations = list(data['relation'].unique())
  for j, method in enumerate(('relational embedding', 'fitted readout', 'own token')):
    own = data[data['control'] == method].sort_values('layer').groupby('relation').last()
    x = [relations.index(name) + (j - 1) * 0.25 for name in own.index]
    ax.bar(x, own['value'], 0.22, color=drawing.cycle(j)[0], label=method)
    for at, row in zip(x, own.itertuples(), strict=True):
      ax.plot([at, at], [row.low, row.high], color=drawing.BLACK, linewidth=0.8)
  ax.set_xticks(range(len(relations)), relations)
  ax.set(ylabel='agrees with the model', ylim=(0, 1.03), title='linear predictions')
  drawing.legend(ax)
