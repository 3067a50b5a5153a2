"""Logits of a large vocabulary, made for some rows at a time."""
