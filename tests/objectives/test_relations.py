"""Relations inside attention (MiniLM): where vectors are found, and the divergence of their relations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import transformers
from torch import Tensor, nn

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model
from hf_distill.models.layers import read_stack
from hf_distill.objectives.attention_vectors import KINDS, Vectors
from hf_distill.objectives.base import Comparison
from hf_distill.objectives.relations import PLAIN_ATTENTION, Relations, RelationTerm, relation_gap, vector_widths
from hf_distill.rows.tokens import TokenRows

LENGTH = 6
TINY: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 8,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
}
BART: dict[str, Any] = {
    "vocab_size": 20,
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "max_position_embeddings": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "init_std": 0.5,
}
# By model type: what its configuration needs; the last part of a name is the stack of an encoder-decoder.
MODELS: dict[str, dict[str, Any]] = {
    "bert": TINY,
    "roberta": TINY,
    "electra": TINY | {"embedding_size": 16},
    "albert": TINY | {"embedding_size": 8},
    "distilbert": {"vocab_size": 20, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 8, "initializer_range": 0.5},
    "mpnet": TINY,
    "deberta-v2": TINY,
    "modernbert": TINY
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "llama": TINY | {"num_key_value_heads": 2},
    "qwen2": TINY | {"num_key_value_heads": 2},
    "gemma": TINY | {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": TINY | {"num_key_value_heads": 2},
    "gpt2": {"vocab_size": 20, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "initializer_range": 0.5},
    "gpt_neox": TINY,
    "bart-encoder": BART,
    "bart-decoder": BART,
    "t5-encoder": {"vocab_size": 20, "d_model": 16, "d_kv": 8, "num_layers": 3, "num_heads": 4, "d_ff": 8},
    "t5-decoder": {"vocab_size": 20, "d_model": 16, "d_kv": 8, "num_layers": 3, "num_heads": 4, "d_ff": 8},
}
# What comes after attention, and reads all heads side by side.
OUTPUT = {
    **dict.fromkeys(("bert", "roberta", "electra", "deberta-v2"), "attention.output.dense"),
    **dict.fromkeys(("llama", "qwen2", "gemma", "mistral"), "self_attn.o_proj"),
    "albert": "attention.dense",
    "distilbert": "out_lin",
    "mpnet": "attn.o",
    "modernbert": "attn.Wo",
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "bart": "self_attn.out_proj",
    "t5": "SelfAttention.o",
}
# Whose scores are not divided by the root of the size of a head.
UNSCALED = {"t5"}


def build(name: str, **settings: Any) -> tuple[Any, Any]:
    """Return a tiny model without dropout, and the stack that its name says."""
    kind, _, part = name.rpartition("-") if name.endswith(("-encoder", "-decoder")) else (name, "", None)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**MODELS[name], **settings})
    config._attn_implementation = "eager"
    model: Any = transformers.AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return model.eval().double(), part


def run(model: Any, part: str | None) -> Any:
    """Return the model's outputs on two texts, positions all alike, so that rotary ones change nothing."""
    ids = torch.randint(3, 20, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    inputs: dict[str, Any] = {"input_ids": ids, "output_attentions": True, "output_hidden_states": True}
    if part is not None:
        inputs["decoder_input_ids"] = ids.flip(1)
    elif model.config.model_type in ("llama", "qwen2", "gemma", "mistral", "gpt_neox", "modernbert"):
        inputs["position_ids"] = torch.zeros_like(ids)
    return model(**inputs)


def no_bias(model: Any) -> None:
    """Take away what T5 and MPNet add to their scores by distance."""
    for name, module in model.named_modules():
        if name.endswith("relative_attention_bias"):
            nn.init.zeros_(module.weight)


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_that_the_model_attends_with(name: str) -> None:
    """A wrong projection, third or layer trains relations of something else: queries and keys must give the model's
    own attention, and that with the values what its output projection reads."""
    model, part = build(name)
    no_bias(model)
    stack = read_stack(model.config, part, "student")
    vectors = Vectors(model, stack, part)
    read: list[Tensor] = []
    output = OUTPUT[model.config.model_type]
    outputs = [
        module
        for path, module in model.named_modules()
        if path.endswith(output) and (part or "") in path and "ncoder_attn" not in path and "EncDec" not in path
    ]
    hooks = [module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])) for module in outputs]
    with vectors.watching(KINDS, range(1, 4)):
        found = run(model, part)
    for hook in hooks:
        hook.remove()
    attentions = found["attentions" if part is None else f"{part}_attentions"]
    kept = vectors.take()
    assert len(kept) == 9
    widths = vector_widths(model.config, part)
    size = widths["queries"] // 4
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    for layer in (1, 2, 3):
        q, k, v = (kept[layer, kind].reshape(2, LENGTH, -1, size).transpose(1, 2) for kind in KINDS)
        assert [one.shape[1] * size for one in (q, k, v)] == [widths[kind] for kind in KINDS]
        k, v = (one.repeat_interleave(4 // one.shape[1], 1) for one in (k, v))
        scores = q @ k.mT / (1 if model.config.model_type in UNSCALED else size**0.5)
        if vectors.causal:
            scores = scores.masked_fill(~mask.tril(), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), attentions[layer - 1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            (attentions[layer - 1] @ v).transpose(1, 2).flatten(2), read[layer - 1], rtol=1e-5, atol=1e-6
        )


# --- the formula ------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]) != 0


def by_hand(student: np.ndarray, teacher: np.ndarray, heads: int, *, causal: bool = False) -> np.ndarray:
    """KL of every token of one text without padding, mean over heads, in the words of the paper."""
    losses = np.zeros((heads, len(student)))
    for head in range(heads):
        for token in range(len(student)):
            seen = slice(0, token + 1 if causal else len(student))
            rows = []
            for vectors in (student, teacher):
                size = vectors.shape[1] // heads
                part = vectors[:, head * size : (head + 1) * size]
                rows.append(scipy.special.softmax(part[seen] @ part[token] / np.sqrt(size)))
            losses[head, token] = scipy.special.rel_entr(rows[1], rows[0]).sum()
    found: np.ndarray = losses.mean(0)
    return found


def vectors_of(width: int, seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(2, LENGTH, width, generator=chance, dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_gap_is_the_divergence_of_the_papers_relations(heads: int, *, causal: bool) -> None:
    """The wrong scale, direction or cut into heads still looks like a loss, and padding makes it another one."""
    ours, theirs = vectors_of(8, 1), vectors_of(12, 2)
    gaps = relation_gap((ours, ours), (theirs, theirs), heads, MASK, causal=causal)
    for text in range(2):
        kept = MASK[text]
        expected = by_hand(ours[text, kept].numpy(), theirs[text, kept].numpy(), heads, causal=causal)
        assert expected[-1] > 0.01
        assert gaps[text, kept].tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_padding_reaches_neither_value_nor_gradient() -> None:
    """NaN in a padded state, multiplied by a mask of 0, is NaN in every weight."""
    ours, theirs = vectors_of(8, 1), vectors_of(12, 2)
    clean = relation_gap((ours, ours), (theirs, theirs), 4, MASK)[MASK]
    ours, theirs = (one.masked_fill(~MASK.unsqueeze(-1), torch.nan) for one in (ours, theirs))
    ours.requires_grad_()
    found = relation_gap((ours, ours), (theirs, theirs), 4, MASK)[MASK]
    torch.testing.assert_close(found, clean)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    assert not ours.grad[~MASK].any()


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_is_that_of_the_value(*, causal: bool) -> None:
    """What trains must be the slope of what is logged."""
    ours, theirs = vectors_of(4, 1).requires_grad_(), vectors_of(6, 2)

    def value(vectors: Tensor) -> Tensor:
        return relation_gap((vectors, vectors), (theirs, theirs), 2, MASK, causal=causal)[MASK]

    assert torch.autograd.gradcheck(value, ours)


def test_far_vectors_in_half_precision_stay_finite() -> None:
    """Untrained large vectors give relations of 0 and 1 only: a logarithm of 0 in bfloat16 is the end of a run."""
    ours, theirs = (100 * vectors_of(8, seed).bfloat16() for seed in (1, 2))
    gaps = relation_gap((ours.requires_grad_(), ours), (theirs, theirs), 2, MASK)[MASK]
    assert gaps.dtype == torch.float32
    gaps.sum().backward()  # type: ignore[no-untyped-call]
    assert gaps.isfinite().all()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


# --- two models -------------------------------------------------------------------------------------------------------


def pair(student: str = "bert", teacher: str = "bert", **settings: Any) -> tuple[Any, Any, str | None]:
    """Return a student with two layers, a teacher with three, and the stack."""
    depth = {
        "gpt2": {"n_layer": 2},
        "bart-encoder": {"encoder_layers": 2},
        "bart-decoder": {"decoder_layers": 2},
        "t5-encoder": {"num_layers": 2},
        "t5-decoder": {"num_decoder_layers": 2},
    }.get(student, {"num_hidden_layers": 2})
    theirs, part = build(teacher)
    torch.manual_seed(1)
    mine, _ = build(student, **{**depth, **settings})
    for parameter in mine.parameters():  # seed 0 made both
        nn.init.normal_(parameter, std=0.4)
    return mine, theirs, part


def losses(
    objective: Relations, student: Any, teacher: Any, mask: Tensor = MASK, *, labels: Tensor | None = None
) -> Tensor:
    """Return what a term gives, run as the trainer runs it."""
    term = objective.prepare(student, teacher)
    assert isinstance(term, RelationTerm)
    ids = torch.randint(3, 20, mask.shape, generator=torch.Generator().manual_seed(1))
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask.long()}
    if labels is not None:
        inputs["labels"] = labels
    given = {"input_ids": ids, "attention_mask": mask.long()}
    if objective.part is not None:
        given["decoder_input_ids"] = ids.flip(1)
    with term.watching():
        with torch.no_grad():
            theirs = teacher(**given)
        ours = student(**given)
    layout = TokenRows()
    logits = torch.zeros(*mask.shape, 2, dtype=torch.float64)
    batch = Comparison(layout.select(logits, logits, inputs), ours, theirs, inputs, layout.tokens(inputs))
    values: Tensor = term(batch)
    return values


@pytest.mark.parametrize("name", ["bert", "albert", "llama", "gpt2", "t5-encoder", "t5-decoder"])
def test_term_sums_tokens_of_the_chosen_layers(name: str) -> None:
    """The term must be the paper's number of the layers that the recipe names, summed over tokens and kinds."""
    student, teacher, part = pair(name, name)
    mask = MASK.roll(-2, 1)  # in float64 Llama makes NaN of padding on the left
    labels = torch.where(mask, 1, -100)
    if part == "decoder":
        labels[0, 4:] = -100
    counted = labels != -100 if part == "decoder" else mask
    objective = Relations(relation_heads=2, layers=((2, 1), (1, 3)), part=part)  # type: ignore[arg-type]
    found = losses(objective, student, teacher, mask, labels=labels)
    expected = np.zeros(2)
    taps = [Vectors(model, read_stack(model.config, part, "student"), part) for model in (student, teacher)]  # type: ignore[arg-type]
    ids = torch.randint(3, 20, MASK.shape, generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "attention_mask": mask.long()}
    if part is not None:
        given["decoder_input_ids"] = ids.flip(1)
    kept = []
    for model, tap in zip((student, teacher), taps, strict=True):
        with tap.watching(KINDS, (1, 2, 3)), torch.no_grad():
            model(**given)
        kept.append(tap.take())
    causal = name in ("llama", "gpt2", "t5-decoder")
    for ours, theirs in ((2, 1), (1, 3)):
        for kind in KINDS:
            for text in range(2):
                one = kept[0][ours, kind][text, counted[text]].numpy()
                two = kept[1][theirs, kind][text, counted[text]].numpy()
                expected[text] += by_hand(one, two, 2, causal=causal).sum() / 2
    assert found.detach().numpy() == pytest.approx(expected, rel=1e-9)
    assert (expected > 0.01).all()


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "albert", "distilbert", "bart-encoder", "bart-decoder"])
def test_attention_is_the_models_own(name: str) -> None:
    """MiniLM's first term compares probabilities: those that the model itself returns, without dropout."""
    student, teacher, part = pair(name, name)
    objective = Relations(of=("attention",), layers=((1, 2),), part=part)  # type: ignore[arg-type]
    mask = MASK.roll(-2, 1) if part else MASK  # what a causal row sees of padding on the left is left to the model
    labels = torch.where(mask, 1, -100)
    found = losses(objective, student, teacher, mask, labels=labels)
    ids = torch.randint(3, 20, mask.shape, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "output_attentions": True}
    if part is not None:
        given |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": mask.long()}
    key = "attentions" if part is None else f"{part}_attentions"
    ours, theirs = student(**given)[key][0], teacher(**given)[key][1]
    divergences = torch.special.xlogy(theirs, theirs / ours).nan_to_num(0.0).sum(-1).mean(1)
    assert found.tolist() == pytest.approx((divergences * mask).sum(-1).tolist(), rel=1e-8)


def test_dropout_of_attention_does_not_reach_its_probabilities() -> None:
    """Transformers returns attention after dropout: zeros, at which a divergence is infinite."""
    student, teacher, _ = pair(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    objective = Relations(of=("attention", "values"), layers=((1, 1),))
    calm = losses(objective, student, teacher)
    torch.testing.assert_close(losses(objective, student.train(), teacher), calm)


@pytest.mark.parametrize(("student", "teacher"), [("bert", "bert"), ("bert", "roberta"), ("modernbert", "bert")])
@pytest.mark.parametrize("side", [(0, 3), (2, 1)])
def test_padding_changes_nothing(student: str, teacher: str, side: tuple[int, int]) -> None:
    """The length that a batch is padded to depends on the other texts in it."""
    mine, theirs, _ = pair(student, teacher)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]]) != 0
    objective = Relations(relation_heads=2)

    def run_with(left: int, right: int) -> Tensor:
        term = objective.prepare(mine, theirs)
        assert isinstance(term, RelationTerm)
        ids = torch.arange(3, 11).reshape(2, 4)
        padded = nn.functional.pad(ids, (left, right), value=1)
        seen = nn.functional.pad(mask.long(), (left, right))
        # Positions as the text has them, whichever side the padding is on.
        given = {"input_ids": padded, "attention_mask": seen}
        layout = TokenRows()
        with term.watching():
            outputs = [model(**given, **positions(model, seen)) for model in (theirs, mine)]
        logits = torch.zeros(*padded.shape, 2)
        rows = layout.select(logits, logits, given)
        values: Tensor = term(Comparison(rows, outputs[1], outputs[0], given, seen != 0))
        return values

    torch.testing.assert_close(run_with(*side), run_with(0, 0), rtol=1e-6, atol=1e-8)


def positions(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """RoBERTa counts from its first token by itself."""
    return {} if model.config.model_type == "roberta" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def test_a_student_equal_to_its_teacher_pays_nothing() -> None:
    """A loss that is not smallest at the teacher teaches something else."""
    teacher, _ = build("bert")
    student, _ = build("bert")
    found = losses(Relations(of=("attention", "queries", "keys", "values"), layers="uniform"), student, teacher)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_gradient_reaches_the_projections_of_the_student_and_hooks_are_gone() -> None:
    """A hook that is left keeps the activations of every later forward pass; a teacher's gradient its whole graph."""
    student, teacher, _ = pair()
    losses(Relations(relation_heads=2), student, teacher).sum().backward()  # type: ignore[no-untyped-call]
    attention = student.encoder.layer[1].attention.self
    for projection in (attention.query, attention.key, attention.value):
        assert projection.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for model in (student, teacher):
        assert not any(module._forward_hooks for module in model.modules())


def test_projections_with_adapters_are_found() -> None:
    """LoRA puts a layer of its own in a projection's place: hooked inside of it, the adapter would not train."""
    import peft

    student, teacher, _ = pair()
    wrapped = peft.get_peft_model(student, peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    before = losses(Relations(relation_heads=2), base_model(wrapped), teacher)
    before.sum().backward()  # type: ignore[no-untyped-call]
    trained = {
        name.split(".")[-3] for name, one in wrapped.named_parameters() if one.grad is not None and one.grad.any()
    }
    assert trained == {"lora_A", "lora_B"}
    with wrapped.disable_adapter():
        assert not torch.allclose(losses(Relations(relation_heads=2), base_model(wrapped), teacher), before)


def test_term_holds_no_model() -> None:
    """A model that is a submodule of a term is trained, and saved, twice."""
    student, teacher, _ = pair()
    term = Relations(relation_heads=2).prepare(student, teacher)
    assert not list(term.parameters())
    assert not list(term.state_dict())


def test_gradient_checkpointing() -> None:
    """Computed again in the backward pass, layers must give the same gradient; the re-entrant kind gives none."""
    gradients = []
    for settings in (None, {"use_reentrant": False}):
        student, teacher, _ = pair()
        if settings is not None:
            student.gradient_checkpointing_enable(settings)
        losses(Relations(relation_heads=2), student.train(), teacher).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(student.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    student.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant: false"):
        losses(Relations(relation_heads=2), student, teacher)


def test_deberta_projects_its_table_of_distances_too() -> None:
    """The second call of the same projection is no token's query: it would have another length, or, worse, the same."""
    settings: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True}
    model, _ = build("deberta-v2", **settings)
    vectors = Vectors(model, read_stack(model.config, None, "student"), None)
    with vectors.watching(("queries",), (1, 2, 3)):
        states = run(model, None).hidden_states
    for layer, vector in vectors.take().items():
        projection = model.encoder.layer[layer[0] - 1].attention.self.query_proj
        torch.testing.assert_close(vector, projection(states[layer[0] - 1]))


# --- what is refused --------------------------------------------------------------------------------------------------


def config(name: str, **settings: Any) -> Any:
    return transformers.AutoConfig.for_model(name, **{**MODELS[name], **settings})


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "key", "message"),
    [
        (Relations(relation_heads=3), {}, {}, "relation_heads", "3 relation heads do not divide the 16 entries"),
        (Relations(), {"hidden_size": 18, "num_attention_heads": 3}, {}, "relation_heads", "4 relation heads"),
        (Relations(of=("attention",)), {"num_attention_heads": 2}, {}, "of", "has 2 heads and"),
        (Relations(layers=((0, 1),)), {}, {}, "layers", "index 0"),
        (Relations(part="encoder"), {}, {}, "part", "is not one"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_their_configurations(
    objective: Relations, student: dict[str, Any], teacher: dict[str, Any], key: str, message: str
) -> None:
    """Found only in the first step, after both models have been loaded, a mistake costs minutes."""
    with pytest.raises(UserError, match=message) as caught:
        objective.check(config("bert", **student), config("bert", **teacher))
    assert caught.value.key == key


def test_attention_is_refused_where_it_is_more_than_queries_and_keys() -> None:
    """Without its rotations the softmax of a Llama's queries and keys is not its attention."""
    assert "llama" not in PLAIN_ATTENTION
    with pytest.raises(UserError, match="rotary or relative"):
        Relations(of=("attention",)).check(config("bert"), config("llama"))
    Relations(relation_heads=2).check(config("bert"), config("llama"))


def test_grouped_values_are_narrower_than_queries() -> None:
    """Llama's keys and values have fewer heads: a number that divides the queries need not divide them."""
    with pytest.raises(UserError, match="8 entries of the keys"):
        Relations(relation_heads=16).check(config("bert"), config("llama"))
    Relations(of=("queries",), relation_heads=16).check(config("bert"), config("llama"))


def test_unknown_projections_are_named() -> None:
    """A model whose vectors are not found must say what was looked for, not compare nothing."""
    model, _ = build("bert")
    for layer in model.encoder.layer[:2]:
        layer.attention.self.other = layer.attention.self.key
        del layer.attention.self.key
    with pytest.raises(UserError, match=r"3 layers of the student .bert.*query/key/value.*found 3 queries, 1 keys"):
        Vectors(model, read_stack(model.config, None, "student"), None)


def test_relations_read_from_yaml_and_python_are_the_same() -> None:
    """YAML has lists, frozen objects have tuples."""
    assert Relations(of=["queries", "values"]) == Relations(of=("queries", "values"))  # type: ignore[arg-type]
