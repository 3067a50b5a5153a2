"""Where the parameters of a model are: `hf_distill/models/parts.py`."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import AutoConfig

from hf_distill.models.outline import outline
from hf_distill.models.parts import Parts

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}


def parts(family: str, auto_class: str, **changes: Any) -> tuple[Parts, int]:
    own = AutoConfig.for_model(family)
    sizes = {own.attribute_map.get(key, key): value for key, value in {**SIZES, **changes}.items()}
    model = outline(auto_class, AutoConfig.for_model(family, **sizes), trust_remote_code=False)
    return Parts.of(model), model.num_parameters()


def test_numbers_are_those_by_hand() -> None:
    """A matrix counted in the wrong part, or a bias in none, sends a user to shrink what is small already."""
    found, _ = parts("bert", "AutoModelForSequenceClassification")
    embeddings = (50 + 40 + 2) * 16 + 2 * 16  # tokens, positions, segments, their norm
    layer = 4 * (16 * 16 + 16) + 2 * 16 + (16 * 32 + 32) + (32 * 16 + 16) + 2 * 16
    assert found == Parts(embeddings, 3 * layer, head=16 * 2 + 2, rest=16 * 16 + 16)
    assert found.bytes == 4 * found.total


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_tied_weights_count_once(family: str) -> None:
    """Counted twice, the vocabulary of a small language model would be all that its size seems to be."""
    tied, total = parts(family, "AutoModelForCausalLM", tie_word_embeddings=True)
    assert (tied.total, tied.head) == (total, 0)
    untied, total = parts(family, "AutoModelForCausalLM", tie_word_embeddings=False)
    assert (untied.total, untied.head) == (total, 50 * 16)
    assert untied.layers == tied.layers > 0


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForQuestionAnswering"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "albert", "electra", "deberta-v2"])
def test_every_parameter_is_in_one_part(family: str, auto_class: str) -> None:
    """Parts that do not add up to the model would give a wrong weight of its file."""
    found, total = parts(family, auto_class)
    assert found.total == total
    assert min(found.embeddings, found.layers) > 0


def test_encoder_decoder_models_have_their_layers_together() -> None:
    """T5 keeps tables of positions inside layers, and has no module beside its body that is a head."""
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = outline("AutoModelForSeq2SeqLM", config, trust_remote_code=False)
    found = Parts.of(model)
    assert found.total == model.num_parameters()
    assert (found.embeddings, found.head, found.rest) == (50 * 16, 0, 2 * 16)
