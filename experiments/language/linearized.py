"""Linear relational embeddings (Hernandez et al., 2023) compared with fitted maps: faithfulness, and edits.

Subjects are split as for the swaps: examples come from the first group, layer, β and rank are chosen
on the second, and results are reported on the third.

Shapes: S subjects, T subjects fitted to, E examples, J layers with Jacobians, D width, A attributes.
"""

import functools
import itertools

import numpy as np
import pandas as pd

from experiments.language import probing, ridge, swapping
from experiments.language.prompt_set import PromptSet
from geomem.pretrained import relational

CONTROL = {'control': 'relational embedding'}


def measure(prompts: PromptSet, preset, layers, seed: int) -> list[dict]:
  """Faithfulness and edits of the model's own linearisation, on the third group of subjects.

  Skips relations of which the model knows too few facts for the examples, or none in another group.
  """
  groups, dev, test = swapping.groups_and_swaps(prompts, seed)
  fit_T, _, report_S = groups
  rng, records, embeddings, observed = np.random.default_rng((seed, 9)), [], {}, prompts.observed
  for r in prompts.table.superposed:
    known_T, *others_known = (group[observed['known'][group, r]] for group in groups)
    example_E = rng.permutation(known_T)[: preset.examples]
    if len(example_E) < preset.examples or not all(map(len, others_known)):
      continue
    jacobian_ExJxDxD = np.stack([prompts.jacobian(r, s, layers) for s in example_E])
    s_ExTxD, o_ExD = observed['subject'][example_E], observed['final'][example_E, r]
    embeddings[r] = {
      layer: relational.embedding(jacobian_ExJxDxD[:, j], s_ExTxD[:, layer], o_ExD)
      for j, layer in enumerate(layers)
    }
    records += _faithfulness(prompts, preset.betas, seed, r, embeddings[r], fit_T, *others_known)
  dev, test = (swaps[swaps['relation'].isin(embeddings)] for swaps in (dev, test))
  if dev.empty or test.empty:
    return records
  edits = functools.partial(_edits, prompts, fit_T, embeddings)
  layer, chosen = swapping.best(prompts, dev, layers, preset.ranks, functools.partial(edits, dev))
  for rank in preset.ranks:
    found = swapping.outcomes(prompts, layer, test, edits(test, layer, rank))
    fields = {'seed': seed, 'subjects': len(report_S), 'layer': layer, 'rank': rank, **CONTROL}
    records += swapping.records_of(prompts, found, fields | {'chosen': rank == chosen})
  return records


def _faithfulness(
  prompts: PromptSet, betas, seed: int, r: int, embeddings, fit_T, dev_S, test_S
) -> list[dict]:
  """How often a linear map from the representation predicts the model's answer: a Jacobian, and a ridge regression."""
  relation, observed = prompts.relations[r], prompts.observed
  about = {'seed': seed, 'relation': relation.name, 'subjects': len(test_S)}
  guess = lambda S, layer, beta: relational.predict(
    embeddings[layer], observed['subject'][S, layer], beta
  )
  agrees = lambda S, *at: prompts.predict(r, guess(S, *at)) == observed['predicted'][S, r]
  tried = itertools.product(embeddings, betas)
  layer, beta = max(tried, key=lambda at: agrees(dev_S, *at).mean())
  said, own = map(
    prompts.runner.predict, (guess(test_S, layer, beta), observed['final'][test_S, r])
  )
  at = about | {'layer': layer, 'beta': beta, **CONTROL}
  records = [
    prompts.record('faithful', agrees(test_S, layer, beta), **at),
    prompts.record('faithful, all tokens', said == own, **at),
  ]
  features = {layer: observed['subject'][:, layer] for layer in embeddings}
  for layer, x_SxD in {**features, None: observed['last_token']}.items():
    kernels, control = [ridge.kernel(x_SxD)], 'own token' if layer is None else 'fitted probe'
    guess_SxD = ridge.predict(kernels, prompts.mean_embedding(r), fit_T, test_S)
    near_S = relation.token_A[probing.nearest(prompts.embeddings[r], guess_SxD)]
    same_S = near_S == observed['predicted'][test_S, r]
    records.append(prompts.record('faithful', same_S, **about, layer=layer, control=control))
  return records


def _edits(
  prompts: PromptSet, fit_T, embeddings: dict, swaps: pd.DataFrame, layer: int, rank: int
) -> np.ndarray:
  """Edits that should move the final residual to the mean over subjects with the wanted attribute, by a pseudo-inverse."""
  edits = []
  for r, rows in swaps.groupby('relation'):
    known_T = fit_T[prompts.observed['known'][fit_T, r]]
    final_SxD, relation = prompts.observed['final'][:, r], prompts.relations[r]
    have = [known_T[relation.correct_SxA[known_T, a]] for a in rows['attribute']]
    wanted_WxD = np.stack([final_SxD[h if len(h) else known_T].mean(axis=0) for h in have])
    inverse_DxD = relational.inverse(embeddings[r][layer][0], rank)
    edits.append((wanted_WxD - final_SxD[rows['subject']]) @ inverse_DxD.T)
  return np.concatenate(edits)
