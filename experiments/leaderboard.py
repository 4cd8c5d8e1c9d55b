"""Which methods find the truth at which stage? Interpretability methods, scored on models whose inside is known.

  python -m experiments.leaderboard

Constructions are hidden at four stages (experiments.zoo): as built; transformed by symmetries; perturbed and trained
again; trained from scratch, where nothing is known. Methods are given a model and its facts, and return which hidden
units serve which relation, or which subspace of a subject's embedding holds its answers to it.

Expected: regressions and interchange find as much in a transformed model as in the original. Methods that change single
coordinates score at most 0.2 in the transformed one, where the truth scores 1. A sparse dictionary scores at most 0.2 in
both, because a sum of binary codewords is not sparse, and with as many subjects as dimensions one atom per subject is.
Units can be permuted and scaled freely, and are found all the same.

Controls: random answers and answers for the next relation, which must score nothing, and the truth itself.
`effect`, what an answer is worth by interventions alone, needs no truth, and is measured from scratch too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from constructions import registry
from experiments.harness import instances, methods, plotting, stages
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.stages import STAGES, ZooModel
from experiments.harness.statistics import groups, select
from experiments.harness.study import Study

ANSWERS = {'units': methods.UNITS, 'subspaces': methods.SUBSPACES}
EFFECTS = {'units': methods.ablation_effect, 'subspaces': methods.patch_effect}
TRUTH, CONTROLS = 'the truth', ('random', 'next relation')
TESTS = {'units': 'the truth, specificity of ablation', 'subspaces': 'the truth, interchange accuracy'}  # fmt: skip
BY_COORDINATE = 'activation patching', 'ablation'  # for subspaces: they select coordinates
DICTIONARY = 'sparse dictionary'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`noise`: added before a construction is trained again, as a fraction of each array's root mean square."""

  constructions: tuple[str, ...]
  subjects: int
  relations: int
  noise: float
  steps: int
  seeds: int


ZOO = 'selector', 'selector_normed', 'superposition_coded'
AS_WELL = 0.05  # a score that is lower by no more than this is as good
DRAWS = 64  # number of random answers, whose mean score is taken
PRESETS = {
  'smoke': Preset(constructions=ZOO[:1], subjects=16, relations=2, noise=0.1, steps=100, seeds=1),
  'laptop': Preset(constructions=ZOO[:2], subjects=32, relations=3, noise=0.1, steps=300, seeds=3),
  'full': Preset(constructions=ZOO, subjects=128, relations=4, noise=0.1, steps=2000, seeds=10),
}


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """A record for every answer's score and effect."""
  records = []
  for name in preset.constructions:
    facts = [instances.bijections(preset.subjects, preset.relations, seed) for seed in seeds]
    built = [registry.build(name, own) for own in facts]
    sweep = functools.partial(stages.train_with, trainer)
    rows = stages.at_all_stages(built, list(seeds), (preset.noise,), preset.steps, sweep)
    models = [(seed, member) for seed, row in zip(seeds, rows, strict=True) for member in row]
    records += trainer.recorded(measure_models, name, models)
  return records


def measure_models(name: str, models: list[tuple[int, ZooModel]]) -> list[dict]:
  """A construction's models of all seeds and stages together: of the same size, so that one program measures them all."""
  config = models[0][1].model.config
  about = {'construction': name, 'subjects': config.subjects, 'relations': config.relations, 'dim': config.dim}  # fmt: skip
  records = [
    {**about, 'stage': member.stage, 'seed': seed, 'question': question, 'answer': None, 'measurement': what, 'value': round(value, 6)}
    for seed, member in models
    for question, what, value in (
      ('facts', 'right answers', member.accuracy),
      ('units', 'truth borne out', member.found['units']), ('subspaces', 'truth borne out', member.found['subspaces']),
    )
    if value is not None
  ]  # fmt: skip
  for question in ANSWERS:
    for answer, given, effects in answers(question, models):
      records += [
        {**about, 'stage': member.stage, 'seed': seed, 'question': question, 'answer': answer, 'measurement': what, 'value': round(float(value), 6)}
        for (seed, member), one, effect in zip(models, given, effects, strict=True)
        for what, value in (('score', score(question, answer, one, member, seed)), ('effect', effect))
        if np.isfinite(value) and (member.truth or answer in ANSWERS[question])
      ]  # fmt: skip
  return records


def answers(question: str, models):
  """(the method or control, its answer for every model, the effect of that answer in the model)."""
  config = models[0][1].model.config.replace(precision='highest')
  stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(h.model.params for _, h in models))
  facts = jnp.asarray(np.stack([h.model.facts.answers_RxN for _, h in models]))
  keys = instances.eval_keys(models[0][0], len(models))
  each = lambda function: jax.jit(jax.vmap(functools.partial(function, config)))
  effect = each(lambda config, params, answers, given: EFFECTS[question](config, params, given, answers))  # fmt: skip
  for answer, method in ANSWERS[question].items():
    given = each(method)(stacked, facts, keys)
    yield answer, np.asarray(given, np.float64), np.asarray(effect(stacked, facts, given))
  for answer in (TRUTH, *CONTROLS):
    planted = np.stack([reference(question, answer, h, seed) for seed, h in models])
    yield answer, planted, np.asarray(effect(stacked, facts, jnp.asarray(planted, jnp.float32)))


def reference(question: str, answer: str, member: ZooModel, seed: int, draw: int = 0) -> np.ndarray:
  """The truth in the form of a method's answer, that of the next relation, or random scores of units or subspaces of the
  same dimensions.

  Where nothing is known, nothing serves any relation.
  """
  if member.truth is None:
    config = member.model.config
    size = config.blocks[0].hidden[-1:] if question == 'units' else (config.dim,) * 2
    return np.zeros((config.relations, *size))
  right = np.asarray(member.truth.serves_RxF[0][-1], np.float64)
  if question == 'subspaces':
    right = np.stack([s.frame_KxD.T @ s.frame_KxD for s in member.truth.subspaces])
  if answer == 'random':
    rng = np.random.default_rng((seed, draw, 4))
    if question == 'units':
      return rng.random(right.shape)
    turns = [np.linalg.qr(rng.standard_normal(p.shape))[0] for p in right]
    return np.stack([q.T @ p @ q for q, p in zip(turns, right, strict=True)])
  return np.roll(right, 1, axis=0) if answer == 'next relation' else right


def score(question: str, answer: str, given: np.ndarray, member: ZooModel, seed: int) -> float:
  """The score against the truth, for random answers the mean of many draws; NaN where nothing is known."""
  if member.truth is None:
    return np.nan
  every = [given]
  if answer == 'random':
    every = [reference(question, answer, member, seed, draw) for draw in range(DRAWS)]
  if question == 'units':
    serves_RxF = member.truth.serves_RxF[0][-1]
    return float(np.mean([methods.unit_score(one, serves_RxF, seed) for one in every]))
  frames = [s.frame_KxD for s in member.truth.subspaces]
  return float(np.mean([methods.subspace_score(one, frames) for one in every]))


def by_seed(table, **about) -> list[float]:
  """The mean over constructions, for every seed."""
  return select(table, **about).groupby('seed')['value'].mean().tolist()


def expect(table):
  """Scores by method and stage; checks that the controls score nothing, and the truth everything."""
  for question, named in ANSWERS.items():
    for stage in STAGES:
      mean = functools.partial(by_seed, table, question=question, stage=stage)
      text = f'{question}, {stage}: '
      for answer in named:
        scores, effects = (mean(answer=answer, measurement=what) for what in ('score', 'effect'))
        known = stage in STAGES[:2]
        blind = answer == DICTIONARY or answer in BY_COORDINATE and stage == 'disguised'
        blind &= question == 'subspaces' and known
        random = mean(answer='random', measurement='score')
        yield from over_seeds(
          text + answer, scores, 0.8 if known and not blind else None, 0.2 if blind else None, random=random, effect=effects
        )  # fmt: skip
        if not scores:
          yield from over_seeds(f'{text}{answer}, effect', effects)
      check = functools.partial(over_seeds, check=True)
      yield from check(text + TRUTH, mean(answer=TRUTH, measurement='score'), 0.999)
      yield from check(
        text + 'random answers', mean(answer='random', measurement='score'), -0.1, 0.1
      )
      wrong = mean(answer='next relation', measurement='score')
      yield from check(text + 'truth of the next relation', wrong, at_most=0)
      yield from check(text + TESTS[question], mean(measurement='truth borne out'), 0.7)
  for answer in (name for name in ANSWERS['subspaces'] if name not in (DICTIONARY, *BY_COORDINATE)):
    own = select(table, question='subspaces', answer=answer, measurement='score')
    wide = own.pivot_table(index=['construction', 'seed'], columns='stage', values='value')
    change = (wide['disguised'] - wide['built']).groupby('seed').mean()
    what = f'subspaces: {answer}, disguised − built'
    yield from over_seeds(what, change.tolist(), -AS_WELL, check=True)
  for stage in STAGES:
    right = by_seed(table, question='facts', stage=stage)
    yield from over_seeds(f'{stage}: accuracy', right, 0.99, check=True)


def plot(table):
  """A panel for each question: methods against stages, with the effect dotted."""
  figure, panels = plotting.new(9, 3.4, 1, 2, sharey=True)
  for ax, (question, named) in zip(panels, ANSWERS.items(), strict=True):
    for answer in (*named, 'random'):
      i = [*methods.SUBSPACES, 'random'].index(answer)
      rows = select(table, question=question, answer=answer)
      for what, line in (('score', '-'), ('effect', ':')):
        own = select(rows, measurement=what)
        means = {stage: rows['value'].mean() for (stage,), rows in groups(own, 'stage')}
        color, marker = plotting.cycle(i)
        ax.plot(
          [STAGES.index(d) for d in means], list(means.values()), color=color, marker=marker, linestyle=line,
          markersize=4, label=answer if line == '-' else None,
        )  # fmt: skip
    ax.set(title=question, xticks=range(len(STAGES)), xticklabels=STAGES)
    plotting.legend(ax)
  panels[0].set(ylabel='score (solid), effect (dotted)')
  return figure


STUDY = Study(
  name='leaderboard', title='which methods find the known structure inside a model', page='zoo.md',
  claims=(
    Claim('Methods', 'Regressions and interchange find the subspaces of relations as well in a construction transformed by symmetries '
          'as in the original. Methods that change single coordinates score at most 0.2 there, and a sparse dictionary in both. Units are found in both.'),
  ),
  terms='Built: a construction; disguised: transformed by symmetries; retrained: perturbed and trained again; scratch: trained from '
  'random weights, where nothing is known. Units: average precision; subspaces: tr(PQ) over the larger rank; 0 is the mean score of '
  'random answers, 1 that of the truth. Effect, which needs no truth: for units, accuracy on other relations minus accuracy on the '
  'relation whose units are ablated; for subspaces, with that part taken from another subject, the lower of the fractions of '
  'answers that become that subject’s and of other answers that stay. A mean is over the constructions of a seed. The truth is '
  'tested too, by its worst relation. Specificity of ablation: the logit change in queries with the relation whose units are '
  'ablated minus that in other queries, over their sum; interchange accuracy: as the effect of subspaces, with the true ones.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=0.6,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
