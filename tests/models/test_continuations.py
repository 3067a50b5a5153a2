"""Scores of continuations, against a loop that runs each whole sequence on its own."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PREFIX = [5, 6, 7, 8, 9]
PROMPTS = [[10, 11, 12], [13], [14, 15, 16, 17, 18, 19]]
# Of one token, of several, two that begin alike.
CONTINUATIONS = [[20], [21, 22], [21, 23, 24], [25]]


def model(kind: str) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    made: dict[str, Any] = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **SMALL, num_key_value_heads=1)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
        "sliding": lambda: hf.MistralForCausalLM(
            hf.MistralConfig(**SIZES, **SMALL, num_key_value_heads=1, sliding_window=3)
        ),
        "windows": lambda: hf.GPTNeoForCausalLM(
            hf.GPTNeoConfig(
                **SIZES,
                hidden_size=16,
                num_layers=2,
                num_heads=2,
                attention_types=[[["global", "local"], 1]],
                window_size=3,
            )
        ),
        "roberta": lambda: hf.RobertaForCausalLM(hf.RobertaConfig(**SIZES, **SMALL, is_decoder=True)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**SIZES, hidden_size=16, n_layer=2, n_head=2)),
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(**SIZES, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
        ),
        "bart": lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(
                **SIZES,
                d_model=16,
                encoder_layers=1,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=32,
                decoder_start_token_id=2,
            )
        ),
    }[kind]()
    found = made.double().eval()
    for weight in found.parameters():  # larger than they begin, so that every position matters
        weight.data.normal_(0, 0.3)
    return found


def loop(model: Any, opening: list[int], *, mean: bool) -> Any:
    """Return the scores of every prompt and continuation, each from one pass over one whole sequence."""
    found = torch.zeros(len(PROMPTS), len(CONTINUATIONS), dtype=torch.float64)
    for row, prompt in enumerate(PROMPTS):
        for place, tokens in enumerate(CONTINUATIONS):
            read = torch.tensor([PREFIX + prompt])
            if model.config.is_encoder_decoder:
                said = [model.config.decoder_start_token_id, *opening, *tokens]
                logits = model(input_ids=read, decoder_input_ids=torch.tensor([said])).logits
            else:
                logits = model(input_ids=torch.cat([read, torch.tensor([tokens])], -1)).logits
            before = logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
            each = before[torch.arange(len(tokens)), torch.tensor(tokens)]
            found[row, place] = each.mean() if mean else each.sum()
    return found


def padded(side: str) -> tuple[Any, Any]:
    width = max(map(len, PROMPTS)) + 2
    ids, mask = torch.zeros(len(PROMPTS), width, dtype=torch.long), torch.zeros(len(PROMPTS), width, dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        part = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, part], mask[row, part] = torch.tensor(prompt), 1
    return ids, mask


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding", "windows", "roberta", "bloom", "t5", "bart"])
def test_a_score_is_that_of_the_whole_sequence_on_its_own(kind: str) -> None:
    """Otherwise a shared prefix, padding or a second pass shifts positions, and the soft labels are silently others."""
    from hf_distill.models.continuations import Continuations

    made, opening = model(kind), [1] if kind == "bart" else []
    exact = 1e-7 if kind == "windows" else 1e-12  # GPT-Neo computes attention in float32
    with torch.no_grad():
        for mean in (False, True):
            wanted = loop(made, opening, mean=mean)
            assert wanted.std(0).min() > 1e-4  # else the prompts would not matter
            scorer = Continuations(made, CONTINUATIONS, [[7], PREFIX], opening=opening, mean=mean)
            for side in ("left", "right"):
                for _ in range(2):  # the second time with the prefix that the first time has computed
                    torch.testing.assert_close(scorer(*padded(side), prefix=1), wanted, rtol=0, atol=exact)


def test_only_the_rest_of_a_prompt_is_run_and_few_logits_are_computed() -> None:
    """Otherwise the prefix is run again in each batch, or logits of all positions fill the memory."""
    from hf_distill.models.continuations import Continuations

    made = model("llama")
    read: list[int] = []
    logits: list[int] = []
    made.model.embed_tokens.register_forward_hook(lambda _, given, __: read.append(given[0].numel()))
    made.lm_head.register_forward_hook(lambda _, given, __: logits.append(given[0].shape[1]))
    scorer = Continuations(made, CONTINUATIONS, [PREFIX])
    for _ in range(2):
        scorer(*padded("right"))
    rows, width = padded("right")[0].shape
    each = [rows * width, rows * 1, rows * 2]  # the prompts, and the two continuations of several tokens
    assert read == [len(PREFIX), *each, *each]
    assert max(logits) == 2
