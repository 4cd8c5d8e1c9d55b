"""Linear relational embeddings (Hernandez et al., 2023) beside what is fitted: faithfulness, and edits.

Subjects are split as for the swaps: examples come from the first group, layer, β and rank are chosen
on the second, and what is reported comes from the third.

Shapes: S subjects, T subjects fitted to, E examples, J layers with Jacobians, D width, A attributes.
"""

import numpy as np

from experiments.language import probing, ridge, swapping
from experiments.language.prompt_set import COPIES, PromptSet
from geomem.pretrained import relational

CONTROL = {'control': 'relational embedding'}


def measure(prompts: PromptSet, setting, seed: int) -> list[dict]:
  """Faithfulness and edits of the model's own linearization, on the third group of subjects.

  Of the relations of which it knows enough examples, and a fact in each of the other two groups.
  """
  fit_T, choose_S, report_S = groups = swapping.split(seed, len(prompts.table.subjects))
  rng, records, embeddings, observed = np.random.default_rng((seed, 9)), [], {}, prompts.observed
  for r, relation in enumerate(prompts.relations):
    known_S = observed['known'][:, r]
    example_E = rng.permutation(fit_T[known_S[fit_T]])[: setting.examples]
    if relation.name in COPIES or len(example_E) < setting.examples:
      continue
    if not (known_S[choose_S].any() and known_S[report_S].any()):
      continue
    layers, s_ExTxD = setting.jacobian_layers, observed['subject'][example_E]
    jacobian_JxExDxD = np.stack([prompts.jacobian(r, s, layers) for s in example_E], axis=1)
    o_ExD = observed['final'][example_E, r]
    embeddings[r] = {
      layer: relational.embedding(jacobian_ExDxD, s_ExTxD[:, layer], o_ExD)
      for layer, jacobian_ExDxD in zip(layers, jacobian_JxExDxD, strict=True)
    }
    records += _faithfulness(prompts, setting, seed, r, embeddings[r], groups)
  dev, test = (swapping.draw(prompts, seed, fit_T, group) for group in (choose_S, report_S))
  dev, test = (swaps[swaps['relation'].isin(embeddings)] for swaps in (dev, test))
  if dev.empty or test.empty:
    return records

  def edits(swaps, layer, rank) -> np.ndarray:
    of = lambda r, *rows: _edits(prompts, fit_T, embeddings[r][layer][0], rank, r, *rows)
    return swapping.by_relation(swaps, of)

  tried = {
    (layer, rank): edits(dev, layer, rank)
    for layer in setting.jacobian_layers for rank in setting.ranks
  }  # fmt: skip
  (layer, chosen), _ = swapping.best(prompts, dev, tried)
  for rank in setting.ranks:
    found = swapping.outcomes(prompts, layer, test, edits(test, layer, rank))
    fields = {'seed': seed, 'subjects': len(report_S), 'layer': layer, 'rank': rank, **CONTROL}
    records += swapping.records_of(prompts, found, fields | {'chosen': rank == chosen})
  return records


def _faithfulness(prompts: PromptSet, setting, seed, r, embeddings, groups) -> list[dict]:
  """How often a linear map from the representation predicts what the model does: by Jacobian, and by ridge."""
  relation, observed = prompts.relations[r], prompts.observed
  fit_T, dev_S, test_S = (groups[0], *(g[observed['known'][g, r]] for g in groups[1:]))
  guess = lambda S, layer, beta: relational.predict(
    embeddings[layer], observed['subject'][S, layer], beta
  )
  agrees = lambda S, *at: prompts.predict(r, guess(S, *at)) == observed['predicted'][S, r]
  tried = [(layer, beta) for layer in embeddings for beta in setting.betas]
  layer, beta = max(tried, key=lambda at: agrees(dev_S, *at).mean())
  about = {'seed': seed, 'relation': relation.name, 'subjects': len(test_S)}
  one_S, at = np.ones(len(test_S)), {'layer': layer, 'beta': beta, **CONTROL}
  final_SxD = observed['final'][test_S, r]
  same_S = prompts.runner.predict(guess(test_S, layer, beta)) == prompts.runner.predict(final_SxD)
  records = [
    prompts.record('faithful', agrees(test_S, layer, beta), one_S, **about, **at),
    prompts.record('faithful, all tokens', same_S, one_S, **about, **at),
  ]
  features = {layer: observed['subject'][:, layer] for layer in embeddings}
  for layer, x_SxD in {**features, None: observed['last_token']}.items():
    kernel = ridge.kernel(x_SxD)
    guess_SxD = ridge.predict([kernel], prompts.mean_embedding(r), fit_T, test_S)
    near_S = relation.token_A[probing.nearest(prompts.embeddings[r], guess_SxD)]
    control = 'own token' if layer is None else 'fitted readout'
    same_S = near_S == observed['predicted'][test_S, r]
    records.append(prompts.record('faithful', same_S, one_S, **about, layer=layer, control=control))
  return records


def _edits(
  prompts: PromptSet, fit_T, w_DxD, rank: int, r: int, subject_W, attribute_W
) -> np.ndarray:
  """The pseudo-inverse's edits, from the own final residual to the mean of those with the wanted attribute."""
  known_T = fit_T[prompts.observed['known'][fit_T, r]]
  have = [known_T[prompts.relations[r].correct_SxA[known_T, a]] for a in attribute_W]
  final_SxD = prompts.observed['final'][:, r]
  wanted_WxD = np.stack([final_SxD[h if len(h) else known_T].mean(axis=0) for h in have])
  return (wanted_WxD - final_SxD[subject_W]) @ relational.inverse(w_DxD, rank).T
