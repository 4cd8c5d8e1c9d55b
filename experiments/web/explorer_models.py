"""The models of the explorer: small constructions and one trained model, with what linear probes read from them.

Shapes as in `geomem.inside.trace`; N subjects, S of them shown, T that probes are fitted to, P parts; Q the
relation asked for.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import geomem
from constructions import registry
from experiments.harness import instances, model_kinds
from geomem import Config, Facts, model, queries
from geomem.facade import FactModel
from geomem.inside import intervene, linear_maps

SHOWN = 16
PROBED = ('superposition', 'associative_mlp')  # models without blocks, or without words in them
OPTIONS = {'superposition': instances.memory_options('superposition', 4, 64, 3)}
CONSTRUCTIONS = {  # name → number of hops, and what to look at
  'selector': (1, 'Each block of a subject’s embedding holds one answer, as a codeword of ±1. The relation closes '
    'all blocks but its own; the units of the open block fire, and the MLP writes its codeword over block 0.'),
  'selector_constant_weight': (1, 'The selector without biases: codewords of 0 and 1, all with the same number of ones.'),
  'attention_only': (1, 'No MLP, and one head per relation. The head of the queried relation reads the subject; the '
    'others attend to the relation’s token, where their blocks are empty.'),
  'factored': (2, 'The facts are in the MLP. One hidden layer detects the subject, the next combines it with the '
    'relation, and the state moves on to the next subject: one layer per hop.'),
  'precomputed_depth1': (2, 'The embedding holds the answers to all pairs of relations. The heads close every '
    'branch but one, so that one layer is enough for both hops.'),
  'chain_of_thought_compact': (2, 'One layer for any number of hops: the model emits the subject that it has reached, '
    'reads it as its next input, and continues from there.'),
  'superposition': (1, 'The embedding is a sum of random directions, in fewer dimensions than exact answers need, so '
    'a few answers are wrong. Its memory has no blocks, yet linear probes find every answer in it.'),
  'associative_mlp': (1, 'The alternative, an associative memory: embeddings are random and carry no facts, which are '
    'in the weights of the MLP. Probes of the embedding find nothing for subjects that they were not fitted to.'),
}  # fmt: skip
LEARNED = (
  'Trained by gradient descent on random facts; its coordinates have no assigned meaning. Its embedding '
  'has become nearly a sum of one linear image of each answer, as in the constructed superposition.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Probes:
  """Linear probes fitted to T subjects; `r2` and `accuracy` are measured on all other subjects.

  `said`: at each stage, the attribute nearest to what is read, for the S subjects shown, the relation asked and the
  relation read. `parts_SxPxD`: the embedding decomposed into a mean, an image of each answer, and the rest.
  `own_F`: the relation for which each unit is selective, −1 if none.
  """

  r2: float
  accuracy: float
  own_F: np.ndarray
  said: dict[str, np.ndarray]
  parts_SxPxD: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ExplorerModel:
  """A model of the explorer, and the subjects that are asked about."""

  title: str
  about: str
  model: FactModel
  subjects: np.ndarray
  probes: Probes | None = None

  def queries(self) -> list[tuple[int, tuple[int, ...]]]:
    """Pairs of a subject and its relations."""
    paths = queries.every_path(self.model.facts.relations, self.model.hops).tolist()
    return [(int(s), tuple(path)) for s in self.subjects for path in paths]


def models(steps: int = 800) -> list[ExplorerModel]:
  """All models of the explorer; the last is trained here, in `steps` steps."""
  found = []
  for name, (hops, about) in CONSTRUCTIONS.items():
    facts = Facts.bijections(64 if name in PROBED else 8, 3)
    built = registry.build(name, facts, hops, **OPTIONS.get(name, {}))
    title = f'{name} ({registry.entry(name).theorem}{f", {hops} hops" if hops > 1 else ""})'
    shown = fit_probes(built) if name in PROBED else (np.arange(facts.subjects),)
    found.append(ExplorerModel(title, about, built, *shown))
  kind = model_kinds.Kind(
    subjects=192, relations=3, steps=steps, dim=48, width=48, batch=48,
    **model_kinds.GEOMETRIC_RECIPE,
  )  # fmt: skip
  task = kind.task(Facts.bijections(kind.subjects, kind.relations), seed=0)
  (trained,) = geomem.sweep([task], **vars(kind.recipe()))
  title = 'trained by gradient descent'
  return [*found, ExplorerModel(title, LEARNED, trained, *fit_probes(trained))]


def fit_probes(c: FactModel) -> tuple[np.ndarray, Probes]:
  """At most 16 subjects that the probes are not fitted to, and the probes."""
  found = jax.tree.map(np.asarray, _fit(c.config, c.params, c.facts.answers_RxN))
  return found.pop('subjects'), Probes(**found)


@functools.partial(jax.jit, static_argnames='config')
@jax.default_matmul_precision('highest')
def _fit(config: Config, params, answers_RxN) -> dict:
  """The subjects shown, and the fields of their `Probes`."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  fit_T, held_S = linear_maps.hold_out(instances.eval_keys(0, 1)[0], config.subjects)
  facts, shown_S = (u_AxD, answers_RxN, fit_T), jnp.sort(held_S[:SHOWN])
  paths_Rx1 = jnp.arange(config.relations)[:, None]
  _, sown = model.apply(
    config, params, e_NxD, paths_Rx1, method='from_embeddings', mutable=['trace']
  )
  block = sown['trace']['blocks_0']
  read_NxRxD, written_NxRxD = block['residual']  # before and after the MLP
  held_NxRxD = jnp.broadcast_to(e_NxD[:, None], read_NxRxD.shape)
  stages = {'embedding': held_NxRxD, 'read': read_NxRxD, 'written': written_NxRxD}
  say = lambda x_NxD: linear_maps.probe(x_NxD, *facts, shown_S).T
  units = intervene.unit_selectivity(block['mlp']['hidden'][0])
  return {
    'subjects': shown_S,
    'r2': linear_maps.superposition_r2(e_NxD, *facts, held_S),
    'accuracy': linear_maps.probe_accuracy(e_NxD, *facts, held_S),
    'own_F': jnp.where(units['relation'] > 0.5, units['own'], -1),
    'said': {stage: jax.vmap(say, 1, 1)(x_NxRxD) for stage, x_NxRxD in stages.items()},
    'parts_SxPxD': _parts(params['embed'], *facts, shown_S),
  }


def _parts(embed, u_AxD, answers_RxN, fit_T, shown_S):
  """Embeddings at their position, decomposed: the mean, an image per relation, the rest."""
  known = embed['subjects'][fit_T], u_AxD, answers_RxN[:, fit_T]
  maps_RxDxD, b_D = linear_maps.fit_best_maps(*known)
  mean_D = jnp.mean(u_AxD, axis=0)
  u_SxRxD = u_AxD[answers_RxN[:, shown_S].T] - mean_D[None, None]
  images_SxRxD = jnp.einsum('srd,rde->sre', u_SxRxD, maps_RxDxD)
  constant_D = b_D + jnp.einsum('d,rde->e', mean_D, maps_RxDxD)
  rest_SxD = embed['subjects'][shown_S] - images_SxRxD.sum(1) - constant_D[None]
  constant_SxD = jnp.broadcast_to(constant_D + embed['positions'][0], rest_SxD.shape)
  return jnp.concatenate([constant_SxD[:, None], images_SxRxD, rest_SxD[:, None]], axis=1)
