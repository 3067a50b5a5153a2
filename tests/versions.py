"""What differs between the versions of Transformers that are supported."""

from __future__ import annotations

from dataclasses import fields

from transformers import TrainingArguments

# The training argument that computes activations again in the backward pass; it has this name since Transformers 5.23.
CHECKPOINTING = {
    "activation_checkpointing"
    if "activation_checkpointing" in {field.name for field in fields(TrainingArguments)}
    else "gradient_checkpointing": True
}
