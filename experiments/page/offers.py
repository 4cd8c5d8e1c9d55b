"""The models of the explorer: small constructions, and one trained, with what linear readouts say of them.

Shapes as in `geomem.inside.trace`; S subjects shown, T subjects that readouts are fitted to, P parts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from constructions import registry
from experiments.harness import building
from geomem import model
from geomem import queries as query
from geomem.config import Config
from geomem.construction import Construction
from geomem.inside import intervene
from geomem.inside import linear_maps as linear
from geomem.layout import Layout, Slot
from geomem.training import batched
from geomem.training.optimization import QK_PARAMS, Recipe

NAMED, UNNAMED = (8, 3), (64, 3)  # subjects and relations
TRAINED, STEPS, BATCH = (192, 3), 800, 48
SHOWN = 16
READ = ('superposition', 'associative_mlp')  # what has no blocks, or no words in them

OFFERED = {  # with how many hops, and what to look at
  'selector': (1, (
    'Each block of a subject’s embedding holds one answer, as a word of ±1. The relation closes'
    ' all blocks but its own; the units of the open block fire, and the MLP writes its word '
    'over block 0.'
  )),
  'selector_constant_weight': (1, (
    'The selector without a single bias: words of 0 and 1, with as many ones in each.'
  )),
  'attention_only': (1, (
    'No MLP at all: a head a relation. The head that is asked for reads the subject, the others'
    ' rest on the relation’s token, where their blocks are empty.'
  )),
  'factored': (2, (
    'The facts are in the MLP. One hidden layer detects the subject, the next combines it with '
    'the relation, and the state moves on: one layer a hop.'
  )),
  'precomputed_depth1': (2, (
    'The embedding holds the answers to all pairs of relations. The heads close every branch '
    'but one, so that one layer is enough for both hops.'
  )),
  'chain_of_thought_compact': (2, (
    'One layer for any number of hops: the model says the subject it has come to, reads its own'
    ' word, and goes on from there.'
  )),
  'superposition': (1, (
    'The embedding is a sum of random directions in fewer dimensions than exact answers need, '
    'so a few are wrong. Its memory has no blocks, yet linear readouts find every answer in it.'
  )),
  'associative_mlp': (1, (
    'The rival, an associative memory: embeddings are random and say nothing, the facts are in '
    'the weights of the MLP. Readouts of the embedding find nothing for subjects they were not '
    'fitted to.'
  )),
}  # fmt: skip
LEARNED = (
  'Trained by gradient descent on random facts; nobody gave its coordinates a meaning. Its embedding '
  'has become nearly a sum of one linear image of each answer, as in the constructed superposition.'
)
OPTIONS = {'superposition': building.memory_options('superposition', 4, *UNNAMED)}


@dataclasses.dataclass(frozen=True, eq=False)
class Readouts:
  """What linear maps fitted to T other subjects say of those shown.

  `said`: the attribute nearest to what is read, at each stage, for S subjects, the relation asked and
  the relation read. `parts`: the embedding taken apart, a mean, an image of each answer, the rest.
  `own_F`: the relation that each unit keeps to, −1 if to none. `explained`, `hit`: on all held-out
  subjects. `right`: of all queries.
  """

  explained: float
  hit: float
  right: int
  own_F: np.ndarray
  said: dict[str, np.ndarray]
  parts_SxPxD: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Offer:
  """A model of the explorer, and which of its subjects are asked about."""

  title: str
  about: str
  construction: Construction
  subjects: np.ndarray
  readouts: Readouts | None = None

  def queries(self):
    """Pairs of a subject and its relations."""
    paths = query.every_path(self.construction.facts.relations, self.construction.hops)
    return [(int(s), tuple(map(int, path))) for s in self.subjects for path in paths]


def models(steps: int = STEPS) -> list[Offer]:
  """All that the explorer offers; the last is trained here, in so many steps."""
  offers = []
  for name, (hops, about) in OFFERED.items():
    known, sizes = registry.entry(name), UNNAMED if name in READ else NAMED
    c = registry.build(name, building.bijections(*sizes, 0), hops, **OPTIONS.get(name, {}))
    title = f'{name} ({known.theorem}{f", {hops} hops" if hops > 1 else ""})'
    if name in READ:
      offers.append(Offer(title, about, c, *read(c)))
    else:
      offers.append(Offer(title, about, c, np.arange(c.facts.subjects)))
  return [*offers, trained(steps)]


def trained(steps: int = STEPS) -> Offer:
  """A model trained as `experiments.structure` trains for transfer, but smaller."""
  recipe = Recipe.with_warmup(
    steps, batch=BATCH, target=None, noise=0.5, embedding_lr_multiplier=6.0, frozen=QK_PARAMS
  )
  task = batched.Task(Config.trained(*TRAINED, 24, 48), building.bijections(*TRAINED, 0), 5e-3, 1.0)
  laid, states = batched.set_up(recipe, [task], devices=jax.devices()[:1])
  for _, done in batched.fit(laid, states, steps):
    states = done
  params = laid.state_of(states, 0).params
  layout = Layout.of(Slot('stream', (('direction', task.config.dim),)))
  c = Construction('trained', task.config, params, layout, task.facts)
  return Offer('trained by gradient descent', LEARNED, c, *read(c))


def read(c: Construction) -> tuple[np.ndarray, Readouts]:
  """Subjects held out, 16 of them to be shown, and what can be read of these."""
  held_S, found = jax.tree.map(np.asarray, _look(c.config, c.params, c.facts.answers_RxN))
  order = np.argsort(held_S[:SHOWN])
  shown = lambda rows: rows[:SHOWN][order]
  found |= {'said': {name: shown(said) for name, said in found['said'].items()}}
  return shown(held_S), Readouts(**found | {'parts_SxPxD': shown(found['parts_SxPxD'])})


@functools.partial(jax.jit, static_argnames='config')
def _look(config: Config, params, answers_RxN):
  """All held-out subjects, and the fields of their `Readouts`."""
  fit_T, held_S = linear.hold_out(building.eval_keys(0, 1)[0], config.subjects)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  right, stages, hidden_NxRxF = _stages(config, params, answers_RxN)
  nearest = lambda x_NxD: linear.probe(x_NxD, u_AxD, answers_RxN, fit_T, held_S).T
  said = jax.vmap(jax.vmap(nearest, out_axes=1))(jnp.stack(list(stages.values())))
  parts_SxPxD = _parts(params['embed'], u_AxD, answers_RxN, fit_T, held_S)
  rest_SxD, embedded_SxD = parts_SxPxD[:, -1], e_NxD[held_S]
  units = intervene.unit_selectivity(hidden_NxRxF)
  return held_S, {
    'explained': linear.r2(embedded_SxD, embedded_SxD - rest_SxD, e_NxD[fit_T].mean(axis=0)),
    'hit': jnp.mean(said[0, :, 0] == answers_RxN[:, held_S].T, dtype=jnp.float32),
    'right': jnp.sum(right),
    'said': dict(zip(stages, said, strict=True)),
    'parts_SxPxD': parts_SxPxD,
    'own_F': jnp.where(units['relation'] > 0.5, units['own'], -1),
  }


def _stages(config: Config, params, answers_RxN):
  """Of every query, whether it is right; the residuals RxNxD at the subject's token and, before and
  after the MLP, at the last one; and how the units fire, NxRxF."""
  N, R = config.subjects, config.relations
  subjects_B = jnp.tile(jnp.arange(N), R)
  tokens = query.prompts(N, subjects_B, jnp.repeat(jnp.arange(R), N)[:, None])
  logits_BxLxA, sown = model.apply(config, params, tokens, mutable=['trace'])
  sown, by_relation = sown['trace'], lambda x: x.reshape(R, N, -1)
  embedded, (read, written) = sown['residual'][0][:, 0], sown['blocks_0']['residual']
  stages = {'embedding': embedded, 'read': read[:, -1], 'written': written[:, -1]}
  hidden_RxNxF = by_relation(sown['blocks_0']['mlp']['hidden'][0][:, -1])
  right_B = jnp.argmax(logits_BxLxA[:, -1], axis=1) == answers_RxN.reshape(-1)
  return right_B, jax.tree.map(by_relation, stages), jnp.moveaxis(hidden_RxNxF, 0, 1)


def _parts(embed, u_AxD, answers_RxN, fit_T, held_S):
  """Embeddings as they stand at their position, taken apart: the mean, an image a relation, the rest."""
  known = embed['subjects'][fit_T], u_AxD, answers_RxN[:, fit_T]
  maps_RxDxD, b_D = linear.fit_maps(*known, linear.best_ridge(*known))
  middle_D = jnp.mean(u_AxD, axis=0)
  u_SxRxD = u_AxD[answers_RxN[:, held_S].T] - middle_D[None, None]
  images_SxRxD = jnp.einsum('srd,rde->sre', u_SxRxD, maps_RxDxD)
  mean_D = b_D + jnp.einsum('d,rde->e', middle_D, maps_RxDxD)
  rest_SxD = embed['subjects'][held_S] - images_SxRxD.sum(1) - mean_D[None]
  mean_SxD = jnp.broadcast_to(mean_D + embed['positions'][0], rest_SxD.shape)
  return jnp.concatenate([mean_SxD[:, None], images_SxRxD, rest_SxD[:, None]], axis=1)
