"""What experiments.language_model measures: prompts of a table, linear probes, swaps of attributes."""
