"""Losses over a large vocabulary, whose logits are computed for a chunk of rows at a time."""
