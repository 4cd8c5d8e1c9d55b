"""The measurements of experiments.language_model and new_subjects: table prompts, linear probes, attribute swaps."""
