"""A real pretrained language model: is there a superposition, and is it used? Claim 8.

  make language-model
  python -m experiments.language_model --model=FOLDER --table=MINE.csv

Expected, from a trial with one seed: attributes explain about 0.1 of the representations of held-out
countries (shuffled facts 0.00), less than the subject's own token (0.3 to 0.4); moving a representation
along one attribute's vector flips that answer in more than half of the cases, and keeps the others in
about as many; whole vectors stop carrying the fact after block 23 of 30. What was found stands in
docs/language_model.md; the bounds of its table were set when that was known. Controls: shuffled facts,
random directions, class means, whole donors, the token alone, linear relational embeddings.
The laptop preset takes 2.1 GB of memory; accelerator asks for more frames, seeds and places.
"""

import dataclasses
import functools
import hashlib
import json
import time
import zlib
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import claims
from experiments.figures import language_model as language_model_figure
from experiments.harness import cli, fitting, statistics, storage
from experiments.harness.findings import Finding, found, only
from experiments.language import explained, linearized, scenes, swapping
from geomem.errors import InputError
from geomem.pretrained import asking, load

FLAGS = flags.FLAGS
fitting.define('language_model', claims.minutes('language_model'), first=0)
cli.define(
  table='Your own CSV of subject,relation,attribute instead; several rows for several answers.'
)
_MODEL = flags.DEFINE_string(
  'model', None, 'Folder of safetensors, or GGUF file (default: the packaged SmolLM2-135M).'
)

DATA = Path(__file__).parent / 'data'
COLUMNS = ('table', 'measurement', 'features', 'control', 'place', 'dose', 'records', 'value', 'least', 'most')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  """`most`: subjects. `places`: looked at; `edits`: where swaps are tried, `linearized`: where Jacobians
  are taken, both as shares of the depth. `doses`: reported; `choices`: chosen from. `pairs`: donors.
  """

  most: int | None
  frames: int
  seeds: int
  places: int
  edits: tuple[float, ...]
  linearized: tuple[float, ...]
  doses: tuple[float, ...]
  choices: tuple[float, ...]
  shuffles: int
  pairs: int
  examples: int
  betas: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0)
  ranks: tuple[int, ...] = (10, 30, 100, 300)
  tables: tuple[str, ...] = ('countries', 'elements')
  model: str | None = None
  weights: int | None = None
  facts: str | None = None

  def at_depth(self, depth: int) -> 'Setting':
    """Places as numbers of blocks."""
    every = sorted({round(share) for share in np.linspace(0, depth, min(self.places, depth + 1))})
    number = lambda shares: tuple(sorted({min(depth - 1, round(s * depth)) for s in shares}))
    return dataclasses.replace(
      self, places=every, edits=number(self.edits), linearized=number(self.linearized)
    )


PRESETS = {
  'smoke': Setting(20, 1, 1, 4, (0.6,), (0.95,), (2.0,), (2.0,), 1, 2, 1, (1.0,), (30,), ('countries',)),
  'laptop': Setting(None, 2, 2, 16, (0.2, 0.6), (0.5,), (0.5, 1.0, 2.0, 3.0, 4.0, 6.0), (1.0, 2.0, 4.0), 3, 12, 4),
  'accelerator': Setting(None, 3, 5, 99, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), (0.5, 1.0, 2.0, 3.0, 4.0, 6.0), 20, 64, 8),
}  # fmt: skip


loaded = functools.lru_cache(maxsize=1)(load.load)


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records: all of the first table, what is linear of the others; what is costly takes frames in turn."""
  tables = _tables(setting)
  model = loaded(setting.model)
  progress = cli.Progress('asking', 'prompts')
  asker = asking.Asker(model, progress)
  here = setting.at_depth(model.config.depth)
  stage = functools.partial(_stage, fitter)
  records = []
  for number, table in enumerate(tables):
    frames = 1 if number else min(setting.frames, len(table.frames))
    for frame in range(frames):
      progress.label = f'{table.name}, frame {frame}'
      places = tuple(sorted({*here.edits, here.linearized[0]}))
      scene = scenes.Scene(asker, table, frame, places)
      scene.seen = stage('observe', scene.observe)
      found = [stage('knowledge', _recorded(explained.knowledge, scene))]
      for seed in seeds:
        work = [(explained.superposition, here.places, seed, setting.shuffles),
                (explained.readout, here.places, seed)]  # fmt: skip
        if number == 0 and (seed - seeds[0]) % frames == frame:
          work += [(swapping.measure, here, seed), (swapping.depth, here, seed)]
          if seed == seeds[0]:
            work.append((linearized.measure, here, seed))
        for function, *rest in work:
          found.append(
            stage(f'{function.__module__}.{function.__name__}', _recorded(function, scene, *rest))
          )
      records += [record for part in found for record in json.loads(bytes(part))]
  progress.clear()
  return records


def _tables(setting: Setting) -> list[scenes.Table]:
  if setting.facts:
    return [scenes.read('own', setting.facts, setting.most)]
  return [scenes.read(n, DATA / f'{n}.csv', setting.most) for n in setting.tables]


def _recorded(function, *arguments):
  """The records, as bytes: an array, as everything is that a run keeps."""
  return lambda: np.frombuffer(json.dumps(function(*arguments)).encode(), np.uint8)


def _stage(fitter, name: str, work):
  """What the work finds, or found before the run was killed; kept, when it is time to."""

  def timed():
    start = time.monotonic()
    found = work()
    fitter.run.log({'stage': name, 'seconds': time.monotonic() - start})
    return found

  return fitter.once(timed)


def summary(records: list[dict]) -> list[dict]:
  """Means and ranges over seeds, frames and relations; of the places some, of swaps what was chosen."""
  deep = max((r['place'] or 0 for r in records), default=0)
  shown = {None, *(round(share * deep) for share in (0, 0.3, 0.6, 1.0))}
  rows = []
  for r in records:
    if r['measurement'] in ('flipped', 'kept'):
      if r['chosen'] and r['relation'] is None:
        rows.append({**r, 'place': None, 'dose': None})
    elif r['measurement'] not in ('chosen', 'example', 'kept one') and r['place'] in shown:
      rows.append({**r, 'dose': None})
  rows = [{**r, 'features': r.get('features') or r['relation']} for r in rows]
  grouped = statistics.over_seeds(
    rows, 'table', 'measurement', 'features', 'control', 'place', 'dose'
  )
  return [{**row, 'records': row['seeds']} for row in grouped]


def findings(records: list[dict]) -> list[Finding]:
  """Of the first table: what explains a subject six tenths up, and what the chosen swaps do, over all runs."""
  own = statistics.where(records, table=records[0]['table'])
  middle = round(0.6 * max(r['place'] or 0 for r in own))
  of = lambda measurement, **about: only(own, measurement=measurement, **about)
  at = {'place': middle, 'features': 'attributes'}
  text = f'after block {middle}: R² of '
  shuffled = {'shuffled_facts': of('R2', control='shuffled facts', **at)}
  tokens = {'own_token': of('R2', control=None, **at | {'features': 'own token'})}
  own_R2 = {'measurement': 'R2', 'control': None, **at}
  found_all = _found(text + 'attributes', own, own_R2, 0.05, **shuffled, **tokens)
  both = {'measurement': 'gain', 'control': None, **at, 'features': 'own token + attributes'}
  found_all += _found(text + 'attributes beyond the own token', own, both, 0.01)
  chosen = {'chosen': True, 'relation': None}
  beside = ('shuffled facts', 'random direction', "donor's whole vector")
  for name, says, least in (
    ('flipped', 'swaps that flip the answer', 0.5),
    ('kept', 'other answers kept', 0.9),
  ):
    controls = {
      control.replace(' ', '_'): of(name, control=control, **chosen) for control in beside
    }
    swapped = {'measurement': name, 'control': 'superposition', **chosen}
    found_all += _found(says, own, swapped, least, **controls)
  return found_all


def _found(what: str, records, about: dict, least: float, **controls) -> list[Finding]:
  """A finding whose interval is over subjects, averaged over the runs, which share them."""
  those = statistics.where(records, **about)
  ends = (
    [{name: float(np.mean([r[name] for r in those]))} for name in ('low', 'high')] if those else []
  )
  found_all = found(what, [r['value'] for r in those], least, **controls)
  return [dataclasses.replace(f, **ends[0], **ends[1]) for f in found_all]


def told(records: list[dict]) -> str:
  """The examples, a line each: Japan, continent → Africa: now says Africa; others …"""
  found = [r for r in records if r['measurement'] == 'example']
  lines = []
  for r in found:
    if (r['seed'], r['frame']) != (found[0]['seed'], found[0]['frame']):
      continue
    own = r['relation']
    others = ', '.join(
      f'{name} {text}' + ('' if text == r['before'][name] else f' (was {r["before"][name]})')
      for name, text in r['after'].items()
      if name != own
    )
    lines.append(
      f'{r["subject"]}, {own} {r["before"][own]} → {r["wanted"]}: now says {r["after"][own]}; {others}'
    )
  return '\n'.join(lines)


def main(argv):
  cli.no_arguments(argv)
  cli.workdir('runs/language_model')
  presets = PRESETS
  if FLAGS.redraw:
    cli.check_redraw('model', 'table')
  elif FLAGS.scale in PRESETS:
    presets = {FLAGS.scale: _chosen(PRESETS[FLAGS.scale])}
  draw = language_model_figure.draw
  fitting.main(argv, 'language_model', presets, measure, draw, COLUMNS, summary, first=0)
  folder = cli.workdir('runs/language_model')
  text = told(storage.read_results(folder))
  storage.write_text(folder / 'examples.txt', text + '\n')
  print(f'examples: {folder / "examples.txt"}\n{text}')


def _chosen(setting: Setting) -> Setting:
  """The preset with the flags' model and table, tried before anything is written."""
  facts = FLAGS.table
  if facts is not None:
    scenes.read('own', facts, setting.most)
    digest = hashlib.sha256(Path(facts).read_bytes()).hexdigest()[:12]
    setting = dataclasses.replace(setting, tables=(digest,))
  if _MODEL.value is None and (reason := load.missing()):
    raise InputError(f'{reason}; or name another with --model')
  weights = mark(loaded(_MODEL.value).params)  # so that a run goes on with no other model
  return dataclasses.replace(setting, model=_MODEL.value, weights=weights, facts=facts)


def mark(params) -> int:
  """A number that other parameters would hardly have."""
  crc = lambda known, weights: zlib.crc32(np.ascontiguousarray(weights), known)
  return functools.reduce(crc, jax.tree.leaves(params), 0)


if __name__ == '__main__':
  cli.run(main)
