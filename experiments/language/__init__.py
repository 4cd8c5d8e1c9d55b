"""What experiments.language_model measures: scenes of prompts, what explains them, swaps."""
