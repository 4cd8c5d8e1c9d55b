"""Write a zoo of models with ground truth: every construction at up to four stages, each hiding more.

  python -m experiments.zoo
  python -m experiments.zoo --list
  python -m experiments.zoo --construction=selector --construction=keyvalue --seeds=1 --workdir=runs/small

Stages: built, as the theorem writes it; disguised, the same function with its residual stream rotated, and its hidden
units and heads permuted and rescaled; retrained, the disguised model with noise on every weight, trained on its facts
again; scratch, the same architecture trained from random weights. WORKDIR/models/ID holds model.safetensors and
config.json, WORKDIR/truth/ID.json what is known inside: which units serve which relation, which subspace of a
subject's embedding holds the answers to which relation, which slots every head reads. For a model from scratch only
its facts are known. WORKDIR/manifest.json lists all models, with checksums, the accuracy on every query and how much
of the truth ablation confirms; models that fall short of it are left out, and named there. In Python:

  model, truth = zoo.load('runs/zoo', 'selector-N16-R2-s0-disguised')
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from constructions import registry
from experiments.harness import cli, instances, machine, records, render, stages
from experiments.harness.stages import STAGES, ZooModel
from experiments.harness.trainer import Progress
from geomem import export
from geomem.config import Config
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.inside.truth import Truth
from geomem.saved import atomic
from geomem.training import sweeps

MANIFEST, FORMAT = 'manifest.json', 'geomem zoo'
SIZES = (16, 2), (24, 3)  # subjects, relations
HOPS = 2  # for constructions that answer several
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
  'selector_multilevel': ({'bits': 2},),
  'selector_coded': ({'noise': 0.3},),
  'factored': ({'hops_per_layer': 2},),
  'few_thoughts': ({'thoughts': 0},),
}
NOISES, STEPS = (0.1, 0.03, 0.01), 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  construction: Annotated[tuple[str, ...], 'Only these constructions (default: all).'] = ()
  seeds: int = 2
  workdir: str = 'runs/zoo'
  list: bool = False


@dataclasses.dataclass(frozen=True)
class Variant:
  """A construction with its options; there is a model of it for every size and seed."""

  name: str
  options: dict[str, Any]

  @property
  def title(self) -> str:
    return '-'.join([self.name, *(f'{key}={value}' for key, value in self.options.items())])

  def identity(self, size: tuple[int, int], seed: int, stage: str) -> str:
    return f'{self.title}-N{size[0]}-R{size[1]}-s{seed}-{stage}'

  def build(self, size: tuple[int, int], seed: int):
    known = registry.entry(self.name)
    facts = instances.random_facts('bijections', *size, seed, known.own_answers)
    return registry.build(self.name, facts, HOPS if known.multi_hop else 1, **self.options)


def variants(names: tuple[str, ...] = ()) -> list[Variant]:
  """All variants of the zoo, or those of the named constructions."""
  for name in names:
    registry.entry(name)
  return [
    Variant(name, options)
    for name in names or registry.names() for options in ({}, *VARIANTS.get(name, ()))
  ]  # fmt: skip


def load(folder: str | os.PathLike, name: str) -> tuple[FactModel, Truth | None]:
  """A model of the zoo in this folder, and what is known inside it, if anything; refused if a file has changed."""
  folder = Path(folder)
  every = {entry['id']: entry for entry in manifest(folder)['models']}
  if name not in every:
    raise InputError(f'{folder}: no model {name!r}; {len(every)} are in {MANIFEST}')
  for path, digest in every[name]['files'].items():
    if atomic.digest(folder / path) != digest:
      raise InputError(f'{folder / path}: missing, or not the file that {MANIFEST} describes')
  model = export.load(folder / 'models' / name)
  truth = json.loads((folder / 'truth' / f'{name}.json').read_text(encoding='utf-8'))
  known = truth['known'] and Truth.from_plain(truth['known'], model.facts.relations)
  return model, known


def manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """The manifest of the zoo in this folder."""
  path = Path(folder, MANIFEST)
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    raise InputError(f'{folder}: no zoo there; python -m experiments.zoo writes one') from None
  if fields.get('format') != FORMAT:
    raise InputError(f'{path}: not of a zoo')
  return fields


def main(options: Options) -> None:
  some, seeds = variants(options.construction), cli.seeds(0, options.seeds)
  if options.list:
    print(render.table([
      {'id': variant.identity(size, seed, stage), 'how': registry.entry(variant.name).summary}
      for variant in some for size in SIZES for seed in seeds for stage in STAGES
    ]))  # fmt: skip
    return
  folder = cli.writable(options.workdir)
  machine.one_device_per_core()
  machine.compile_quickly()
  entries: list[dict] = []
  left_out: list[dict] = []
  with Progress('zoo', folder) as progress:
    for done, variant in enumerate(some):
      progress(done, len(some), variant.title)
      for entry, good in write_variant(folder, variant, list(itertools.product(SIZES, seeds))):
        (entries if good else left_out).append(entry)
  about = {'format': FORMAT, 'license': 'Apache-2.0', 'steps': STEPS, **machine.made_with()}  # fmt: skip
  fields = {**about, 'models': entries, 'left_out': left_out}
  records.write_text(folder / MANIFEST, json.dumps(fields, indent=1))
  size = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
  print(f'{len(entries)} models, {size / 1e6:.1f} MB: {folder / MANIFEST}')
  for entry in left_out:
    print(f'left out: {entry["id"]}: right {entry["accuracy"]:.3f}, found {entry["found"]}')


def write_variant(
  folder: Path, variant: Variant, sized: Sequence[tuple[tuple[int, int], int]]
) -> Iterator[tuple[dict, bool]]:
  """Write every model of a variant and yield its manifest entry; models that fall short are left out."""
  built = [variant.build(*one) for one in sized]
  groups: dict[Config, list[int]] = {}
  for i, one in enumerate(built):  # one program trains models that differ only in size
    groups.setdefault(sweeps.unsized(one.config), []).append(i)
  for group in groups.values():
    own, seeds = [built[i] for i in group], [sized[i][1] for i in group]
    for i, row in zip(group, stages.at_all_stages(own, seeds, NOISES, STEPS), strict=True):
      size, seed = sized[i]
      for member in row:
        if (
          not member.confirmed and member.stage in STAGES[:2] and registry.entry(variant.name).exact
        ):
          raise AssertionError(f'{variant.title}: its truth is not borne out: {member.found}')
        entry = described(variant, size, seed, member)
        if member.confirmed:
          entry['files'] = write(folder, entry['id'], member)
        yield entry, member.confirmed


def described(
  variant: Variant, size: tuple[int, int], seed: int, member: ZooModel
) -> dict[str, Any]:
  model = member.model
  return {
    'id': variant.identity(size, seed, member.stage), 'construction': variant.name, 'options': variant.options,
    'subjects': size[0], 'relations': size[1], 'hops': model.hops, 'chain_of_thought': model.chain_of_thought,
    'seed': seed, 'stage': member.stage, 'noise': member.noise, 'dim': model.config.dim,
    'parameters': sum(np.size(weight) for weight in jax.tree.leaves(model.params)),
    'queries': model.queries, 'accuracy': member.accuracy, 'min_margin': member.min_margin, 'found': member.found,
  }  # fmt: skip


def write(folder: Path, name: str, member: ZooModel) -> dict[str, str | None]:
  """Write the model and its truth; return the checksums of all files."""
  target = folder / 'models' / name
  export.write(target, member.model.replace(name=name))
  truth = folder / 'truth' / f'{name}.json'
  truth.parent.mkdir(parents=True, exist_ok=True)
  facts = member.model.facts.answers_RxN.tolist()
  known = member.truth.plain() if member.truth else None
  records.write_text(truth, json.dumps({'facts': facts, 'known': known}))
  files = (target / export.WEIGHTS, target / export.DESCRIPTION, truth)
  return {path.relative_to(folder).as_posix(): atomic.digest(path) for path in files}


if __name__ == '__main__':
  cli.run(main, Options)
