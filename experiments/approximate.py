"""Accuracy against size of constructions that are not exact: superposition and associative memories.

  python -m experiments.approximate --subjects=256 --relations=4
  python -m experiments.approximate --redraw

Random superposition and associative memories, in attention and in an MLP, have c times their natural
size (`instances.memory_options`); c grows until hardly any answer is wrong. The exact selector and
key-value memory are shown for comparison. Nothing is claimed.

The second panel shows the dimensions D, per R·log₂N at R = 4, of a superposition in random
subspaces that answers every query: with single signs and with words of a code, as proved (ε = ¼),
and as found by a search over directions. It also shows two lower bounds: at 1 bit per coordinate,
and for a model that answers all contents with half the signal as margin
(geomem/checks/embedding_bounds.py).

Last, noise: fresh subjects learn their embeddings through a whole frozen `superposition_coded`,
R = 4, under noise of σ times their root mean square, and are compared with the embeddings that its
own theorem writes. The third panel shows accuracy under newly drawn noise, against the d that the
bound requires at this error.
"""

import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from constructions import coded
from experiments.harness import instances, plotting
from experiments.harness.findings import over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import Study
from geomem import facts as fact
from geomem.checks import embedding_bounds
from geomem.inside import intervene, new_facts
from geomem.training.optimization import Job
from geomem.training.recipe import Recipe

EXACT = ('selector', 'keyvalue')
LABELS = {  # in the figure, of the lower bounds
  'least at 1 bit a coordinate': 'lower bound, 1 bit per coordinate',
  'least for all contents, half the signal as margin': 'lower bound, all contents, margin of half the signal',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  subjects: int = 1024
  relations: int = 8
  seeds: int = 3
  dimension_subjects: Annotated[tuple[int, ...], 'An N of the second panel.', 1] = (
    16, 32, 64, 128, 256, 512, 1024,
  )  # fmt: skip
  noises: Annotated[tuple[float, ...], 'A σ of the third panel.', 0] = (0.5, 1.0, 2.0)
  noisy_dims: Annotated[tuple[int, ...], 'A d of the third panel.', 1] = (52, 96, 192)


SMOKE = Preset(
  subjects=32, relations=2, seeds=2, dimension_subjects=(16, 32), noises=(0.5,), noisy_dims=(52,)
)
PRESETS = {'smoke': SMOKE, 'laptop': Preset(), 'full': Preset()}


def measure(progress, preset, seeds):
  """Records per construction, size and seed, then those of the dimensions and of the noise."""
  sizes = preset.subjects, preset.relations
  fact.check_sizes(*sizes)
  constants = instances.MEMORY_CONSTANTS | dict.fromkeys(EXACT, (None,))
  jobs = [(name, c, seed) for name, some in constants.items() for c in some for seed in seeds]
  records = []
  for i, (name, constant, seed) in enumerate(jobs):
    progress(i, len(jobs), name)
    options = instances.memory_options(name, constant, *sizes) | {'seed': seed} if constant else {}
    facts = instances.bijections(*sizes, seed)
    _, record = instances.build_and_check(name, facts, 1, **options)
    own = {'measurement': 'accuracy', 'value': record.pop('accuracy')}
    records.append(record | own | {'constant': constant, 'seed': seed})
  records += [record for n in preset.dimension_subjects for record in dimensions(n, seeds[0])]
  for noise in preset.noises:
    for dim in preset.noisy_dims:
      progress(len(jobs), len(jobs), f'noise {noise}, d = {dim}')
      records += noisy(dim, noise, seeds)
  return records


def dimensions(n: int, seed: int, relations: int = 4) -> list[dict]:
  """D of a superposition for bijections of n subjects: as proved, as found, and lower bounds."""
  facts, bits = instances.bijections(n, relations, seed), max(1, (n - 1).bit_length())
  code = coded.linear_code(facts)
  found = coded.superposition_coded(facts, seed=seed, search=True).layout['memory'].stop
  signal, radius = code.distance, math.sqrt(relations * code.width)
  half = embedding_bounds.from_margin(n, relations, radius, 2 * math.sqrt(code.width), signal)
  values = {
    'single signs, proved': 2 * relations * bits * math.log(4 * n * relations * bits),
    'words of a code, proved': coded.memory_dim(code, n, relations),
    'words of a code, found by a search': found,
    'least at 1 bit a coordinate': embedding_bounds.from_bits(n, relations, 1),
    'least for all contents, half the signal as margin': half,
  }
  about = {'measurement': 'dimensions', 'subjects': n, 'relations': relations}
  unit = relations * math.log2(n)
  return [{**about, 'what': what, 'dim': d, 'value': d / unit} for what, d in values.items()]


def noisy(dim: int, noise: float, seeds, n: int = 64, relations: int = 4) -> list[dict]:
  """Accuracy of fresh subjects through a frozen `superposition_coded` of this width, under noise,
  with embeddings that were learned under other noise or are written by the construction."""
  facts = functools.partial(instances.bijections, n, relations)
  tables = [facts(seed) for seed in seeds]
  pairs = zip(tables, seeds, strict=True)
  built = [coded.superposition_coded(own, dim, seed) for own, seed in pairs]
  new = [facts(seed, other=True).answers_RxN for seed in seeds]
  written = [own.encode(table_RxN) for own, table_RxN in zip(built, new, strict=True) if own.encode]
  config, recipe = built[0].config, Recipe.with_warmup(500, noise=noise, target=None)
  sizes = {'subjects': n, 'relations': relations}
  whole = {name: jnp.int32(size) for name, size in (sizes | {'attributes': n, 'dim': dim}).items()}
  rates = {'learning_rate': jnp.float32(0.05), 'weight_decay': jnp.float32(0)}
  params = jax.tree.map(lambda *own: jnp.stack(own), *(own.params for own in built))
  tables_SxRxN, seed_S = jnp.stack(new), jnp.asarray(list(seeds), jnp.uint32)

  def learn(params, table_RxN, seed):
    job = Job(answers_RxN=table_RxN, seed=seed, **whole, **rates)
    return new_facts.learn_embeddings(config, recipe, params, job, table_RxN)

  def answered(scale, params, e_NxD, table_RxN, seed):
    def with_noise(key):
      noisy_NxD = e_NxD + scale * jax.random.normal(key, e_NxD.shape)
      return intervene.accuracy(config, params, noisy_NxD, table_RxN.T)

    return jax.lax.map(with_noise, instances.eval_keys(seed, 20)).mean()

  learned = jax.jit(jax.vmap(learn))(params, tables_SxRxN, seed_S)
  records = []
  for what, e_SxNxD in {'learned': learned, 'written': jnp.stack(written)}.items():
    # One scale for all tables, so that none can encode facts in its own.
    scale = noise * jnp.sqrt(jnp.mean(e_SxNxD**2))
    judge = jax.jit(jax.vmap(functools.partial(answered, scale)))
    found = judge(params, e_SxNxD, tables_SxRxN, seed_S)
    records += [
      {'measurement': 'noise', **sizes, 'noise': noise, 'dim': dim, 'seed': seed, 'what': what, 'value': value,
       'least_dim': least_dim(n, relations, noise, 1 - value)}
      for seed, value in zip(seeds, found.tolist(), strict=True)
    ]  # fmt: skip
  return records


def least_dim(n: int, relations: int, noise: float, error: float) -> float:
  """The lower bound on d for bijections, whose entropy log₂N! exceeds N·(log₂N − log₂e)."""
  unknown = relations * math.log2(math.e) / (0.5 * math.log2(1 + noise**-2))
  return max(0.0, embedding_bounds.from_noise(n, relations, noise, error) - unknown)


def expect(table):
  """Accuracy at the largest size, a check for the exact constructions; no embedding has fewer
  dimensions than the bound requires at its error."""
  for (noise, what), own in groups(select(table, measurement='noise'), 'noise', 'what'):
    text = f'noise σ = {noise:g}, {what} embeddings'
    ratios = own['dim'] / own['least_dim'].clip(1e-9)
    what = f'{text}: d / lower bound at its error, minimum'
    yield from over_seeds(what, [ratios.min()], 1.0, check=True)
    widest = own[own['dim'] == own['dim'].max()]
    yield from over_seeds(f'{text}: accuracy at the largest d', widest['value'])
  table = select(table, measurement='accuracy')
  for (name,), own in groups(table, 'construction'):
    right = own['value'][own['parameters'] == own['parameters'].max()]
    what = f'{name.replace("_", " ")}: accuracy at the largest size'
    yield from over_seeds(what, right, 1.0 if name in EXACT else None, check=True)


def plot(table):
  """Accuracy against parameters, a mark per seed; dimensions against subjects; accuracy under noise
  against dimensions."""
  figure, (ax, second, third) = plotting.new(width=6.4, height=9.0, rows=3)
  _plot_dimensions(second, select(table, measurement='dimensions'))
  _plot_noise(third, select(table, measurement='noise'))
  table = select(table, measurement='accuracy')
  for i, ((name,), own) in enumerate(groups(table, 'construction')):
    plotting.draw_seeds(ax, own, 'parameters', i, name)
  first = table.iloc[0]
  plotting.logarithmic(ax.xaxis)
  ax.set(ylim=(0, 1.03), xlabel='parameters', ylabel='accuracy over all queries')
  seeds = table['seed'].nunique()
  ax.set_title(f'N = {first["subjects"]}, R = {first["relations"]}, {seeds} seeds')
  plotting.legend_beside(ax)
  return figure


def _plot_dimensions(ax, rows):
  for i, ((what,), own) in enumerate(groups(rows, 'what')):
    (color, marker), label = plotting.cycle(i), LABELS.get(what, what)
    ax.plot(own['subjects'], own['value'], color=color, marker=marker, markersize=4, label=label)
  plotting.logarithmic(ax.xaxis, ax.yaxis)
  ax.set(xlabel='subjects N', ylabel='D / $R\\log_2N$')
  plotting.legend_beside(ax)


def _plot_noise(ax, rows):
  n, r = int(rows['subjects'].iloc[0]), int(rows['relations'].iloc[0])
  errors = np.linspace(0, 1 - 1 / n, 200)
  for i, ((noise,), own) in enumerate(groups(rows, 'noise')):
    color, label = plotting.cycle(i)[0], f'σ = {noise:g}'
    plotting.draw_seeds(ax, select(own, what='learned'), 'dim', i, f'{label}, learned')
    means = select(own, what='written').groupby('dim')['value'].mean()
    ax.plot(means.index, means, ':', color=color, label=f'{label}, written')
    least = [least_dim(n, r, noise, error) for error in errors]
    ax.plot(least, 1 - errors, '--', color=color, label=f'{label}, upper bound')
  ax.set(xlim=(0, None), ylim=(0, 1.03), xlabel='dimensions d', ylabel='accuracy under noise')
  plotting.legend_beside(ax)


STUDY = Study(
  name='approximate', title='accuracy against size of constructions that are not exact', page='theory.md',
  terms='Accuracy: over all queries. D: the number of dimensions of the superposition. Noise: of σ times the root mean '
  'square of the embeddings’ coordinates, drawn anew for every evaluation; the lower bound at its error: the '
  'smallest d that it allows at the measured error.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('measurement', 'construction', 'what', 'noise', 'constant', 'subjects', 'dim', 'width', 'parameters'),
  minutes=1.3, first_seed=0, resumes=False,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
