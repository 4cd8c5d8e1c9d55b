"""Pretrained language models: read from files on this machine, run, changed in the middle, and given new subjects."""

from geomem.pretrained.fact_encoder import FactEncoder, Training
from geomem.pretrained.prompts import Relation

__all__ = ['FactEncoder', 'Relation', 'Training']
