"""The command for an accelerator runs every command, each within its time limit, and none that is finished again."""

import pytest

from experiments import accelerator, benchmark
from experiments.harness import records, studies


@pytest.mark.parametrize(
  ('statement', 'how'),
  [('pass', 'done'), ('raise SystemExit(3)', 'FAILED'), ('import time; time.sleep(99)', 'not finished')],
)  # fmt: skip
def test_how_an_attempt_ends(statement, how, tmp_path):
  limit = 0.02 if how == 'not finished' else None
  told = accelerator.attempt(['timeit', '-n1', '-r1', statement], tmp_path / 'log', limit)
  assert told.startswith(how)


def test_every_part_of_every_study_is_a_command(tmp_path):
  found = accelerator.commands(accelerator.Options(), tmp_path)
  every = [benchmark.STUDY, *studies.load_all().values()]
  assert len(found) == 1 + sum(len(study.parts('full')) for study in every)
  (laws,) = (command for command in found if command.name == 'laws million')
  assert laws.words[:3] == ['experiments.laws', '--scale=full', '--part=million']
  assert laws.done == tmp_path / 'laws/million' / records.FILE


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
  """A command that is cut short is tried again; one that failed makes the command fail."""
  ended = {'laws': 'done', 'dynamics': 'not finished'}
  tried = []

  def attempt(words, log, minutes):
    name = words[0].split('.')[-1]
    tried.append((name, minutes))
    if ended[name] == 'done':
      (tmp_path / name).mkdir()
      (tmp_path / name / records.FILE).touch()
    return ended[name]

  monkeypatch.setattr(accelerator, 'attempt', attempt)
  options = accelerator.Options(scale='smoke', only=tuple(ended), workdir=str(tmp_path))
  accelerator.main(options)
  accelerator.main(options)
  assert tried == [('laws', 10.0), ('dynamics', 10.0), ('dynamics', 10.0)]
  assert 'laws: done before' in capsys.readouterr().out
  ended['dynamics'] = 'FAILED, see its log'
  with pytest.raises(SystemExit, match='FAILED in part'):
    accelerator.main(options)
