"""What a run found: figures, sentences, pages."""
