"""A run of a recipe: checks, data, training, evaluation and report."""
