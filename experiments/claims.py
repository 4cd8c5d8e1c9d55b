"""What the paper states and what we add to it: every statement, and the experiment that measures it."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence

from experiments.harness.findings import Finding
from geomem.pretrained import load


@dataclasses.dataclass(frozen=True)
class Experiment:
  """`flags`: beyond the scale, where it has one. `minutes`: of the laptop's preset on two cores, about; said
  here alone, and shown by `--help`. `terms`: what the words in its findings mean. `lacks`: says what must be
  fetched before it can run, if anything.
  """

  name: str
  about: str
  minutes: float
  flags: tuple[str, ...] = ()
  scaled: bool = True
  terms: str = ''
  lacks: Callable[[], str | None] = lambda: None

  def command(self, scale: str) -> list[str]:
    preset = [f'--scale={scale}'] if self.scaled else []
    return ['python', '-m', f'experiments.{self.name}', *preset, *self.flags]

  @property
  def module(self):
    return importlib.import_module(f'experiments.{self.name}')

  @property
  def figure(self):
    """The module that draws it, or nothing."""
    name = f'experiments.figures.{self.name}'
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


EXPERIMENTS = {
  e.name: e
  for e in (
    Experiment(
      'construct', 'every construction, built and verified on every query', 0.5,
      ('--construction=all', '--subjects=32', '--relations=4', '--hops=2'), scaled=False,
      terms='Margin: the logit of the right answer less the highest other one. Facts of others: the '
      'share right by facts that the model was not built for.',
    ),
    Experiment(
      'bounds', 'the lower bounds, with every construction beside them', 0.3, scaled=False,
      terms='B_emb: bits in a subject’s embedding. B_int: bits in everything else.',
    ),
    Experiment(
      'threshold', 'the smallest models that learn all facts, against R·log₂N', 2.5,
      terms='A size is the smallest at which 99% of the queries are right. The smallest that can be tried is no '
      'threshold: lines leave such sizes out, and bits the cases in which a seed has one.',
    ),
    Experiment(
      'capacity', 'bits of facts per parameter: built, associative, trained', 2.5,
      terms='Bits of facts: R·log₂N!. A weight of what is trained takes the fewest bits at which accuracy stays at 0.99, '
      'of what is built the entropy of the values in its array, or the width of its dtype where they are many. 2 and '
      '3.6 bits per parameter are what was reported of language models.',
    ),
    Experiment(
      'structure', 'superposition, readouts, units, patches and swaps, with controls', 2.5,
      terms='A swap moves a subject’s embedding by α times M_r(u_a′ − u_a), M_r the map fitted for relation r. It should '
      'flip the answer to r and keep the others: the lower of these two shares counts, for an edit that does '
      'nothing keeps everything. Every unit belongs to the relation for which it fires most on average; '
      'it keeps to that one by 1 if it fires for no other, and by 0 if it fires for all alike. Fixed embeddings: '
      'only the rest was trained.',
    ),
    Experiment(
      'transfer', 'frozen models given facts that they were never trained on', 5,
      terms='New bijections, all but the subjects’ embeddings frozen. The new embeddings are (a) sums of maps of '
      'attributes that were fitted to the old embeddings, (b) sums of maps that were trained through the frozen '
      'model, on attributes at random, or (c) trained one by one. Haste: the embeddings’ learning rate and weight '
      'decay, as a multiple of those of the rest. Query and key are fixed where nothing else is said, and so is the '
      'unembedding. Untrained: the same model as it was drawn. Associative: fixed random embeddings, the facts in '
      'the MLP.',
    ),
    Experiment(
      'frozen_embeddings', 'what it costs when embeddings cannot learn', 3.5,
      terms='MLP memory: one MLP on fixed random embeddings, trained as Nichani et al. (2025) did; n is the most facts '
      'that it holds. Fixed: the smallest F of a transformer whose embeddings are fixed. Learned: its smallest d, at '
      'F = 4d, where all is trained.',
    ),
    Experiment(
      'multihop', 'chains of relations, with and without chain of thought', 6,
      terms='Smallest d, at F = 4d, for 99% of all queries. At once: only the answer is said. Chain of thought: every '
      'subject on the way is said, trained, and must be right. Chain shown, last trained: the way is given, the answer '
      'alone trained and asked.',
    ),
    Experiment(
      'from_constructed', 'gradient descent started at the constructions', 2,
      terms='Exact: training starts at the built weights; noise: of so many times every array’s RMS is added to them '
      'first; scratch: it starts at random ones, and at ten times the learning rate. The worst look: the lowest accuracy at any look during training. Decay: weight decay.',
    ),
    Experiment(
      'language_model', 'a pretrained language model: is there a superposition in it?', 8, lacks=load.missing,
      terms='R² is of held-out subjects’ residuals, explained by their attributes or by the tokens of their own name. A swap '
      'moves the residual from the own attribute’s fitted vector to another’s, at the block '
      'and the dose (how many times that difference) that were best on subjects set aside for it; flipped and kept '
      'are of the facts that the model knows.',
    ),
  )
}  # fmt: skip


def minutes(name: str) -> float:
  return EXPERIMENTS[name].minutes


@dataclasses.dataclass(frozen=True)
class Claim:
  """`says`: in our words, and what is expected of the measurement. Which findings of the experiment bear on
  it is said by the start of their own `claim`; of an experiment that measures one claim, all do.
  """

  name: str
  says: str
  experiment: str

  def own(self, findings: Sequence[Finding]) -> list[Finding]:
    return [f for f in findings if not f.claim or f.claim.startswith(self.name)]


CLAIMS = (  # the paper numbers its theorems; the numbers of what it found are ours
  Claim(
    'Theorem 4.1',
    'One layer answers all N·R facts with an embedding of O(R log N): attributes superposed, an MLP of '
    'width O(R log N) or R attention heads select. Every query right, by the margin proved.',
    'construct',
  ),
  Claim(
    'Theorem F.1',
    'Where every relation has attributes of its own, no MLP is needed: relations as signs suffice.',
    'construct',
  ),
  Claim(
    'Theorem 4.2',
    'Without chain of thought the bits inside the network and in an embedding trade off: no construction '
    'lies below the bound. Ours is the sharper one.',
    'bounds',
  ),
  Claim(
    'Theorem 4.3',
    'k hops at once cost an MLP of width N·R or an embedding of R^k·log N. Ours: width N + R, and depth 1.',
    'construct',
  ),
  Claim(
    'Theorem 4.4',
    'With chain of thought one layer and an embedding of O(R log N) answer any number of hops.',
    'construct',
  ),
  Claim(
    'Claim 1',
    'The smallest d that gradient descent needs grows as R·log₂N, and a parameter holds at most two bits of facts.',
    'threshold',
  ),
  Claim(
    'Claim 1, bits', 'Nothing stores more than one bit of facts per bit of weight.', 'capacity'
  ),
  Claim(
    'Claim 2',
    'A trained subject embedding is the sum of one linear map per relation of its attributes’ vectors, judged on '
    'subjects that the maps were not fitted to.',
    'structure',
  ),
  Claim('Claim 3', 'Linear maps read a subject’s attributes out of its embedding.', 'structure'),
  Claim(
    'Claim 4',
    'The MLP selects by relation: units keep to one, patching the relation or moving the embedding along '
    'one map changes that answer and no other.',
    'structure',
  ),
  Claim(
    'Claim 5',
    'Frozen, the model answers for new bijections once embeddings are put together for them; an '
    'associative memory does not.',
    'transfer',
  ),
  Claim(
    'Claim 6',
    'With fixed random embeddings the weights must hold the facts: parameters grow as N·R·log(N·R).',
    'frozen_embeddings',
  ),
  Claim(
    'Claim 7',
    'Hops at once cost width that grows with their number; with chain of thought they do not.',
    'multihop',
  ),
  Claim(
    'From built to learned',
    'Gradient descent stays at a construction; shaken, it comes back to right answers, though not to the weights.',
    'from_constructed',
  ),
  Claim(
    'Claim 8',
    'In a pretrained language model a subject’s representation is in part such a superposition, and is used so.',
    'language_model',
  ),
)
