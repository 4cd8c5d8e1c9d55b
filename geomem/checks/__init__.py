"""Checks of a model: every query verified, the bits it needs and spends, the fewest bits per weight."""
