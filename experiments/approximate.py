"""Accuracy against size, where it is not 1 by construction: superposition and associative memories.

  python -m experiments.approximate --subjects=256 --relations=4
  python -m experiments.approximate --redraw

Random superposition has D = c·R·m dimensions of memory (m = ⌈log₂N⌉), an associative memory in
attention D² = c·N·ln N a head, one in an MLP F·d = c·N·R·ln N with F = 8d; c grows until all is
right. Beside them the exact selector and key-value memory. Nothing is claimed.

Below, the dimensions D of a superposition in random subspaces that answers every query, per R·log₂N at R = 4: of single signs
and of words of a code as proved (ε = ¼), as found by a search over directions, and the least at a margin of half the
signal and at 1 bit a coordinate (geomem/checks/embedding_bounds.py).

Last, noise: fresh subjects learn their embeddings through a frozen filter of random words in random subspaces, R = 4, under
noise of σ times their root mean square; accuracy under fresh noise, against the d that the bound asks for at this error.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from constructions import coded
from experiments.harness import instances, plotting
from experiments.harness.findings import over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import Study
from geomem import facts as fact
from geomem.checks import embedding_bounds
from geomem.training import optimization

EXACT = ('selector', 'keyvalue')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  subjects: int = 1024
  relations: int = 8
  seeds: int = 3
  dimension_subjects: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
  noises: tuple[float, ...] = (0.25, 0.5, 1.0)
  noisy_dims: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96)


SMOKE = Preset(
  subjects=32, relations=2, seeds=2, dimension_subjects=(16, 32), noises=(0.5,), noisy_dims=(16, 32)
)
PRESETS = {'smoke': SMOKE, 'laptop': Preset(), 'full': Preset()}


def measure(progress, preset, seeds):
  """A record a construction, size and seed."""
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
    value = record.pop('accuracy')
    about = {'measurement': 'accuracy', 'constant': constant, 'seed': seed, 'value': value}
    records.append(record | about)
  records += [record for n in preset.dimension_subjects for record in dimensions(n, seeds[0])]
  for noise in preset.noises:
    for dim in preset.noisy_dims:
      progress(len(jobs), len(jobs), f'noise {noise}, d = {dim}')
      records += [noisy(dim, noise, seed) for seed in seeds]
  return records


def dimensions(n: int, seed: int, relations: int = 4) -> list[dict]:
  """D of a superposition for bijections of n subjects: proved, found, and bounds."""
  facts, bits = instances.bijections(n, relations, seed), max(1, (n - 1).bit_length())
  code = coded.coded(facts)
  found = coded.superposition_coded(facts, seed=seed, search=True).layout['memory'].stop
  signal, radius = code.distance, math.sqrt(relations * code.width)
  half = embedding_bounds.from_margin(n, relations, radius, 2 * math.sqrt(code.width), signal)
  values = {
    'single signs, proved': 2 * relations * bits * math.log(4 * n * relations * bits),
    'words of a code, proved': coded.memory_dim(code, n, relations),
    'words of a code, found by a search': found,
    'least at 1 bit a coordinate': embedding_bounds.from_bits(n, relations, 1),
    'least at half the signal as margin': half,
  }
  unit = relations * math.log2(n)
  return [
    {
      'measurement': 'dimensions',
      'subjects': n,
      'relations': relations,
      'what': what,
      'dim': d,
      'value': d / unit,
    }
    for what, d in values.items()
  ]


def noisy(dim: int, noise: float, seed: int, n: int = 64, relations: int = 4) -> dict:
  """Fresh subjects' embeddings, learned under noise through frozen filters; accuracy under other noise."""
  key, steps = jax.random.key(seed), 500
  facts = instances.bijections(n, relations, seed)
  words_AxM = jnp.asarray(coded.coded(facts).words())
  filters_RxAxD = jax.random.normal(key, (relations, n, dim)) / math.sqrt(dim)
  if dim >= words_AxM.shape[1]:
    flat = coded.random_subspaces(dim, relations, words_AxM.shape[1], seed)
    own_RxDxM = jnp.asarray(flat.reshape(dim, relations, -1).swapaxes(0, 1))
    filters_RxAxD = jnp.einsum('rdm,am->rad', own_RxDxM, words_AxM) / math.sqrt(words_AxM.shape[1])
  answers_RxN = jnp.asarray(facts.answers_RxN)

  def logits(params, key):
    e_NxD = params['e'] / jnp.sqrt(jnp.mean(params['e'] ** 2))
    e_NxD = e_NxD + noise * jax.random.normal(key, e_NxD.shape)
    return jnp.einsum('rad,nd->rna', filters_RxAxD, e_NxD)

  def loss(params, key):
    some = jnp.exp(params['log_scale']) * logits(params, key)
    picked = jnp.take_along_axis(jax.nn.log_softmax(some), answers_RxN[..., None], axis=-1)
    return -jnp.mean(picked)

  def step(state, key):
    grads = jax.grad(loss)(state[0], key)
    updates, rest = optimization.adam_update(adam, grads, state[1])
    return (optax.apply_updates(state[0], updates), rest), None

  first = sum(filters_RxAxD[r][facts.answers_RxN[r]] for r in range(relations))
  params, adam = {'e': first, 'log_scale': jnp.zeros(())}, optax.adam(0.03)
  run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0][0])
  learned = run((params, adam.init(params)), jax.random.split(key, steps))
  tries = jax.random.split(jax.random.fold_in(key, 1), 20)
  right = [np.mean(logits(learned, k).argmax(-1) == answers_RxN) for k in tries]
  accuracy = float(np.mean(right))
  least = embedding_bounds.from_noise(n, relations, noise, 1 - accuracy) - relations * math.log2(
    math.e
  ) / (0.5 * math.log2(1 + noise**-2))
  return {
    'measurement': 'noise', 'subjects': n, 'relations': relations, 'noise': noise, 'dim': dim, 'seed': seed,
    'value': accuracy, 'least_dim': max(0.0, least),
  }  # fmt: skip


def expect(table):
  """What the largest size comes to; of those that are exact it is a check. No embedding that is learned has too few dimensions."""
  ratios = (noisy := select(table, measurement='noise'))['dim'] / noisy['least_dim'].clip(1e-9)
  yield from over_seeds(
    'noise: d of learned embeddings / the least at their error, the least', [ratios.min()], 1.0
  )
  table = select(table, measurement='accuracy')
  for (name,), own in groups(table, 'construction'):
    right = own['value'][own['parameters'] == own['parameters'].max()]
    what = f'{name.replace("_", " ")}: accuracy at the largest size'
    yield from over_seeds(what, right, 1.0 if name in EXACT else None, check=True)


def plot(table):
  """Accuracy against parameters, every seed a mark; dimensions against subjects; accuracy under noise against dimensions."""
  figure, (ax, second, third) = plotting.new(width=6.4, height=9.0, rows=3)
  _plot_dimensions(second, select(table, measurement='dimensions'))
  _plot_noise(third, select(table, measurement='noise'))
  table = select(table, measurement='accuracy')
  for i, ((name,), own) in enumerate(groups(table, 'construction')):
    plotting.spread(ax, own, 'parameters', i, name)
  first = table.iloc[0]
  plotting.logarithmic(ax.xaxis)
  ax.set(ylim=(0, 1.03), xlabel='parameters', ylabel='accuracy over all queries')
  ax.set_title(
    f'N = {first["subjects"]}, R = {first["relations"]}, {table["seed"].nunique()} seeds'
  )
  plotting.legend_beside(ax)
  return figure


def _plot_dimensions(ax, rows):
  for i, ((what,), own) in enumerate(groups(rows, 'what')):
    color, marker = plotting.cycle(i)
    ax.plot(own['subjects'], own['value'], color=color, marker=marker, markersize=4, label=what)
  plotting.logarithmic(ax.xaxis, ax.yaxis)
  ax.set(xlabel='subjects N', ylabel='D / $R\\log_2N$')
  plotting.legend_beside(ax)


def _plot_noise(ax, rows):
  for i, ((noise,), own) in enumerate(groups(rows, 'noise')):
    plotting.spread(ax, own, 'dim', i, f'σ = {noise:g}, learned')
    n, r = int(own['subjects'].iloc[0]), int(own['relations'].iloc[0])
    capacity = 0.5 * math.log2(1 + noise**-2)
    errors = np.linspace(0, 1 - 1 / n, 200)
    least = [
      embedding_bounds.from_noise(n, r, noise, e) - r * math.log2(math.e) / capacity for e in errors
    ]
    ax.plot(
      least, 1 - errors, '--', color=plotting.cycle(i)[0], label=f'σ = {noise:g}, no more than'
    )
  ax.set(xlim=(0, None), ylim=(0, 1.03), xlabel='dimensions d', ylabel='accuracy under noise')
  plotting.legend_beside(ax)


STUDY = Study(
  name='approximate', title='accuracy against size of what is not exact',
  terms='Accuracy: of all queries. D: the dimensions that a superposition is in. Noise: of σ times the root mean square of the '
  'embeddings’ coordinates, drawn anew for every answer; the least d is what the bound asks for at the error that was found.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('measurement', 'construction', 'what', 'noise', 'constant', 'subjects', 'dim', 'width', 'parameters'),
  minutes=3, first_seed=0, resumes=False,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
