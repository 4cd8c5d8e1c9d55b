"""The prompts of one table of facts in one template, the model's activations on them, and records.

Shapes: S subjects, R relations, T layers, L length, D width, A attributes of a relation, B prompts.
"""

import dataclasses
import functools

import numpy as np

from geomem import tables
from geomem.errors import InputError
from geomem.pretrained.decoder import Patch, Prefix
from geomem.pretrained.runner import Runner, Template, relations, tokenize

TEMPLATES = {
  'countries': (
    Template('Here are some facts about ', {
      'continent': '. The country lies on the continent of', 'capital': '. The capital city is',
      'language': '. The official language is', 'demonym': '. The people there are called'}),
    Template('A question about ', {
      'continent': ', a country on the continent of', 'capital': ', whose capital is',
      'language': ', where people speak', 'demonym': ', the country of the'}),
  ),
}  # fmt: skip
COPIES = ('demonym',)  # spelled like the subject: its tokens show it
SHARED = 3  # subjects that must have an attribute for it to have its own vector
NULLABLE = 'seed', 'relation', 'features', 'control', 'layer', 'alpha', 'chosen', 'low', 'high'


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """`rows`: relation → subject → attributes. `templates`: at least one."""

  name: str
  rows: dict
  subjects: tuple[str, ...]
  templates: tuple[Template, ...]

  @property
  def superposed(self) -> tuple[int, ...]:
    """Relations whose attributes may make up the representation."""
    return tuple(r for r, name in enumerate(self.rows) if name not in COPIES)


def read(name: str, path, max_subjects: int | None = None) -> Table:
  """The table in a file, or `max_subjects` random subjects of it and their relations."""
  rows = tables.read_many(path)
  subjects = sorted({subject for column in rows.values() for subject in column})
  if len(subjects) < 16:
    raise InputError(f'{path}: {len(subjects)} subjects; at least 16 are needed to hold some out')
  if max_subjects and max_subjects < len(subjects):
    chosen = np.random.default_rng(0).permutation(len(subjects))[:max_subjects]
    subjects = [subjects[i] for i in sorted(chosen)]
    rows = {r: column for r, column in rows.items() if not column.keys().isdisjoint(subjects)}
  plain = Template('Here are some facts about ', {r: f'. The {r} is' for r in rows})
  templates = TEMPLATES.get(name, (plain,))
  known = rows.keys() <= templates[0].after.keys()
  return Table(name, rows, tuple(subjects), templates if known else (plain,))


class PromptSet:
  """Every subject × relation of a table in one template. `observed`: what `observe` returned, once it has run.

  `layers`: those at which prompts can be patched, besides the embedding.
  """

  observed: dict[str, np.ndarray]

  def __init__(self, runner: Runner, table: Table, template: int, layers):
    self.runner, self.table, self.template, self.layers = runner, table, template, (0, *layers)
    about = runner.model, table.rows, table.subjects, table.templates[template]
    self.relations, self.tokenized = relations(*about), tokenize(*about)
    self.tokens_VxD = np.asarray(runner.model.params['embed']['tokens'])

  @functools.cached_property
  def _prefix(self):
    return self.runner.keys_values(self.tokenized.prefix_SxO)

  def prefix(self, subjects) -> Prefix:
    k, v = self._prefix
    return Prefix(k[subjects], v[subjects], self.tokenized.prefix_length_S[subjects])

  @functools.cached_property
  def _residuals(self):
    """Residuals: of the subjects SxTxD, of the prompts' ends SxRxD, and of all tokens at `layers`, by relation."""
    t, prefix = self.tokenized, self.prefix(slice(None))
    subject, final, streams = zip(*(
      self.runner.residuals(t.tokens_SxRxL[:, r], prefix, t.last_SxR[:, r], self.layers)
      for r in range(len(self.relations))
    ), strict=True)  # fmt: skip
    return subject[0], np.stack(final, axis=1), np.stack(streams)

  def observe(self) -> dict[str, np.ndarray]:
    """The model's activations and answers for the unpatched prompts.

    subject SxTxD: residuals at the subject's last token. final SxRxD: those at the prompt's end. predicted SxR: the
    answer among the relation's attributes. known SxR: whether it is right. last_token, name SxD: the input
    embedding of the subject's last token, and the mean over its name.
    """
    subject_SxTxD, final_SxRxD, _ = self._residuals
    predicted = [self.predict(r, final_SxRxD[:, r]) for r in range(len(self.relations))]
    known = [
      (relation.correct_SxA & (relation.token_A == predicted_S[:, None])).any(axis=1)
      for relation, predicted_S in zip(self.relations, predicted, strict=True)
    ]
    return {
      'subject': subject_SxTxD,
      'final': final_SxRxD,
      'predicted': np.stack(predicted, axis=1),
      'known': np.stack(known, axis=1),
      'last_token': self.tokens_VxD[self.tokenized.tokens_SxRxL[:, 0, 0]],
      'name': self._embedded(self.table.subjects),
    }

  def _embedded(self, texts) -> np.ndarray:
    """The mean input embedding of each text's tokens."""
    tokens = [self.runner.model.tokenizer.encode(f' {text}').ids for text in texts]
    return np.stack([self.tokens_VxD[ids].mean(axis=0) for ids in tokens])

  @functools.cached_property
  def embeddings(self) -> list[np.ndarray]:
    """The input embeddings of each relation's attributes, AxD."""
    return [self._embedded(relation.attributes) for relation in self.relations]

  def mean_embedding(self, r: int) -> np.ndarray:
    """The mean input embedding of each subject's attributes, SxD."""
    correct_SxA = self.relations[r].correct_SxA.astype(float)
    count_S = np.maximum(correct_SxA.sum(axis=1, keepdims=True), 1)
    return correct_SxA @ self.embeddings[r].astype(np.float64) / count_S

  def predict(self, r_B, final_BxD) -> np.ndarray:
    """The most likely token among the attributes of the relation asked, which is one for all prompts, or one each."""
    r_B, predicted_B = np.broadcast_to(r_B, len(final_BxD)), np.empty(len(final_BxD), int)
    for r in np.unique(r_B):
      token_A, rows = self.relations[r].token_A, r_B == r
      predicted_B[rows] = token_A[self.runner.logits(final_BxD[rows], token_A).argmax(axis=1)]
    return predicted_B

  def patched(self, r_B, subjects_B, layer_B, scale: float, add_BxD, first=None) -> np.ndarray:
    """Final residuals BxD of prompts whose subjects are patched at a layer, which is one for all, or one each.

    `first`: the layer to run from, if it is not the patched one.
    """
    first = layer_B if first is None else first
    x_BxLxD = self._residuals[2][r_B, subjects_B, self.layers.index(first)]
    last_B = self.tokenized.last_SxR[subjects_B, r_B]
    each = lambda value: np.broadcast_to(value, len(add_BxD))[:, None]
    added_Bx1xD = np.asarray(add_BxD, np.float32)[:, None]
    patch = Patch(each(layer_B), each(0), each(np.float32(scale)), added_Bx1xD)
    return self.runner.patched(x_BxLxD, first, patch, self.prefix(subjects_B), last_B)

  def shared(self, r: int, subjects=slice(None)) -> np.ndarray:
    """Which attributes at least `SHARED` of these subjects have."""
    return self.relations[r].correct_SxA[subjects].sum(axis=0) >= SHARED

  def record(self, measurement: str, value, total_S=1, **fields) -> dict:
    """A record, in which inapplicable fields are null; values per subject become their sum over that of the totals."""
    value = ratio(value, total_S) if np.ndim(value) else {'value': value}
    return {
      'measurement': measurement, 'model': self.runner.model.name,
      'table': self.table.name, 'template': self.template, 'subjects': len(self.table.subjects),
      **dict.fromkeys(NULLABLE), **fields, **value,
    }  # fmt: skip


def ratio(top_S, bottom_S) -> dict[str, float]:
  """Σ top / Σ bottom over subjects, with its 95% percentile bootstrap interval.

  `scipy.stats.bootstrap` refuses a single subject, and cannot leave out the draws in which Σ bottom is 0.
  """
  top_S, bottom_S = np.broadcast_arrays(np.asarray(top_S, float), bottom_S)
  if not bottom_S.any():
    return dict.fromkeys(('value', 'low', 'high'), np.nan)
  drawn = np.random.default_rng(0).integers(len(top_S), size=(2000, len(top_S)))
  top, bottom = top_S[drawn].sum(axis=1), bottom_S[drawn].sum(axis=1)
  low, high = np.quantile(top[bottom > 0] / bottom[bottom > 0], (0.025, 0.975))
  return {'value': float(top_S.sum() / bottom_S.sum()), 'low': float(low), 'high': float(high)}
