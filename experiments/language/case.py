"""Relations as asked of a language model, the vectors learned for them, and subjects with random facts."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from geomem.errors import InputError
from geomem.pretrained import fact_encoder, load, prompts, wordings
from geomem.pretrained.fact_encoder import FactEncoder, Training
from geomem.pretrained.load import Pretrained
from geomem.pretrained.prompts import Prompts, Relation
from geomem.pretrained.wordings import Wordings

DATA = Path(__file__).parents[1] / 'data'
ModelFile = Annotated[
  str | None, 'Folder of safetensors, or GGUF file (default: the packaged SmolLM2-135M).'
]
loaded = functools.lru_cache(maxsize=1)(load.load)
HELD_OUT = 0.25  # fraction of all answer tuples
FRAMES, WORDINGS = 3, 8  # at most so many of each in which subjects are asked


def record(measurement: str, value: Any, **about: Any) -> dict:
  return {'measurement': measurement, 'value': float(np.mean(value)), **about}


class Case:
  """Relations as asked of a model, and the vectors learned for them. `ask(new_frames=, new_wordings=)`: its prompts, with
  frames or wordings that no training prompt had."""

  def __init__(
    self, model: Pretrained, table: str, size: tuple[int, int], number: int, preset: Any, seed: int
  ):
    packaged = DATA / f'{table}.csv'
    own = wordings.read(packaged if packaged.exists() else table)
    relations, answers = size
    if relations > len(own.answers):
      raise InputError(f'{table}: {len(own.answers)} relations; {relations} are asked for')
    number = min(number, *map(len, own.wordings.values()))
    self.model, self.own, self.subjects, self.wordings = model, own, preset.asked, number
    self._chosen = {
      'names': tuple(own.answers)[: relations or None],
      'answers': answers or None,
      'wordings': number,
    }
    self.asked = self.ask()
    per_relation = len(self.asked.relations) if preset.per_relation else 1
    steps = round(preset.steps * preset.times * per_relation)
    self.training = Training(steps=steps, batch=preset.batch, held_out=HELD_OUT, seed=seed)
    self.label = table if packaged.exists() else f'{Path(table).stem} (own)'
    self.label += f', {preset.times:g} times the steps' if preset.times != 1 else ''
    self.few_P = few_prompts(self.asked, len(own.frames))
    self.shuffled = preset.shuffled
    if self.shuffled:
      self.label += ', shuffled'
      self.asked = reassigned(self.asked)
    if len(self.asked.relations) == 1:  # then a held-out tuple is an answer that was never trained
      self.training = dataclasses.replace(self.training, held_out=0.0)
    first = np.unique(self.asked.relation_P, return_index=True)[1]
    self.first_P = first  # the first prompt of every relation
    self.some_P = np.concatenate([first + i for i in range(number)])  # those in the first frame

  def ask(self, **new: Any) -> Prompts:
    chosen: Any = self._chosen | ({'wordings': None} if new.get('new_wordings') else {})
    return prompts.tokenize(self.model, self.own.relations(**chosen, **new))

  def of_no_relation(self) -> list[Prompts]:
    """Prompts in the wordings that ask for no relation, with the answers of each relation."""
    frame = self.own.frames[0]
    texts = tuple(f'{frame} {wordings.sentence(text)}' for text in self.own.no_relation)
    own = [Relation(r.name, r.answers, texts) for r in self.asked.relations] if texts else []
    return [prompts.tokenize(self.model, [relation]) for relation in own]

  def learn(self, trainer, label: str):
    """Learn the vectors, from where the run was interrupted if it was."""
    report = lambda done, total, loss: trainer.on_progress(done, total, label)
    self.encoder = FactEncoder.fit(self.model, self.asked, self.training, report, trainer.cached)

  def rng(self, *number: int) -> np.random.Generator:
    return np.random.default_rng((self.training.seed, 4, *number))

  def tuples(self, held_out: bool | None = None) -> np.ndarray:
    """Answers RxN of the subjects asked: held-out tuples, if there are any."""
    held_out = self.training.held_out > 0 if held_out is None else held_out
    about = self.asked, self.training, self.subjects, self.rng(held_out), held_out
    return fact_encoder.draw_subjects(*about)


def reassigned(asked: Prompts) -> Prompts:
  """The same prompts, with each relation's wordings taken from all relations in turn: what a relation means is arbitrary."""
  count = len(asked.relations)
  position_P = np.concatenate([np.arange(np.sum(asked.relation_P == r)) for r in range(count)])
  return dataclasses.replace(asked, relation_P=(asked.relation_P + position_P) % count)


def few_prompts(asked: Prompts, frames: int) -> np.ndarray:
  """The prompts in the first of `frames` frames, and in wordings from the first to the last; a relation's prompts are
  consecutive, one frame after another."""
  kept = []
  for count in np.bincount(asked.relation_P):
    own = count // frames  # wordings
    asked_W = np.linspace(0, own - 1, min(own, WORDINGS)).round()
    kept += [i // own < FRAMES and i % own in asked_W for i in range(count)]
  return np.flatnonzero(kept)


def new_prompts(own: Wordings) -> list[tuple[str, ...]]:
  frames, texts = bool(own.new_frames), all(own.new_wordings.values())
  kinds = [('new_frames',)] * frames + [('new_wordings',)] * texts
  return kinds + [('new_frames', 'new_wordings')] * (frames and texts)
