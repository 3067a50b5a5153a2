"""Inputs that a model cannot read are told with their row, before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from datasets import Dataset

from hf_distill.training.input_values import check_input_values

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = transformers.BertConfig(**SIZES, intermediate_size=8, max_position_embeddings=6)
ROBERTA = transformers.RobertaConfig(**SIZES, intermediate_size=8, max_position_embeddings=8, pad_token_id=1)
GPT2 = transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=6)
LLAMA = transformers.LlamaConfig(**SIZES, intermediate_size=8, max_position_embeddings=6)
MODELS: dict[str, Any] = {
    "bert": (transformers.BertForMaskedLM, BERT),
    "roberta": (transformers.RobertaForMaskedLM, ROBERTA),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2),
}


def check(rows: list[list[int]], student: Any, teacher: Any = None, **more: Any) -> None:
    models = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    check_input_values(Dataset.from_dict({"input_ids": rows, **more}), "train_dataset", models)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_are_too_long(name: str) -> None:
    """An index out of range inside an embedding, at the step that comes to the row, or a device that asserts."""
    kind, config = MODELS[name]
    model = kind(config)
    import torch

    check([[3] * 6], model)
    model(input_ids=torch.tensor([[3] * 6]))
    with pytest.raises(ValueError, match=r"train_dataset: row 1 \(.* has 7 tokens; the student takes at most 6"):
        check([[3] * 2, [3] * 7], model)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.tensor([[3] * 7]))


def test_positions_that_are_computed_have_no_end() -> None:
    """Rotary positions go on: whoever trains beyond what a configuration names may."""
    check([[3] * 20], transformers.LlamaForCausalLM(LLAMA))


def test_tokens_that_a_model_does_not_have() -> None:
    """The token of one model is past the end of the other's embeddings: on a GPU an assertion without a place."""
    wide = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "vocab_size": 60}, intermediate_size=8))
    narrow = transformers.LlamaForCausalLM(LLAMA)
    check([[55]], wide)
    with pytest.raises(ValueError, match=r"row 0 .*has the token 55; the teacher takes 0 to 49"):
        check([[55]], wide, narrow)
    with pytest.raises(ValueError, match=r"row 1 .*has the token -3; the student takes 0 to 49"):
        check([[1], [2, -3]], narrow)
    check([[55]], wide, narrow, teacher_input_ids=[[4]])  # it reads its own
    check_input_values([{"input_ids": [99]}], "train_dataset", {"student": narrow})  # nothing is known of a list
