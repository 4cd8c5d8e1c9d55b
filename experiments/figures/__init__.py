"""The figures, each drawn from the records of the experiment of its name alone."""
