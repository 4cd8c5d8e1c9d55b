"""Train what a study requests, in a run that can be killed at any time and resumed.

A study makes one request after another, each a function of the earlier results. A checkpoint holds the results of the
finished requests and the states of the sweep in progress. After a restart the study makes the same requests, is
answered from the checkpoint as far as it goes, and trains on. Different code may make different requests, and is
refused.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import rich.console
import rich.progress

from experiments.harness import cli, machine
from geomem import hosts
from geomem.saved import runs
from geomem.training import optimization, step_time, sweeps
from geomem.training.recipe import Recipe


class Progress(rich.progress.Progress):
  """A progress line on a terminal: what is running, how far it is, how long it will take. `folder`: that of the run."""

  def __init__(self, label: str, folder: Path):
    console = rich.console.Console(stderr=True)
    columns = rich.progress.BarColumn(20), rich.progress.MofNCompleteColumn()
    super().__init__(
      '{task.description}', *columns, rich.progress.TimeRemainingColumn(), console=console,
      transient=True, disable=not (console.is_terminal and hosts.is_first()),
    )  # fmt: skip
    self.folder, self.line = folder, self.add_task(label, total=None)

  def __call__(self, done: int, total: int, label: str | None = None):
    self.update(self.line, completed=done, total=total, description=label)


@contextlib.contextmanager
def training(
  label: str, folder: Path, about: dict, save_seconds: float, profile: bool
) -> Iterator['Trainer']:
  """A trainer for a new or resumed run in a folder. `about` describes the run; the folder of another run is refused."""
  machine.keep_compiled(folder.parent)
  with Progress(label, folder) as progress, runs.Run(folder, about, cli.warn) as run:
    trace = folder / 'profile' if profile and hosts.is_first() else None
    trainer = Trainer(run, save_seconds, progress, trace)
    yield trainer
    if trainer.unsaved:
      trainer.save()
    if trainer.trace:
      cli.warn('no profile was written: training was over before it was compiled and under way')


class Trainer:
  """Trains sweeps in a run. `on_progress(done, total, label)` is called after every chunk; `trace`: a folder for a profile.

  `placement`: the devices that hold the models, and their platform, unless all devices are used. `memory`: the bytes of
  a device, if they are known; what needs more is refused before it starts.
  """

  placement: Mapping[str, Any] = {}
  memory: int | None = None

  def __init__(self, run: runs.Run, save_seconds: float, on_progress: Progress, trace: Path | None):
    self.run, self.save_seconds = run, save_seconds
    self.on_progress, self.trace = on_progress, trace
    self.memory = machine.memory()
    restored: tuple[int, dict] = run.restore() or (0, {})
    self.number, arrays = restored
    self.finished = [arrays['finished'][i] for i in sorted(arrays.get('finished', {}))]
    self.resume_from = arrays.get('under_way')
    self.asked, self.saved, self.unsaved = 0, time.monotonic(), not self.finished

  def set_up(self, recipe: Recipe, tasks, trained: bool = True) -> tuple[sweeps.Sweep, Any]:
    """The tasks as a sweep, and its states before the first step; refused if it is to be trained and does not fit."""
    memory = self.memory if trained else None
    return sweeps.set_up(recipe, tasks, memory=memory, **self.placement)

  def check(self, sweep: sweeps.Sweep, states, function, *more):
    """Refuse an evaluation that does not fit, before its models are trained."""
    if self.memory:
      sweeps.check_evaluation(sweep, states, function, *more, memory=self.memory)

  def train_and_evaluate(
    self, recipe: Recipe, tasks, function, *more, trained: bool = True
  ) -> dict:
    """The results of `sweeps.evaluate` for the tasks once they are trained, or untrained."""

    def work():
      sweep, states = self.set_up(recipe, tasks, trained)
      self.check(sweep, states, function, *more)
      if trained:
        sweep, states = self.run_to_end(sweeps.fit, sweep, states)
      return sweeps.evaluate(sweep, states, function, *more)

    return self.cached(work)

  def evaluate_at(self, stops, recipe: Recipe, tasks, function, *more) -> dict:
    """The results of `sweeps.evaluate` before training and after each of `stops`, in steps: a row per stop."""

    def work():
      sweep, states = self.set_up(recipe, tasks)
      self.check(sweep, states, function, *more)
      found = [sweeps.evaluate(sweep, states, function, *more)]
      for before, stop in itertools.pairwise((0, *stops)):
        states = sweeps.advance(sweep, states, stop - before)
        found.append(sweeps.evaluate(sweep, states, function, *more))
      return jax.tree.map(lambda *arrays: np.stack(arrays), *found)

    return self.cached(work)

  def cached(self, work: Callable):
    """The result of `work`, an array or a tree of arrays; or, in the order of the calls, those saved before the run was
    killed."""
    self.asked += 1
    if self.asked > len(self.finished):
      self.finished.append(work())
      self.unsaved = True
      if hosts.broadcast(time.monotonic() - self.saved >= self.save_seconds):
        self.save()
    return self.finished[self.asked - 1]

  def timed(self, function: Callable, *arguments):
    """Call the function and return its result; the seconds it took become a line of metrics.jsonl."""
    start = time.monotonic()
    found = function(*arguments)
    stage = f'{function.__module__}.{function.__name__}'
    self.run.log({'stage': stage, 'seconds': time.monotonic() - start})
    return found

  def recorded(self, function: Callable, *arguments) -> list[dict]:
    """The function's records, or those saved before the run was killed; they are stored as bytes."""
    text = lambda: json.dumps(self.timed(function, *arguments)).encode()
    return json.loads(bytes(self.cached(lambda: np.frombuffer(text(), np.uint8))))

  def run_to_end(self, fit: Callable, sweep, states):
    """Train a sweep to its end, from where the run stopped if it stopped in this sweep."""
    if self.resume_from:
      sweep = sweep.with_rows(np.asarray(self.resume_from['rows']))
      shardings = jax.tree.map(lambda a: a.sharding, states)
      states = hosts.put(
        flax.serialization.from_state_dict(states, self.resume_from['states']), shardings
      )
      self.resume_from = None
    steps = step_time.chunk_steps(sweep)
    chunks = fit(sweep, states, steps)
    worth_tracing = steps >= sweep.recipe.steps  # the only chunk, or else one after compilation
    while chunk := self._next(chunks, worth_tracing):
      (sweep, states), worth_tracing = chunk, True
      self._log(sweep, states)
      if hosts.broadcast(time.monotonic() - self.saved >= self.save_seconds):
        self.save(sweep, states)
    return sweep, states

  def _next(self, chunks, worth_tracing: bool):
    """The next chunk, profiled if requested."""
    if not (self.trace and worth_tracing):
      return next(chunks, None)
    with jax.profiler.trace(str(self.trace)):
      chunk = next(chunks, None)
    self.trace = None if chunk else self.trace
    return chunk

  def save(self, sweep=None, states=None):
    """Write a checkpoint of the results so far, and of the states in progress."""
    arrays = {'finished': {f'{i:06d}': a for i, a in enumerate(self.finished)}}
    if sweep is not None:
      states = flax.serialization.to_state_dict(jax.device_get(hosts.to_host(states)))
      arrays['under_way'] = {'states': states, 'rows': sweep.rows}
    self.number += 1
    self.run.save(self.number, {name: value for name, value in arrays.items() if value})
    self.saved, self.unsaved = time.monotonic(), False

  def _log(self, sweep, states):
    status, step, loss = map(sweep.of_tasks, (states.status, states.step, states.loss))
    finite = loss[status != optimization.DIVERGED]
    mean = float(np.mean(finite)) if len(finite) else None
    models = int(np.sum((status == optimization.RUNNING) & (step < sweep.recipe.steps)))
    solved, done = float(np.mean(status == optimization.SOLVED)), int(step.max())
    diverged = int(np.sum(status == optimization.DIVERGED))
    self.run.log({
      'sweep': self.asked, 'step': done, 'loss': mean, 'models': models, 'solved': solved, 'diverged': diverged,
    })  # fmt: skip
    shown = '–' if mean is None else f'{mean:.3g}'
    label = f'sweep {self.asked}: {models:,} models, loss {shown}, {solved:.0%} solved'
    self.on_progress(done, sweep.recipe.steps, label)
