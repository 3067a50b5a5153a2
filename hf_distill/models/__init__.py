"""Models: opened, looked into, taken apart, and given a place where theirs differ."""

from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer

__all__ = ["Head", "load_model", "open_config", "open_tokenizer"]
