"""Who writes the texts that a language model learns from: the data, student, teacher, or both models together."""
