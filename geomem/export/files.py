"""Export models for use in other tools: weights as safetensors, and a config.json that says what they mean.

The arrays of model.safetensors have the names and shapes of the parameters of `geomem.model.Transformer`, with dots
for slashes. config.json holds everything that determines the forward pass (`architecture`), the names of tokens and
answers, the facts, and the layout of the residual stream (`residual`) and of every hidden layer (`hidden`): slots with
their first coordinate and the one after their last. Every entry of a slot takes as many coordinates as its `code` is
wide (one without a code), and the last axis varies fastest. NumPy alone is enough to write or read the format.
"""

import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from geomem import facts as fact
from geomem import model as transformer
from geomem.config import Config
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.layout import Layout
from geomem.pretrained import safetensors_file
from geomem.saved import atomic, models

FORMAT, VERSION = 'geomem export', 1
WEIGHTS, DESCRIPTION = 'model.safetensors', 'config.json'
PLAIN = {str, int, float, bool, type(None)}
DTYPES = {kind: np.dtype(dtype) for kind, dtype in safetensors_file.DTYPES.items()}


def write(path: str | os.PathLike, model: FactModel, license: str = 'Apache-2.0') -> None:
  """Write `model` to the folder `path`; this replaces an existing export, and refuses to replace anything else."""
  models.check_free(path, is_export, (WEIGHTS, DESCRIPTION), 'an export of a geomem model')
  arrays = flatten_dict(jax.tree.map(np.asarray, model.params), sep='.')
  with atomic.replacing(Path(path), sum(array.nbytes for array in arrays.values())) as new:
    _write_arrays(new / WEIGHTS, arrays)
    fields = {
      'format': FORMAT, 'version': VERSION, 'license': license,
      'sha256': atomic.digest(new / WEIGHTS), **_described(model),
    }  # fmt: skip
    lines = [
      f'{json.dumps(name)}: {json.dumps(fields[name], ensure_ascii=False)}' for name in fields
    ]
    text = '{' + ',\n'.join(lines) + '}\n'
    if len(text.encode()) > safetensors_file.MAX_BYTES:
      raise InputError(
        f'{path}: the names and facts of {model!r} are too many to export; save the model instead'
      )
    (new / DESCRIPTION).write_text(text, encoding='utf-8')


def is_export(path: str | os.PathLike) -> bool:
  """Whether the folder holds an export that `write` wrote."""
  try:
    fields = safetensors_file.read_json(atomic.locate(path) / DESCRIPTION)
  except (InputError, OSError):
    return False
  return fields.get('format') == FORMAT


def load(path: str | os.PathLike) -> FactModel:
  """The model that was exported to the folder `path`, with bit-identical parameters.

  >>> constructions.build('selector', Facts.bijections(8, 2)).export('mine')
  >>> load('mine').verify().accuracy
  1.0
  """
  path = atomic.locate(path)
  if not is_export(path):
    raise InputError(f'{path}: not an export of a geomem model (no {DESCRIPTION} that says so)')
  fields = safetensors_file.read_json(path / DESCRIPTION)
  if (version := fields.get('version')) != VERSION:
    raise InputError(f'{path}: version {version!r} of the format; this code reads {VERSION}')
  weights = safetensors_file.Safetensors(path / WEIGHTS)
  if fields.get('sha256') != atomic.digest(path / WEIGHTS):
    raise InputError(f'{path}: {WEIGHTS} is not the one that {DESCRIPTION} describes')
  try:
    return _assembled(fields, weights)
  except MemoryError:
    raise
  except InputError as error:
    raise InputError(f'{path}: damaged export: {error}') from error
  except Exception as error:  # fields that exist but make no sense
    raise InputError(f'{path}: damaged export: {atomic.reason(error)}') from error


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
  header, end = {}, 0
  for name, array in arrays.items():
    kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
    offsets = [end, end := end + array.nbytes]
    header[name] = {'dtype': kind, 'shape': array.shape, 'data_offsets': offsets}
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # so that numbers are aligned to 8 bytes
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for array in arrays.values():
      file.write(np.ascontiguousarray(array).data)


def _described(model: FactModel) -> dict[str, Any]:
  """All fields of config.json that follow from the model."""
  rest, facts = models.to_plain(model), model.facts
  names = lambda name, count: [name(i) for i in range(count)]
  first = {'kind': rest.pop('kind'), 'name': rest.pop('name')}
  known = {**rest.pop('facts'), 'answers_RxN': facts.answers_RxN.tolist()}
  del rest['config'], rest['layout'], rest['hidden']
  return first | {
    'architecture': models.to_plain(model.config),
    'tokens': names(facts.subject_name, facts.subjects)
    + names(facts.relation_name, facts.relations),
    'answers': names(facts.attribute_name, model.config.answers),
    'facts': known,
    'residual': _slots(model.layout),
    'hidden': [[_slots(layer) for layer in block] for block in model.hidden],
    **rest,
  }


def _slots(layout: Layout) -> list[dict]:
  where = lambda name: {'start': layout[name].start, 'stop': layout[name].stop}
  return [models.to_plain(slot) | where(slot.name) for slot in layout.slots]


def _assembled(fields: dict[str, Any], weights: safetensors_file.Safetensors) -> FactModel:
  """The model that `_described` described, checked: everything fits, and its description is the same again."""
  given = {
    name: fields[name] for name in fields if name not in ('format', 'version', 'license', 'sha256')
  }
  text = json.dumps(given, sort_keys=True)  # before parts of it are moved
  parts = {name: given[name] for name in given if name not in ('tokens', 'answers')}
  layout = lambda slots: {
    'kind': 'Layout',
    'slots': [{k: v for k, v in slot.items() if k not in ('start', 'stop')} for slot in slots],
  }
  parts['layout'] = layout(parts.pop('residual'))
  parts['hidden'] = [[layout(layer) for layer in block] for block in parts['hidden']]
  parts['config'] = parts.pop('architecture')
  config = _checked_config(parts['config'], weights)
  params = unflatten_dict({name: weights.array(name) for name in weights.tensors}, sep='.')
  answers = np.array(parts['facts'].pop('answers_RxN'), np.int32)
  model = models.assemble(parts, params, answers)
  _check(model, config)
  if json.dumps(_described(model), sort_keys=True) != text:
    raise InputError(f'{DESCRIPTION} contradicts itself')
  return model


def _checked_config(plain: dict[str, Any], weights: safetensors_file.Safetensors) -> Config:
  """The architecture, if the arrays of the file are exactly its parameters, each float32 and of the right shape."""
  if len(plain['blocks']) > len(weights.tensors):
    raise InputError(f'{len(plain["blocks"])} blocks, but {len(weights.tensors)} arrays')
  config = models.from_plain(plain)
  if not isinstance(config, Config):
    raise InputError('its architecture is not a Config')
  wanted = {name: a.shape for name, a in flatten_dict(transformer.shapes(config), sep='.').items()}
  for name in sorted(wanted.keys() ^ weights.tensors.keys())[:1]:
    raise InputError(f'{WEIGHTS} {"lacks" if name in wanted else "has an unknown"} {name[:80]!r}')
  for name, shape in wanted.items():
    dtype, found, *_ = weights.tensors[name]
    if (dtype, found) != ('F32', shape):
      raise InputError(f'{name} is {dtype} of shape {found}; it must be F32 of shape {shape}')
  return config


def _check(model: FactModel, config: Config) -> None:
  if not isinstance(model, FactModel):
    raise InputError(f'it describes {type(model).__name__}, which is no model')
  _check_types(model)
  fact.check_fit(model.facts, config)
  if model.hops != 1:
    fact.check_closed(model.facts, model.hops)
  if model.layout.dim != config.dim:
    raise InputError(f'slots of {model.layout.dim} coordinates for a residual of {config.dim}')
  widths = tuple(tuple(layer.dim for layer in block) for block in model.hidden)
  if widths and widths != tuple(block.hidden for block in config.blocks):
    raise InputError(
      f'slots for hidden layers of {widths} units, which do not fit its architecture'
    )


def _check_types(part: Any) -> None:
  """Refuse a field that is declared to be a name or a number and is not one."""
  for each in part if isinstance(part, tuple) else ():
    _check_types(each)
  for field in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
    value, kinds = getattr(part, field.name), set(typing.get_args(field.type) or [field.type])
    if kinds <= PLAIN and not isinstance(
      value, tuple(kinds | ({int} if float in kinds else set()))
    ):
      raise InputError(f'{field.name} is {str(value)[:40]!r}')
    _check_types(value)
