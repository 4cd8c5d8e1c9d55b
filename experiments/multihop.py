"""Chains of relations: what they cost a trained model, with and without chain of thought. Claim 7.

  python -m experiments.multihop

The smallest d, at F = 4d, that answers 0.99 of all N·R^k queries of k hops: at once (direct, of one
layer and of more), naming every subject on the way (chain), or told the way and asked for the last
answer alone (last). Expected: direct, the width grows with k, exponentially, or depth and width
together hold N·R facts; with chain of thought one layer and a width that does not depend on k are
enough. Those found for the most hops are rounded to the fewest bits per weight at which they stay at
0.99; at once and with the chain said they stand in the figure of the bounds, beside the constructions. Last, chains of fewer hops than the
most are learned together and one hop more is asked for, at a position that was never trained.
"""

import dataclasses

import jax
import numpy as np
from absl import flags

from experiments import bounds, claims
from experiments.figures import multihop as multihop_figure
from experiments.harness import building, cli, fitting, searching, statistics
from experiments.harness.findings import CHECK, Finding, found, only
from geomem import model
from geomem.checks import accounting
from geomem.config import Config
from geomem.training import batched, optimization
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
fitting.define('multihop', claims.minutes('multihop'))

COLUMNS = (
  'measurement',
  'model',
  'depth',
  'hops',
  'seeds',
  'found',
  'value',
  'least',
  'most',
  'bits',
)
RATES = ((0.01, 0.01),)  # of 45 that learned at this rate or a third of it, 44 did at this one
NEAR = 0.1  # widths closer than this, as a share, are not told apart
MODES = {'direct': (False, 'answer'), 'chain': (True, 'chain'), 'last': (True, 'answer')}


@dataclasses.dataclass(frozen=True)
class Setting:
  """`depths`: of the direct models (with chain of thought there is one layer). `size`: d, of the longer chains.

  `modes`: of `MODES`, those searched. `guess`: the d where a mode's first search begins, if known better.
  """

  subjects: int
  relations: int
  hops: tuple[int, ...]
  depths: tuple[int, ...]
  size: int
  steps: int
  seeds: int
  modes: tuple[str, ...] = tuple(MODES)
  guess: int | None = None


PRESETS = {
  'smoke': Setting(4, 2, (2,), (1,), 8, 300, 1, ('chain',), 14),
  'laptop': Setting(16, 2, (1, 2, 3, 4), (1, 2), 16, 800, 4),
  'accelerator': Setting(64, 3, (1, 2, 3, 4), (1, 2, 4), 64, 4000, 5),
}


def searched(
  fitter, setting: Setting, mode: str, hops: int, depth: int, seeds, guess: int | None
) -> list[dict]:
  """The smallest d of every seed, sought from a guess on, and the bits that its weights need."""
  chain, loss = MODES[mode]
  recipe = Recipe.with_warmup(setting.steps, hops=hops, chain_of_thought=chain, loss=loss)
  search = searching.Setting(recipe, 0, 0, RATES, depth, guess=guess, resolution=NEAR)
  cases = [searching.Case('dim', setting.subjects, setting.relations, seed) for seed in seeds]
  found = [r for r in searching.measure(cases, search, fitter) if r['kind'] == 'threshold']
  sizes = {c: r['value'] for c, r in zip(cases, found, strict=True) if r['value'] is not None}
  last = hops == max(setting.hops)  # what stands in the figure of the bounds
  looked = searching.rounded(sizes, search, fitter) if last else {}
  records = []
  for case in cases:
    about = {
      'claim': 7, 'kind': 'trained', 'measurement': 'smallest dim', 'model': mode, 'control': None,
      'hops': hops, 'depth': depth, 'subjects': setting.subjects,
      'relations': setting.relations, 'seed': case.seed, 'value': sizes.get(case),
    }  # fmt: skip
    if case in looked:
      config = searching.configured(case, sizes[case], search)
      about |= {'accuracy': float(looked[case]['accuracy'])}
      about |= _bits(config, int(looked[case]['bits']))
    records.append(about)
  return records


def longer(fitter, setting: Setting, seeds) -> list[dict]:
  """Chains of up to one hop less than the most, learned together; each length asked for, and the most."""
  most = max(setting.hops)
  recipe = Recipe.with_warmup(
    setting.steps, hops=most - 1, chain_of_thought=True, loss='chain', shorter=True, target=None
  )
  sizes = setting.subjects, setting.relations
  config = Config.trained(*sizes, setting.size, length=2 * most)
  tasks = [batched.Task(config, building.bijections(*sizes, s), *RATES[0], s) for s in seeds]

  def asked(params, job):
    of = lambda hops: dataclasses.replace(recipe, hops=hops)
    return {f'{k}': optimization.accuracy(config, of(k), job, params) for k in range(1, most + 1)}

  found = fitter.measured(recipe, tasks, asked)
  return [
    {
      'claim': 7, 'kind': 'longer', 'measurement': 'chains answered', 'model': 'chain', 'control': None,
      'hops': int(k), 'trained_to': most - 1, 'depth': 1, 'subjects': setting.subjects,
      'relations': setting.relations, 'dim': setting.size, 'seed': seed, 'value': float(values[i]),
    }
    for k, values in found.items()
    for i, seed in enumerate(seeds)
  ]  # fmt: skip


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records of all searches, of the longer chains, and the bounds."""
  records = longer(fitter, setting, seeds)
  kinds = [(m, d) for m in setting.modes for d in (setting.depths if m == 'direct' else (1,))]
  for mode, depth in kinds:
    guess = setting.guess
    for hops in setting.hops:
      if mode == 'last' and hops == 1:
        continue  # one hop is a chain of one
      own = searched(fitter, setting, mode, hops, depth, seeds, guess)
      guess = max((r['value'] for r in own if r['value']), default=guess)
      records += own
  return records + _bounds(setting, records, seeds[0])


def _bounds(setting: Setting, records: list[dict], seed: int) -> list[dict]:
  """What is built for the most hops, and the bounds there: trained models stand beside them."""
  sizes = setting.subjects, setting.relations, max(setting.hops)
  built, skipped = bounds.points(*sizes, seed)
  for reason, without in skipped.items():
    cli.warn(f'skipped {", ".join(without)}: {reason}')
  reach = 4 * max(r.get('subject_bits', 0) for r in [*records, *built])
  timed = lambda name: name.endswith('_seconds')
  built = [{name: v for name, v in r.items() if not timed(name)} for r in built]
  return built + bounds.curves(*sizes, reach)


def _bits(config: Config, bits: int) -> dict:
  """Bits inside the network and in one embedding, if every weight takes so many."""
  internal = sum(
    np.prod(a.shape)
    for path, a in jax.tree_util.tree_leaves_with_path(model.shapes(config))
    if accounting.role_of(path) != 'subjects'
  )
  return {
    'bits': bits,
    'internal_bits': float(bits * internal),
    'subject_bits': float(bits * config.dim),
  }


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over the seeds; no mean where some seed found nothing, for that would be too good."""
  rows = []
  asked = [r for r in records if r['kind'] in ('trained', 'longer')]
  for group in statistics.groups(asked, 'measurement', 'model', 'depth', 'hops'):
    rows.append({**group[0], **statistics.if_all(group, 'bits')})
  return rows


def findings(records: list[dict]) -> list[Finding]:
  """The width needed as hops are added, beside that of one hop; and the longer chains."""
  trained = [r for r in records if r['kind'] == 'trained']
  found_all = []
  for group in statistics.groups(
    statistics.complete(trained, 'model', 'depth', 'hops'), 'model', 'depth'
  ):
    first = group[0]
    name = f'{multihop_figure.NAMES[first["model"]]}, depth {first["depth"]}'
    for hops in sorted({r['hops'] for r in group}):
      found_all += found(f'{name}: smallest d for {hops} hops', only(group, hops=hops))
    most = max(r['hops'] for r in group)
    alike = {'last': 'chain'}.get(first['model'], first['model'])  # one hop is a chain of one
    one = only(trained, model=alike, depth=first['depth'], hops=1)
    if most > 1 and one and None not in one:
      growth = np.array(only(group, hops=most)) / one
      bounds_of = {'most': 1.5} if first['model'] == 'chain' else {}
      bounds_of = {'least': 2.0} if (first['model'], first['depth']) == ('direct', 1) else bounds_of
      found_all += found(f'{name}: d for {most} hops / d for one', growth, **bounds_of)
  found_all += _beside_built(records, trained)
  for group in statistics.groups([r for r in records if r['kind'] == 'longer'], 'hops'):
    first = group[0]
    text = f'chains of up to {first["trained_to"]} learned, {first["hops"]} asked'
    learned = first['hops'] <= first['trained_to']
    found_all += found(text, only(group), 0.99 if learned else None, claim=CHECK,
                       chance=[first['subjects'] ** -first['hops']])  # fmt: skip
  return found_all


def _beside_built(records, trained) -> list[Finding]:
  """The bits inside of models rounded, of the most hops, beside the smallest that is built."""
  found_all = []
  rounded = [r for r in trained if r.get('internal_bits') is not None]
  for group in statistics.groups(rounded, 'model', 'depth'):
    first = group[0]
    chain = first['model'] != 'direct'
    built = [r['internal_bits'] for r in records if r['kind'] == 'construction' and r['chain_of_thought'] == chain]  # fmt: skip
    text = f'{multihop_figure.NAMES[first["model"]]}, depth {first["depth"]}: bits inside, {first["hops"]} hops / those of the smallest built'
    found_all += found(text, [r['internal_bits'] / min(built) for r in group] if built else [])
  return found_all


def main(argv):
  fitting.main(argv, 'multihop', PRESETS, measure, multihop_figure.draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
