"""Layers without padding, and with every loss and gradient that there is with it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from invariants.cached import capture, parts, terms_of, trainer
from invariants.cases import (
    KINDS,
    Collator,
    Record,
    largest_difference,
    make_models,
    make_rows,
    make_trainer,
    split,
    train,
)
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from versions import CHECKPOINTING

from hf_distill import DistillationArguments, DistillationTrainer, UserError
from hf_distill.models.heads import open_head
from hf_distill.models.inspection import evaluating
from hf_distill.objectives import Attention, Embeddings, Hidden, InputGradient, KLDivergence, Labels, Relations
from hf_distill.training.padding_free.bins import Bins, arrange, fill
from hf_distill.training.padding_free.choice import PaddingFree
from hf_distill.training.padding_free.model import NeedsPadding, PaddingFreeModel, open_padding_free
from hf_distill.training.terms import Terms

EXACT, SINGLE = 1e-12, 1e-5
COMMON: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
HEADS = {"head_dim": 8, "num_key_value_heads": 2}
STACKS: dict[str, Any] = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.3,
}  # fmt: skip
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DISTIL = transformers.DistilBertConfig(vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
MASKED, CAUSAL, CLASSES, PAIRS = (
    transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM,
    transformers.AutoModelForSequenceClassification, transformers.AutoModelForSeq2SeqLM,
)  # fmt: skip
# Windows are shorter than the longest example. Of the encoders one with each head; the head of a classifier reads the
# first position, which no padding may be in.
MODELS: dict[str, tuple[Any, Any]] = {
    "bert": (MASKED, transformers.BertConfig(**COMMON)),
    "bert, classes": (CLASSES, transformers.BertConfig(**COMMON)),
    "distilbert": (MASKED, DISTIL),
    "distilbert, classes": (CLASSES, DISTIL),
    "roberta": (MASKED, transformers.RobertaConfig(**COMMON)),
    "electra": (MASKED, transformers.ElectraConfig(**COMMON, embedding_size=16)),
    "modernbert": (MASKED, transformers.ModernBertConfig(**COMMON, local_attention=6, global_attn_every_n_layers=2)),
    "deberta": (CLASSES, transformers.DebertaConfig(**COMMON, **RELATIVE)),
    "deberta-v2": (CLASSES, transformers.DebertaV2Config(**COMMON, **RELATIVE, position_buckets=4)),
    "mpnet": (MASKED, transformers.MPNetConfig(**COMMON)),
    "llama": (CAUSAL, transformers.LlamaConfig(**COMMON)),
    "llama, classes": (CLASSES, transformers.LlamaConfig(**COMMON)),
    "qwen3": (CAUSAL, transformers.Qwen3Config(**COMMON, **HEADS)),
    "gpt2": (
        CAUSAL,
        transformers.GPT2Config(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
        ),
    ),
    "gemma2": (CAUSAL, transformers.Gemma2Config(**COMMON, **HEADS, sliding_window=5)),
    "gemma3": (CAUSAL, transformers.Gemma3TextConfig(**COMMON, **HEADS, sliding_window=5)),
    "mistral": (CAUSAL, transformers.MistralConfig(**COMMON, **HEADS, sliding_window=5)),
    "t5": (
        PAIRS,
        transformers.T5Config(
            vocab_size=97, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=48, decoder_start_token_id=0
        ),
    ),
    "bart": (PAIRS, transformers.BartConfig(**STACKS)),
}
# They take the softmax, or the norm, in float32 whatever the model's precision: float64 would say no more.
IN_FLOAT32 = {"eager": ("modernbert", "llama", "qwen3", "mistral", "gemma"), "sdpa": ("gemma",)}
FIRST_POSITION = ("bert, classes", "distilbert, classes", "deberta", "deberta-v2")


def make(name: str, implementation: str = "sdpa", dtype: torch.dtype = torch.float64) -> Any:
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = kind.from_config(copy.deepcopy(config)).to(dtype).eval()
    for parameter in model.parameters():  # biases begin at 0, and those of classifiers are not missed then
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    if model._supports_sdpa:
        model.set_attn_implementation(implementation)
    for module in model.modules():  # MPNet's biases, T5's head and GPT-2's dropout do not hear of `eval` in a config
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def mask_of(side: str, lengths: tuple[int, ...] = (13, 4, 7, 5, 2, 1, 5)) -> Tensor:
    """Return a mask of attention whose longest example fills it, with a hole."""
    width = max(lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for example, length in enumerate(lengths):
        start = {"right": 0, "left": width - length, "both": (width - length) // 2}[side]
        mask[example, start : start + length] = 1
    hole = int(mask[2].argmax()) + 3
    mask[2, hole] = 0
    return mask


def batch(model: Any, mask: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 97, mask.shape).masked_fill(mask == 0, model.config.pad_token_id or 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 97, (len(mask), 4))
    return inputs


def bins_of(inputs: dict[str, Tensor]) -> Bins:
    bins = arrange(inputs["attention_mask"], hidden=32)
    assert bins is not None
    return bins


def answer(
    model: Any, inputs: dict[str, Tensor], runner: PaddingFreeModel | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits where somebody looks at them, and the gradients of all weights."""
    mask = inputs["attention_mask"]
    model.zero_grad()
    if runner is None:
        logits = model(**inputs).logits
    else:
        with runner.running(bins_of(inputs)):
            logits = model(**inputs).logits
    logits = logits[mask != 0] if logits.shape[:2] == mask.shape else logits
    torch.manual_seed(2)
    logits.backward(torch.randn_like(logits))
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    assert len(gradients) > 20
    return logits.detach(), gradients


def assert_close(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]], to: float) -> None:
    assert (found[0] - wanted[0]).abs().max() <= to * wanted[0].abs().max()
    assert found[1].keys() == wanted[1].keys()
    largest = max(float(one.abs().max()) for one in wanted[1].values())
    for name, one in wanted[1].items():
        assert (found[1][name] - one).abs().max() <= to * largest, name


# --- one model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_without_padding(name: str, implementation: str, side: str) -> None:
    """A token that sees another example's, a window or a position counted from the row's beginning, a NaN of an empty
    cell that reaches a gradient: each changes the loss a little, and no run would fail."""
    precisions = {torch.float32: SINGLE}
    if not name.startswith(IN_FLOAT32[implementation]):
        precisions[torch.float64] = EXACT
    for dtype, tolerance in precisions.items():
        model = make(name, implementation, dtype)
        runner = open_padding_free(model)
        inputs = batch(model, mask_of(side))
        bins = bins_of(inputs)
        assert (bins.rows, bins.width) == (3, 13)
        assert (bins.owner < 0).any()
        assert runner.takes(bins) == (side == "right" or name not in FIRST_POSITION)
        if runner.takes(bins):
            assert_close(answer(model, inputs, runner), answer(model, inputs), tolerance)


def test_layers_see_fewer_rows() -> None:
    """Hooks that do nothing would pass every test of equality."""
    model = make("llama")
    runner = open_padding_free(model)
    seen: list[tuple[int, ...]] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[:2])))
    inputs = batch(model, mask_of("right"))
    bins = bins_of(inputs)
    answer(model, inputs, runner)
    assert seen == [(bins.rows, bins.width)] * 3
    assert bins.rows * bins.width < 0.5 * inputs["input_ids"].numel()
    seen.clear()
    answer(model, inputs)
    assert seen == [inputs["input_ids"].shape] * 3  # the hooks are gone


def test_wider_rows_than_the_batch() -> None:
    """Four examples of 9 and 6 tokens need four rows of 9, or two of 15: relative positions must be there for tokens
    further apart than any were in the batch."""
    for name in ("deberta-v2", "llama", "t5"):
        model = make(name)
        inputs = batch(model, mask_of("right", (9, 6, 6, 9)))
        bins = bins_of(inputs)
        assert (bins.rows, bins.width) == (2, 15)
        assert_close(answer(model, inputs, open_padding_free(model)), answer(model, inputs), EXACT)


def test_half_precision() -> None:
    """The lowest number of float32 is -inf in bfloat16, and a row of masks of nothing else is NaN."""
    for implementation in ("sdpa", "eager"):
        model = make("gemma3", implementation, torch.bfloat16)
        inputs = batch(model, mask_of("left"))
        (logits, gradients), (wanted, _) = answer(model, inputs, open_padding_free(model)), answer(model, inputs)
        assert all(one.isfinite().all() for one in gradients.values())
        assert (logits - wanted).abs().mean() < 0.02 * wanted.abs().max()


def test_mixed_precision() -> None:
    """Under autocast the hidden states are of another precision than the masks."""
    for implementation in ("sdpa", "eager"):
        model = make("bert", implementation, torch.float32)
        inputs = batch(model, mask_of("right"))
        runner = open_padding_free(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (logits, gradients), (wanted, _) = answer(model, inputs, runner), answer(model, inputs)
        assert all(one.isfinite().all() for one in gradients.values())
        assert (logits - wanted).abs().mean() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """The layers run again in the backward pass, when no hook is there: with what they were first given."""
    model = make("llama").train()
    inputs = batch(model, mask_of("right"))
    wanted = answer(model, inputs)
    runner = open_padding_free(model)
    if not runner.can_recompute:
        pytest.skip(
            "this version of Transformers checkpoints a layer with its hooks, and the trainer runs it with padding"
        )
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_close(answer(model, inputs, runner), wanted, EXACT)


def test_layers_wrapped_later() -> None:
    """FSDP's own checkpointing puts wrappers into the list of layers, after the model was tried out; hooks on what they
    wrap would be gone when it is computed again."""
    model = make("bert").train()
    inputs = batch(model, mask_of("right"))
    wanted = answer(model, inputs)
    runner = open_padding_free(model)
    layers = model.bert.encoder.layer
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer)
    logits, gradients = answer(model, inputs, runner)
    plain = {name.replace("_checkpoint_wrapped_module.", ""): one for name, one in gradients.items()}
    assert_close((logits, plain), wanted, EXACT)


# --- models that cannot -----------------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """A layer that also looks at its left neighbour, with no mask to stop it."""

    def __init__(self, layer: nn.Module, strength: float) -> None:
        super().__init__()
        self.layer = layer
        self.strength = strength

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed: Tensor = self.layer(hidden, *args, **kwargs)
        return mixed + self.strength * mixed.roll(1, 1)


@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_a_model_that_mixes_tokens_is_found_out(strength: float) -> None:
    """A convolution reaches over the border of two examples, where no mask of attention holds it back."""
    model = make("bert", dtype=torch.float32)
    layers = model.bert.encoder.layer
    layers[1] = Mixing(layers[1], 0.0)
    open_padding_free(model)
    layers[1].strength = strength
    with pytest.raises(NeedsPadding, match="not compute the same without padding"):
        open_padding_free(model)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "albert": (MASKED, transformers.AlbertConfig(**COMMON, embedding_size=16), "which of its modules"),
    "convbert": (MASKED, transformers.ConvBertConfig(**COMMON), "not compute the same without padding"),
    "fnet": (
        MASKED,
        transformers.FNetConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, intermediate_size=48),
        "get an attention mask",
    ),
    "bloom": (CAUSAL, transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), "gets alibi of"),
    "layerdrop": (PAIRS, transformers.BartConfig(**STACKS, encoder_layerdrop=0.1), "at random"),
    "block-sparse": (CLASSES, transformers.BigBirdConfig(**COMMON, block_size=4), "short ones"),
    "capacity": (
        PAIRS,
        transformers.SwitchTransformersConfig(
            vocab_size=97,
            d_model=32,
            d_kv=8,
            num_layers=2,
            num_heads=4,
            d_ff=48,
            num_experts=2,
            num_sparse_encoder_layers=1,
            decoder_start_token_id=0,
        ),
        "experts take a limited number of tokens of a row",
    ),
    "hybrid": (
        CAUSAL,
        transformers.Lfm2Config(**COMMON, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]),
        "get an attention mask",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_are_left_as_they_are(name: str) -> None:
    """A model that is not understood must run padded, in the mode it was in, with no hook left behind."""
    kind, config, reason = REFUSED[name]
    model = kind.from_config(config).train()
    with pytest.raises(NeedsPadding, match=reason):
        open_padding_free(model)
    assert model.training
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_a_trial_leaves_attention_as_it_was() -> None:
    """BigBird goes over to attention of short texts for good once it has read one: a model of long texts would train
    with another attention, and memory for it, than its configuration says."""
    config = transformers.BigBirdConfig(**COMMON, block_size=4, num_random_blocks=1)
    for model in (MASKED.from_config(config), MASKED.from_config(config).train(False)):
        before = [(type(one), one.training) for one in model.modules()]
        with evaluating(model):
            model(torch.arange(4).unsqueeze(0))
        assert [(type(one), one.training) for one in model.modules()] == before
        assert open_head(model) is not None
        assert [(type(one), one.training) for one in model.modules()] == before


@pytest.mark.parametrize("name", ["llama", "bert, classes"])
def test_adapters_with_tokens_of_their_own(
    name: str, tmp_path: Path, passes: list[Bins], caplog: pytest.LogCaptureFixture
) -> None:
    """A prefix is in the mask and in the cache of every layer, and no part of a batch: the model inside, which is what
    is tried out, can run without padding, and the first step failed. LoRA's layers can be."""
    import peft

    task = "CAUSAL_LM" if name == "llama" else "SEQ_CLS"
    inputs = batch(make(name), mask_of("right"))
    for config, taken in (
        (peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3), False),
        (peft.LoraConfig(task_type=task, target_modules=["q_proj", "query"], init_lora_weights=False), True),
    ):
        losses = []
        for padding_free in (False, True):
            torch.manual_seed(4)
            student = peft.get_peft_model(make(name), config).double()
            args = DistillationArguments(
                output_dir=str(tmp_path), report_to="none", use_cpu=True, padding_free=padding_free
            )
            one = DistillationTrainer(student, args, teacher=make(name), objectives=[KLDivergence()])
            passes.clear()
            losses.append(one.compute_loss(one.model, inputs).item())
        assert losses[1] == pytest.approx(losses[0], rel=EXACT)
        assert len(passes) == 1 + taken
        assert ("student: its adapter adds tokens of its own" in caplog.text) == (not taken)
        caplog.clear()


def test_what_was_not_tried_out_is_refused() -> None:
    """A layer that gets something new, the padded batch's shape in it, would mix up examples."""
    model = make("llama")
    runner = open_padding_free(model)
    inputs = batch(model, mask_of("right"))
    bins = bins_of(inputs)
    with runner.running(bins), pytest.raises(RuntimeError, match=r"got bias of shape .* Set padding_free to false"):
        model(**inputs, bias=torch.zeros(7, 13))


def test_trying_out_draws_no_random_numbers() -> None:
    """A seed's student would be another one than with padding, and a resumed run would differ from a whole one."""
    model = make("bert")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    open_padding_free(model)
    assert torch.equal(torch.get_rng_state(), before)


# --- bins -------------------------------------------------------------------------------------------------------------


def masks(count: int = 60) -> Iterator[Tensor]:
    """Yield masks with padding anywhere, every example with at least one token."""
    chance = random.Random(0)
    for _ in range(count):
        examples, tokens = chance.randint(1, 12), chance.randint(1, 20)
        mask = torch.zeros(examples, tokens, dtype=torch.long)
        for example in range(examples):
            first = chance.randrange(tokens)
            last = chance.randrange(first, tokens)
            mask[example, first : last + 1] = 1
            mask[example, chance.randint(first, last)] = chance.choice((0, 1))
            mask[example, first] = 1
        yield mask


def test_every_token_stands_in_one_cell() -> None:
    """A token lost or doubled loses or doubles its gradient."""
    gained = 0
    for mask in masks():
        bins = arrange(mask)
        if bins is None:
            continue
        gained += 1
        assert bins.share < 1
        values = torch.randn(*mask.shape, 3)
        back = bins.scatter(bins.gather(values))
        assert torch.equal(back[mask != 0], values[mask != 0])
        assert len(bins.cells.unique()) == len(bins.places.unique()) == len(bins.cells)
        outside = torch.ones(mask.numel(), dtype=torch.bool)
        outside[bins.places] = False
        assert not back.flatten(0, 1)[outside].any()
        assert not mask.flatten()[outside].any()
        for example in range(len(mask)):  # in one piece, in order
            row, cell = (bins.owner == example).nonzero(as_tuple=True)
            assert len(row.unique()) == 1
            assert (cell.diff() == 1).all()
            assert (bins.position[row, cell].diff() == 1).all()
        assert bins.left == bool((mask[:, 0] == 0).any())
        assert bins.right == bool((mask[:, -1] == 0).any())
    assert gained > 30


def test_nothing_to_gain() -> None:
    """A batch without padding, one whose examples fit together in no way, and one with an example without tokens, of
    which a head may still read something."""
    assert arrange(torch.ones(3, 5)) is None
    assert arrange(torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), hidden=1) is None
    assert arrange(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])) is None
    assert arrange(torch.tensor([[1, 1, 0, 0]])) is not None  # one that is padded for no other


def test_rows_are_not_wider_than_models_know() -> None:
    """Masks of GPT-Neo are cut from a table of all positions: of a row that is wider, the first step with long examples
    failed, hours into a training."""
    config = transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=5, max_position_embeddings=70, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = CAUSAL.from_config(config)
    args = DistillationArguments(output_dir="unused", report_to="none", use_cpu=True, padding_free=True)
    mask = mask_of("right", (64, 33, 31, 20, 20))
    wider = arrange(mask, hidden=32)
    assert wider is not None
    assert wider.width == 84
    layers = PaddingFree(args, model, None, Terms([Labels()], model, None))
    bins = layers.collating(lambda mask: {"attention_mask": mask})(mask)["bins"]
    assert bins.width <= 70
    wanted = model(**batch(model, mask)).logits
    with layers.running("student", {"attention_mask": mask, "bins": bins}):
        found = model(**batch(model, mask)).logits
    assert (found - wanted)[mask != 0].abs().max() < SINGLE
    assert arrange(mask, hidden=32, widest=40).width == 64  # type: ignore[union-attr]


def test_rows_are_filled() -> None:
    """First come, first served leaves a quarter empty: of lengths like those of real texts hardly anything may be."""
    chance = random.Random(1)
    for count in (32, 256):
        lengths = [min(64, max(5, int(chance.lognormvariate(3.2, 0.55)))) for _ in range(count)]
        rows = fill(lengths, 64)
        assert sorted(example for row in rows for example in row) == list(range(count))
        assert all(sum(lengths[example] for example in row) <= 64 for row in rows)
        assert 64 * len(rows) <= 1.05 * sum(lengths) + 64


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.long])
def test_masks_are_those_of_each_example(kind: torch.dtype) -> None:
    """Compared entry by entry: structure within an example is kept, between examples there is nothing."""
    mask = mask_of("both")
    bins = bins_of({"attention_mask": mask})
    torch.manual_seed(0)
    allowed = torch.rand(len(mask), 2, 13, 13) < 0.5
    value = torch.where(allowed, 0.0, torch.finfo(torch.float32).min) if kind == torch.float32 else allowed.to(kind)
    moved = bins.gather_mask(value)
    attends = moved == 0 if kind == torch.float32 else moved != 0
    assert moved.dtype == kind
    assert moved.shape == (bins.rows, 2, bins.width, bins.width)
    for row in range(bins.rows):
        for i in range(bins.width):
            for j in range(bins.width):
                one, other = int(bins.owner[row, i]), int(bins.owner[row, j])
                at = (one, slice(None), int(bins.position[row, i]), int(bins.position[row, j]))
                wanted = allowed[at] if one == other and one >= 0 else torch.tensor(one == other).expand(2)
                assert torch.equal(attends[row, :, i, j], wanted)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Bins]:
    """List that grows by the bins of every forward pass of a model."""
    seen: list[Bins] = []
    real = PaddingFreeModel.running
    monkeypatch.setattr(PaddingFreeModel, "running", lambda self, bins: (seen.append(bins), real(self, bins))[1])
    return seen


def compared(kind: str, directory: Path, seen: list[Bins], **settings: Any) -> tuple[list[Record], list[Any]]:
    """Return records and figures of a training with padding, and without it as one batch of 8, and as two of 4."""
    records, figures = [], []
    for padding_free, size in ((False, 8), (True, 8), (True, 4)):
        seen.clear()
        one = make_trainer(kind, directory, num_train_epochs=1, padding_free=padding_free, **settings, **split(size))
        seen.clear()  # without those with which it was tried out
        records.append(train(one))
        figures.append({name: value for name, value in one.evaluate().items() if "/" in name or name == "eval_loss"})
        assert bool(seen) == padding_free
    return records, figures


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_the_same(kind: str, tmp_path: Path, passes: list[Bins]) -> None:
    """Every kind of task has a head and a loss of its own after the layers: losses, gradients and figures have to be
    the padded ones, on every split of a batch."""
    (padded, *free), (figures, *others) = compared(kind, tmp_path, passes)
    assert len(padded.losses) == 3
    for record, found in zip(free, others, strict=True):
        assert record.losses == pytest.approx(padded.losses, rel=EXACT)
        assert largest_difference(record, padded) < EXACT
        assert found == pytest.approx(figures, rel=1e-6)


def test_both_models_run_without_padding(tmp_path: Path, passes: list[Bins]) -> None:
    """A teacher that runs padded is most of what a step costs; and bins are found once a batch, not once a model."""
    one = make_trainer("classification", tmp_path, max_steps=1, padding_free=True, **split(8))
    assert one.decisions == ["padding_free: on"]
    passes.clear()
    one.train()
    first, second = passes
    assert first is second


def test_a_cached_teacher(tmp_path: Path, passes: list[Bins]) -> None:
    """What was kept of a teacher has no layers: the student alone runs without padding, and its loss stays."""
    records = []
    for padding_free in (False, True):
        student, teacher, data = parts("classification")
        data, replay = capture(teacher, data, tmp_path / "cache").apply(data)
        one = trainer(student, replay, data, tmp_path, terms_of("classification"), padding_free=padding_free)
        passes.clear()
        records.append(train(one))
    assert one.decisions == ["padding_free: on"]
    assert passes
    assert records[1].losses == pytest.approx(records[0].losses, rel=EXACT)
    assert largest_difference(records[1], records[0]) < EXACT


def own_batch() -> dict[str, Tensor]:
    """Return texts that are other tokens to the teacher, of other lengths."""
    torch.manual_seed(3)
    batch: dict[str, Tensor] = {"labels": torch.tensor([0, 1, 2, 0])}
    for prefix, lengths in (("", (9, 2, 4, 3)), ("teacher_", (3, 12, 5, 2))):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        batch[f"{prefix}input_ids"] = torch.randint(2, 40, mask.shape) * mask
        batch[f"{prefix}attention_mask"] = mask.long()
    return batch


def test_a_teacher_with_tokens_of_its_own(tmp_path: Path, passes: list[Bins]) -> None:
    """Its examples have other lengths, and the student's bins would cut them."""
    losses = []
    for padding_free in (False, True):
        one = make_trainer("classification", tmp_path, padding_free=padding_free)
        passes.clear()
        losses.append(one.compute_loss(one.model, own_batch()).item())
    assert losses[1] == pytest.approx(losses[0], rel=EXACT)
    assert [bins.tokens for bins in passes] == [12, 9]


@pytest.mark.parametrize("kind", ["classification", "causal-lm", "causal-lm-gpt2"])
def test_positions_of_a_batch(kind: str, tmp_path: Path, passes: list[Bins]) -> None:
    """Positions that somebody else counts are given to the layers of BERT as well, and no trial had any: the first
    step failed. A training without them is tried above."""
    rows = make_rows(kind)
    for row in rows:
        row["position_ids"] = [2 * place for place in range(len(row["input_ids"]))]
    losses = []
    for padding_free in (False, True):
        one = make_trainer(
            kind, tmp_path, rows=rows, collator=Positions(), max_steps=1, padding_free=padding_free, **split(8)
        )
        passes.clear()
        losses.append(train(one).losses)
        assert len(passes) == 2 * padding_free
    assert losses[1] == pytest.approx(losses[0], rel=EXACT)


class Positions(Collator):
    """Batches with positions."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {**super().__call__(rows), "position_ids": self.pad([row["position_ids"] for row in rows], 0)}


def test_batches_come_with_their_bins(tmp_path: Path) -> None:
    """Found later, on an accelerator, they would cost a wait for it in every step; the collator of the user, whom it
    is handed back to, is not changed."""
    one = make_trainer("sentence-similarity", tmp_path, padding_free=True, dataloader_num_workers=1, **split(8))
    collate = one.data_collator
    batch = next(iter(one.get_train_dataloader()))
    assert one.data_collator is collate
    assert isinstance(batch["bins"], Bins)
    assert (batch["bins"].batch, batch["bins"].tokens) == (24, batch["input_ids"].shape[-1])  # three texts an example
    assert list(batch)[-1] == "bins"  # sizes are read from what comes first


@pytest.mark.parametrize(("padding_free", "short", "taken"), [("auto", 2, False), (True, 2, True), ("auto", 6, True)])
def test_little_padding_is_left(padding_free: Any, short: int, taken: bool, tmp_path: Path, passes: list[Bins]) -> None:
    """`auto` must not pay for gathering where there is next to no padding; `true` takes what there is."""
    one = make_trainer("classification", tmp_path, padding_free=padding_free)
    mask = torch.ones(17, 20, dtype=torch.long)
    mask[:short, 10:] = 0
    passes.clear()
    one.compute_loss(one.model, {"input_ids": 5 * mask, "attention_mask": mask})
    assert bool(passes) == taken


@pytest.mark.parametrize(
    "objective", [Hidden(), Attention(), Relations(relation_heads=2), InputGradient()], ids=lambda one: one.name
)
def test_objectives_that_look_inside(objective: Any, tmp_path: Path, passes: list[Bins]) -> None:
    """They would be shown layers without padding for padded ones: as many numbers, and other tokens."""
    one = make_trainer("classification", tmp_path, terms=[objective, Labels()], **split(8))
    assert (
        one.decisions[-1] == f"padding_free: off ({objective.name} looks into the models, which needs padded batches)"
    )
    passes.clear()
    one.train()
    assert passes == []
    with pytest.raises(UserError, match=f"padding_free is true, but {objective.name} looks into the models"):
        make_trainer("classification", tmp_path, terms=[objective, Labels()], padding_free=True)


def test_what_is_said_in_advance(tmp_path: Path) -> None:
    """Which batches run without padding is not known before they come: `on` was said of runs that had none. Several
    objectives that look inside are plural."""
    one = make_trainer("classification", tmp_path)
    assert one.decisions == ["padding_free: wherever it makes a batch at least 10 % smaller"]
    one = make_trainer("classification", tmp_path, terms=[Embeddings(), Hidden(), Attention()])
    assert one.decisions[-1] == (
        "padding_free: off (embeddings, hidden and attention look into the models, which needs padded batches)"
    )


def test_a_new_student_runs_without_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model_init` makes another student for every training, and a teacher may be exchanged: what holds on to
    the former ones says that it is on, and does nothing."""
    seen: list[nn.Module] = []
    real = PaddingFreeModel.running
    monkeypatch.setattr(
        PaddingFreeModel, "running", lambda self, bins: (seen.append(self.layers[0]), real(self, bins))[1]
    )
    one = make_trainer("classification", tmp_path, max_steps=1, padding_free=True, **split(8))
    one.model_init = lambda: make_models("classification")[0]
    one.teacher = make_models("classification")[1]
    seen.clear()
    one.train()
    models: list[Any] = [one.teacher, one.model]
    assert [layer in set(model.modules()) for layer, model in zip(seen[-2:], models, strict=True)] == [True, True]


def test_padding_on_the_side_that_a_head_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, passes: list[Bins]
) -> None:
    """Who asks for it and has a tokenizer that pads on the left would wait for a speed that never comes."""
    mask = mask_of("left")
    inputs = {"input_ids": 5 * mask, "attention_mask": mask}
    for padding_free in (True, "auto"):
        caplog.clear()
        one = make_trainer("classification", tmp_path, padding_free=padding_free)
        passes.clear()
        for _ in range(2):
            one.compute_loss(one.model, inputs)
        assert passes == []
        said = [record.getMessage() for record in caplog.records if "runs with padding" in record.getMessage()]
        assert [text.split(":")[0] for text in said] == [
            f"padding_free is true, but the {whose} runs with padding if padding is on the left"
            for whose in (("teacher", "student") if padding_free is True else ())
        ]
        assert all(text.endswith("Set padding_side of its tokenizer to 'right'") for text in said)


def test_torch_compile(tmp_path: Path) -> None:
    """A graph for every shape of bins is compiled for minutes."""
    with pytest.raises(ValueError, match="padding_free is true, but torch_compile would compile again"):
        make_trainer("classification", tmp_path, padding_free=True, torch_compile=True)
    one = make_trainer("classification", tmp_path, torch_compile=True)
    assert one.decisions == ["padding_free: off (torch_compile would compile again for every shape)"]


def test_off(tmp_path: Path, passes: list[Bins]) -> None:
    """Who turns it off wants to hear no more of it, and no trial either."""
    one = make_trainer("classification", tmp_path, padding_free=False)
    assert one.decisions == []
    assert passes == []


def test_what_else_it_can_be(tmp_path: Path) -> None:
    """The text "false" is true to Python."""
    with pytest.raises(ValueError, match="padding_free must be true, false or 'auto', found 'false'"):
        DistillationArguments(output_dir=str(tmp_path), padding_free="false")


def test_a_model_that_cannot_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for it and does not get it has to be told, once, and the training goes on; `auto` says it in its
    decisions alone."""
    torch.manual_seed(0)
    config = transformers.ConvBertConfig(**COMMON, num_labels=3)
    student = transformers.ConvBertForSequenceClassification(config)
    teacher = transformers.BertForSequenceClassification(transformers.BertConfig(**COMMON, num_labels=3))
    for padding_free in ("auto", True):
        caplog.clear()
        one = DistillationTrainer(
            student,
            DistillationArguments(output_dir=str(tmp_path), report_to="none", padding_free=padding_free),
            teacher=teacher,
            objectives=[KLDivergence()],
        )
        (decision,) = (line for line in one.decisions if line.startswith("padding_free"))
        where = "" if padding_free is True else ", wherever it makes a batch at least 10 % smaller"
        assert decision.startswith(f"padding_free: for the teacher{where} (student: ")
        assert decision.endswith("(student: it does not compute the same without padding)")
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        said = "padding_free is true, but not for all: student: it does not compute the same without padding"
        assert (said in warned) == (padding_free is True)


def test_checkpointing_that_would_forget_the_bins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[Bins]
) -> None:
    """Layers that are computed again together with their hooks, which are gone by then, get the padded masks: such a
    student runs padded. Its teacher never runs twice."""
    monkeypatch.setattr(PaddingFreeModel, "can_recompute", False)
    one = make_trainer("classification", tmp_path, **CHECKPOINTING, **split(8))
    (decision,) = one.decisions
    assert decision.startswith(
        "padding_free: for the teacher, wherever it makes a batch at least 10 % smaller (student: "
    )
    assert decision.endswith("(student: gradient checkpointing would compute its layers again, with padding)")


def test_a_model_without_configuration() -> None:
    """Any module that answers with logits can be a student; only what is known to be layers can run without padding."""
    with pytest.raises(NeedsPadding, match="not a model of Transformers"):
        open_padding_free(nn.Linear(2, 2))
