"""`from_config` across architectures: its sizes, what is copied from the teacher, and what that computes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from hf_distill.component import entry
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.models.parts import Parts
from hf_distill.students import CopyLayers, FromConfig

CLASSIFY, CAUSAL, MASKED = (f"AutoModelFor{name}" for name in ("SequenceClassification", "CausalLM", "MaskedLM"))
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
INNER = {"distilbert": "hidden_dim", "gpt2": "n_inner"}
SETTINGS = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}, "pad_token_id": 0}


def make(family: str, auto_class: str, **changes: Any) -> PreTrainedModel:
    own = AutoConfig.for_model(family)
    sizes = {**SIZES, INNER.get(family, "intermediate_size"): 32, **changes}
    if auto_class == CLASSIFY:
        sizes |= {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    stored = {own.attribute_map.get(key, key): value for key, value in sizes.items()}
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, auto_class).from_config(AutoConfig.for_model(family, **stored))
    with torch.no_grad():  # norms and biases start as ones and zeros, and would be equal without a copy
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def head(auto_class: str) -> Head:
    return Head(auto_class, SETTINGS if auto_class == CLASSIFY else {"pad_token_id": 0})


def states(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden[mask.bool()]


PAIRS = [
    ("bert", "distilbert", CLASSIFY),
    ("bert", "modernbert", CLASSIFY),
    ("roberta", "bert", MASKED),
    ("bert", "roberta", MASKED),
    ("gpt2", "llama", CAUSAL),
    ("llama", "mamba", CAUSAL),
    ("llama", "qwen3", CAUSAL),
]


@pytest.mark.parametrize(("theirs", "ours", "auto_class"), PAIRS)
def test_it_has_the_teachers_sizes_and_vocabulary(theirs: str, ours: str, auto_class: str, tmp_path: Path) -> None:
    """The library's defaults are those of a large model: a student of 7 billion parameters, with another vocabulary."""
    teacher = make(theirs, auto_class)
    student = FromConfig(model_type=ours, start="teacher", overrides={"num_hidden_layers": 3})
    config = student.config(teacher.config)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (16, 3, 50)
    assert (config.pad_token_id, config.eos_token_id) == (0, 2)
    made = student.made(teacher, head(auto_class), None)  # type: ignore[arg-type]
    assert Parts.of(made.model).total < 16_000
    assert states(made.model).isfinite().all()
    assert made.facts["copied from the teacher"]["its layers"] == [0, 2, 5]
    made.model.save_pretrained(tmp_path)
    again, info = getattr(transformers, auto_class).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(states(again.eval()), states(made.model))


def copied(theirs: str, ours: str, auto_class: str, **settings: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a copy of the teacher with three of its layers, and a student of another class that starts from it."""
    teacher = make(theirs, auto_class)
    student = FromConfig(start="teacher", overrides={"num_hidden_layers": 3, **settings}, model_type=ours)
    return CopyLayers(layers=3).make(teacher, head(auto_class)), student.make(teacher, head(auto_class))


def test_bert_as_distilbert_computes_the_same() -> None:
    """A matrix in the place of another, or one that is not copied: only the student's start would show it."""
    shortened, student = copied("bert", "distilbert", CLASSIFY)
    with torch.no_grad():
        shortened.bert.embeddings.token_type_embeddings.weight.zero_()  # DistilBERT has no segments
    torch.testing.assert_close(states(student), states(shortened))


def test_norms_that_mean_another_thing_are_not_copied() -> None:
    """Gemma scales by 1 plus the weight: with those of a Llama, near 1, every state would be twice as long."""
    gemma = FromConfig(start="teacher", model_type="gemma").make(make("llama", CAUSAL), head(CAUSAL))
    norms = [weight for name, weight in gemma.named_parameters() if "norm" in name]
    assert len(norms) == 13
    assert not any(weight.any() for weight in norms)
    assert FromConfig(start="teacher", model_type="gemma2").make(gemma, head(CAUSAL)).model.norm.weight.eq(0).all()


@pytest.mark.parametrize(("theirs", "ours"), [("roberta", "bert"), ("bert", "roberta")])
def test_positions_are_moved_to_where_the_other_class_begins(theirs: str, ours: str) -> None:
    """RoBERTa's first position is in row 2 of its table: copied by rows, every token would be at a wrong place."""
    shortened, student = copied(theirs, ours, MASKED, layer_norm_eps=1e-5)
    shortened.config.layer_norm_eps = 1e-5
    for module in shortened.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    torch.testing.assert_close(states(student), states(shortened))


def test_llama_as_mistral_computes_the_same() -> None:
    """Also the head of a language model, which is the teacher's embeddings where only the teacher shares them."""
    shortened, student = copied("llama", "mistral", CAUSAL, sliding_window=None, rms_norm_eps=1e-6)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    torch.testing.assert_close(student(ids).logits, shortened(ids).logits)
    tied = make("llama", CAUSAL, tie_word_embeddings=True)
    made = FromConfig(model_type="mistral", start="teacher").make(tied, head(CAUSAL))
    assert made.get_output_embeddings().weight is not made.get_input_embeddings().weight
    assert made.get_output_embeddings().weight.equal(tied.get_input_embeddings().weight)


def test_joined_and_transposed_matrices() -> None:
    """ModernBERT has queries, keys and values in one matrix; GPT-2 stores its matrices the other way round."""
    _, student = copied("bert", "modernbert", MASKED)
    theirs = make("bert", MASKED).bert.encoder.layer[2]
    of_attention = theirs.attention.self
    joined = torch.cat([of_attention.query.weight, of_attention.key.weight, of_attention.value.weight])
    ours = student.model.layers[1]
    assert ours.attn.Wqkv.weight.equal(joined)
    assert ours.attn.Wo.weight.equal(theirs.attention.output.dense.weight)
    assert ours.mlp.Wi.weight[:32].equal(theirs.intermediate.dense.weight)
    teacher = make("gpt2", CAUSAL)
    llama = FromConfig(model_type="llama", start="teacher").make(teacher, head(CAUSAL)).model.layers[5]
    block = teacher.transformer.h[5]
    assert llama.self_attn.k_proj.weight.equal(block.attn.c_attn.weight.T[16:32])
    assert llama.self_attn.o_proj.weight.equal(block.attn.c_proj.weight.T)
    assert llama.mlp.down_proj.weight.equal(block.mlp.c_proj.weight.T)


def test_the_same_class_with_fewer_layers_is_copy_layers() -> None:
    """The same start by two entries, or one of them copies less than it could."""
    teacher = make("bert", CLASSIFY)
    made = FromConfig(start="teacher", overrides={"num_hidden_layers": 3}).made(teacher, head(CLASSIFY), None)  # type: ignore[arg-type]
    assert " (100 %)" in made.facts["copied from the teacher"]["parameters"]
    wanted = CopyLayers(layers=3).make(teacher, head(CLASSIFY)).state_dict()
    assert all(weight.equal(wanted[name]) for name, weight in made.model.state_dict().items())


def test_heads_of_other_labels_and_attention_of_other_heads_stay_random() -> None:
    """Rows of a head in another order name the classes wrongly; a query cut at other places answers nothing."""
    teacher = make("bert", CLASSIFY)
    turned = {**SETTINGS, "id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    made = FromConfig(start="teacher").make(teacher, Head(CLASSIFY, turned))
    assert not made.classifier.weight.equal(teacher.classifier.weight)
    student = FromConfig(start="teacher", overrides={"num_attention_heads": 4})
    facts = student.made(teacher, head(CLASSIFY), None).facts["copied from the teacher"]  # type: ignore[arg-type]
    assert facts["of another size"] == "query, key, value, attention output"


@pytest.mark.parametrize(
    ("fields", "key", "words"),
    [
        ({"model_type": "modernbort"}, "model_type", "Did you mean 'modernbert'"),
        ({"model_type": "mamba2"}, "overrides", "cannot have the teacher's sizes"),
        ({"model_type": "bert", "overrides": {"hidden_size": 8, "num_attention_heads": 1}}, "start", "nothing of the"),
        ({"model_type": "bert", "overrides": {"head_dims": 8}}, "overrides.head_dims", "no such key"),
        ({"model_type": "t5"}, "name", "with which token it starts"),
    ],
)
def test_what_is_not_possible_is_said_before_weights_are_loaded(fields: dict[str, Any], key: str, words: str) -> None:
    """After the teacher was trained it would cost hours; a random student that is said to start from it costs more."""
    teacher = make("bert", CLASSIFY).config
    if fields["model_type"] == "bert":
        teacher = make("roberta", CLASSIFY).config
    with pytest.raises(UserError, match=words) as caught:
        FromConfig(start="teacher", **fields).config(teacher)
    assert caught.value.key == key


def test_random_is_random() -> None:
    """What was random in earlier versions must not begin to know the task: a baseline would know it too."""
    teacher = make("bert", CLASSIFY)
    student = FromConfig(overrides={"num_hidden_layers": 2})
    assert not student.copies_teacher
    assert FromConfig(start="teacher").copies_teacher
    torch.manual_seed(3)
    made = student.make(teacher, head(CLASSIFY))
    torch.manual_seed(3)
    again = transformers.BertForSequenceClassification(made.config)
    assert all(one.equal(other) for one, other in zip(made.parameters(), again.parameters(), strict=True))
    assert entry(student) == {"name": "from_config", "overrides": {"num_hidden_layers": 2}}


def test_what_a_class_computes_follows_from_the_overrides() -> None:
    """Mamba's inner width is computed from the outer one: kept from the wider teacher, the student is too large."""
    wide = transformers.MambaConfig(hidden_size=64, expand=3, num_hidden_layers=2, vocab_size=50)
    assert wide.intermediate_size == 192
    narrow = FromConfig(overrides={"hidden_size": 32}).config(wide)
    assert (narrow.intermediate_size, narrow.time_step_rank, narrow.expand) == (96, 2, 3)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba"])
def test_padding_does_not_reach_the_state(model_type: str, side: str) -> None:
    """A state that has read padding gives other logits in a batch than alone, and nothing says so."""
    torch.manual_seed(0)
    model = make(model_type, CAUSAL, num_hidden_layers=2)
    ids, padding = torch.tensor([[5, 6, 7, 8, 9, 10, 11]]), torch.zeros(1, 5, dtype=torch.long)
    first = side == "left"
    padded = torch.cat([padding, ids] if first else [ids, padding], dim=1)
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        together = model(input_ids=padded, attention_mask=(padded != 0).long()).logits
    torch.testing.assert_close(together[:, 5:] if first else together[:, :7], alone)


# --- by cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama", "mamba", "t5", "distilbert"])
def test_shapes_grow_and_keep_the_proportions(family: str) -> None:
    """The choice halves the list of shapes: one that is smaller than the one before would hide better ones."""
    config = AutoConfig.for_model(family, **({"num_attention_heads": 8} if family == "llama" else {}))
    shapes = list(FromConfig(size=0.5).shapes(config))
    sizes = [one.plain_config(config) for one in shapes]
    assert sizes[-1].hidden_size == config.hidden_size
    assert all(one.hidden_size <= other.hidden_size for one, other in pairwise(sizes))
    assert all(one.num_hidden_layers <= other.num_hidden_layers for one, other in pairwise(sizes))
    middle = sizes[len(sizes) // 2 - 1]
    assert middle.hidden_size * 2 == config.hidden_size
    assert middle.num_hidden_layers * 2 == config.num_hidden_layers


def test_what_is_given_stays() -> None:
    """Layers that a recipe fixes would be overwritten by the cost."""
    config = AutoConfig.for_model("bert")
    shapes = list(FromConfig(size=0.5, overrides={"num_hidden_layers": 4}).shapes(config))
    assert {one.plain_config(config).num_hidden_layers for one in shapes} == {4}
    assert shapes[0].overrides == {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "num_hidden_layers": 4,
    }
