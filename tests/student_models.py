"""Small models of many architectures whose weights all differ, to be copied, cut and compared."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

SEQ2SEQ = "AutoModelForSeq2SeqLM"
CLASSIFY = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"
MASKED = "AutoModelForMaskedLM"

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # tiny models with 0.02 answer the same whatever their layers do
}
GEMMA = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1,
    "head_dim": 8, "intermediate_size": 8,
}  # fmt: skip
ALTERNATING = ["full_attention", "sliding_attention", "sliding_attention"] * 2
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 8},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 4},
    "distilbert": {},
    "gpt2": {},
    "llama": {"num_key_value_heads": 1},
    "qwen3": {
        "head_dim": 8,
        "num_key_value_heads": 1,
        "layer_types": ALTERNATING,
        "use_sliding_window": True,
        "sliding_window": 3,
    },
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 1, "layer_types": ALTERNATING, "sliding_window": 3},
}
DECODERS = ("gpt2", "llama", "qwen3", "gemma3_text")


def make_teacher(family: str, head: str = CLASSIFY, **changes: Any) -> PreTrainedModel:
    sizes = {**SIZES, **FAMILIES.get(family, {}), **changes}
    own = AutoConfig.for_model(family)
    sizes = {own.attribute_map.get(key, key): value for key, value in sizes.items()}
    if head == CLASSIFY:
        sizes |= {"id2label": {0: "bad", 1: "good", 2: "odd"}, "label2id": {"bad": 0, "good": 1, "odd": 2}}
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(AutoConfig.for_model(family, **sizes))
    # Norms and biases start as ones and zeros: only with other values does it show whether they are copied.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def logits(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(ids != 0).long(), **inputs).logits


def make_two_stacks(family: str, encoder: int = 6, decoder: int = 4, **settings: Any) -> PreTrainedModel:
    common = {"vocab_size": 50, "d_model": 16, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    own: dict[str, Any] = {"encoder_layers": encoder, "decoder_layers": decoder, "init_std": 0.2, "dropout": 0.0}
    own |= {f"{side}_{size}": 16 if "dim" in size else 2 for side in ("encoder", "decoder")
            for size in ("attention_heads", "ffn_dim")}  # fmt: skip
    own |= {"max_position_embeddings": 40}
    if family in ("t5", "umt5"):
        own = {"num_layers": encoder, "num_decoder_layers": decoder, "d_kv": 8, "d_ff": 16, "num_heads": 2}
        own |= {"initializer_factor": 3.0, "feed_forward_proj": "gated-gelu" if family == "umt5" else "relu"}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**common, **own, **settings})
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def target_logits(model: PreTrainedModel) -> torch.Tensor:
    return logits(model, decoder_input_ids=torch.tensor([[0, 9, 8, 7], [0, 6, 5, 4]]), use_cache=False)
