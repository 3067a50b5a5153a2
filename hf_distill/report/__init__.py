"""The report of a run: its numbers, sentences, page, plots and model card."""
