"""Train what an experiment asks for, in a run that can be killed at any time and taken up again.

An experiment asks for sweeps one after another, each a function of what came before. A checkpoint
holds what the finished ones found and the states of the one under way; started again, the
experiment asks for the same, is answered from the checkpoint as far as that goes, and trains on.
Other code may ask for something else, and is refused.
"""

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import jax
import numpy as np
from absl import flags

from experiments.harness import cli, machine, storage
from geomem import hosts
from geomem.errors import InputError
from geomem.saved import runs
from geomem.training import batched, optimization, scheduling
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # so that --help of an experiment lists what is defined here for it
FIRST = 100  # the first seed of what is measured: settings were chosen on those below
UNCHANGING = ('workdir', 'redraw', 'save_seconds', 'profile')  # flags that no result depends on
CHANGES = ('scale', 'seed', 'seeds', 'profile', 'save_seconds')  # flags of a run, not of a figure


def define(name: str, minutes: float | None = None, first: int = FIRST):
  """The flags of an experiment that `main` runs; `minutes`: as in `cli.scale`."""
  cli.define(
    'redraw',
    'save_seconds',
    'profile',
    scale=cli.scale(minutes),
    seed=f'The first seed, of parameters and facts (default: {first}).',
    seeds='How many seeds, from --seed on (default: what the preset says).',
    workdir=f'Folder of the run (default: runs/{name}).',
  )


def main(
  argv, name: str, presets: dict, measure: Callable, draw: Callable, columns, summary, first=FIRST,
  quick: bool = True,
):  # fmt: skip
  """An experiment: what `measure` records of a preset, or recorded before; its table and its figure.

  `quick`: compile quickly, as suits short training.
  """
  cli.no_arguments(argv)
  machine.suit_small_models(quick)
  folder = cli.workdir(f'runs/{name}')
  if FLAGS.redraw:
    cli.check_redraw(*CHANGES)
    records = storage.read_results(folder)
  else:
    if FLAGS.scale not in presets:
      raise InputError(f'--scale={FLAGS.scale}: experiments.{name} has {", ".join(presets)}')
    setting = presets[FLAGS.scale]
    seeds = cli.seeds(first, setting.seeds)
    about = {
      'command': command(name),
      'scale': FLAGS.scale,
      'setting': dataclasses.asdict(setting),
      'first': seeds[0],
      'seeds': len(seeds),
    }
    with run(folder, about) as fitter:
      records = measure(fitter, setting, seeds)
      fitter.save()
      storage.write_results(folder, records)
  print(cli.table(columns, summary(records)))
  print('figure: ' + ', '.join(map(str, draw(records, folder))))
  print(f'records: {folder / "results.json"}')


def command(name: str) -> str:
  """What redoes a run: its scale, and what was given of its other flags, but for those that change no result."""
  modules = f'experiments.{name}', sys.argv[0]  # whose its flags are if it is imported, or run
  own = {flag.name: flag for m in modules for flag in FLAGS.get_key_flags_for_module(m)}
  told = [f for o, f in own.items() if o == 'scale' or (f.present and o not in UNCHANGING)]
  told.sort(key=lambda flag: flag.name != 'scale')
  given = [line for flag in told for line in flag.serialize().splitlines()]
  return shlex.join(['python', '-m', f'experiments.{name}', *given])


@contextlib.contextmanager
def run(folder: Path, about: dict):
  """A `Fitter` in `folder`, with progress and whatever else the flags ask for; `about` says what the run is."""
  made = {'code': machine.code(), 'device': machine.device(), 'versions': machine.versions()}
  machine.keep_compiled(folder.parent)
  progress = cli.Training()
  with runs.Run(folder, about | made, cli.warn) as held:
    trace = folder / 'profile' if FLAGS.profile and hosts.first() else None
    fitter = Fitter(held, FLAGS.save_seconds, progress, trace)
    yield fitter
    progress.clear()
    if fitter.trace:
      cli.warn('no profile was written: training was over before it was compiled and under way')


class Fitter:
  """Trains sweeps in a run; `progress` hears of every stretch, `trace` is a folder for a profile of one."""

  def __init__(
    self,
    run: runs.Run,
    save_seconds: float,
    progress: Callable | None = None,
    trace: Path | None = None,
  ):
    self.run, self.save_seconds, self.progress, self.trace = run, save_seconds, progress, trace
    self.number, arrays = run.restore() or (0, {})
    self.finished = [arrays['finished'][i] for i in sorted(arrays.get('finished', {}))]
    self.left = arrays.get('under_way')
    self.asked, self.compiled, self.saved, self.known = 0, False, time.monotonic(), []

  def __call__(self, recipe: Recipe, tasks, rivals=None, rounds: int = 1) -> dict[str, np.ndarray]:
    """As `scheduling.train_tasks`, but what was found before the run was killed is not sought again."""
    return scheduling.train_tasks(recipe, tasks, rivals, self.known, self._fit, rounds)

  def _fit(self, recipe: Recipe, program: scheduling.Program, tasks, rivals) -> np.ndarray:
    return self.once(lambda: scheduling.fit(recipe, program, tasks, rivals, self.follow))

  def measured(self, recipe: Recipe, tasks, function, *more, trained: bool = True) -> dict:
    """What `batched.evaluate` finds of the tasks once they are trained, or as they are."""

    def work():
      laid, states = batched.set_up(recipe, tasks)
      if trained:
        laid, states = self.follow(batched.fit, laid, states)
      return batched.evaluate(laid, states, function, *more)

    return self.once(work)

  def once(self, work: Callable[[], np.ndarray]) -> np.ndarray:
    """What `work` finds, or found before the run was killed."""
    self.asked += 1
    if self.asked > len(self.finished):
      self.finished.append(work())
      if hosts.broadcast(time.monotonic() - self.saved >= self.save_seconds):
        self.save()
    return self.finished[self.asked - 1]

  def follow(self, fit: Callable, laid, states):
    """Train what is laid out to the end, from where the run was left, if it was left in this."""
    if self.left:
      laid = laid.with_rows(np.asarray(self.left['rows']))
      places = jax.tree.map(lambda a: a.sharding, states)
      states = hosts.put(flax.serialization.from_state_dict(states, self.left['states']), places)
      self.left = None
    steps = scheduling.chunk_steps(laid)
    stretches = fit(laid, states, steps)
    while stretch := self._next(stretches, only=steps >= laid.recipe.steps):
      laid, states = stretch
      self._tell(laid, states)
      if hosts.broadcast(time.monotonic() - self.saved >= self.save_seconds):
        self.save(laid, states)
    return laid, states

  def _next(self, stretches, only: bool):
    """The next stretch; one that is compiled, or else the `only` one, is traced, if that is asked for."""
    wanted = self.trace and (self.compiled or only)
    with jax.profiler.trace(self.trace) if wanted else contextlib.nullcontext():
      stretch = next(stretches, None)
    self.compiled = stretch is not None
    if wanted and stretch:
      self.trace = None
    return stretch

  def save(self, laid=None, states=None):
    """Seal what was found, and the states under way."""
    arrays = {'finished': {f'{i:06d}': a for i, a in enumerate(self.finished)}}
    if laid is not None:
      states = flax.serialization.to_state_dict(jax.device_get(hosts.to_host(states)))
      arrays['under_way'] = {'states': states, 'rows': laid.rows}
    self.number += 1
    self.run.save(self.number, {name: value for name, value in arrays.items() if value})
    self.saved = time.monotonic()

  def _tell(self, laid, states):
    status, step, loss = map(laid.of_tasks, (states.status, states.step, states.loss))
    finite = loss[status != optimization.DIVERGED]
    record = {
      'sweep': self.asked,
      'step': int(step.max()),
      'loss': float(np.mean(finite)) if len(finite) else None,
      'models': int(np.sum((status == optimization.RUNNING) & (step < laid.recipe.steps))),
      'solved': float(np.mean(status == optimization.SOLVED)),
      'diverged': int(np.sum(status == optimization.DIVERGED)),
    }
    self.run.log(record)
    if self.progress:
      self.progress(laid.recipe.steps, record)
