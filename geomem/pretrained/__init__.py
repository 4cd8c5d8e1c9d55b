"""Pretrained language models: read from files on this machine, run, and changed in the middle."""
