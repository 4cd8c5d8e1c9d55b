"""Pretrained language models: load them from local files, run them, patch them, and give them new subjects."""

from geomem.pretrained.fact_encoder import FactEncoder, Training
from geomem.pretrained.prompts import Relation

__all__ = ['FactEncoder', 'Relation', 'Training']
