"""Students: what is copied computes what it computed, what is random has the asked shape, and mistakes are one line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from student_models import (
    CAUSAL,
    CLASSIFY,
    DECODERS,
    FAMILIES,
    GEMMA,
    MASKED,
    SEQ2SEQ,
    SIZES,
    logits,
    make_teacher,
    make_two_stacks,
    target_logits,
)
from transformers import AutoConfig, PretrainedConfig

from hf_distill.component import entry
from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks
from hf_distill.models.loading import Head
from hf_distill.students import (
    STUDENTS,
    CopyLayers,
    FromConfig,
    LoraStudent,
    OptimalBrainDamage,
    PretrainedStudent,
    PruneDepth,
    PruneVocabulary,
    PruneWidth,
)
from hf_distill.students.copy_layers import spread

CASES = [
    *((family, CLASSIFY) for family in FAMILIES),
    *((family, CAUSAL if family in DECODERS else MASKED) for family in FAMILIES),
]


# --- copy_layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "total", "kept"),
    [
        (6, 12, [0, 2, 4, 7, 9, 11]),
        (1, 12, [0]),
        (2, 12, [0, 11]),
        (3, 12, [0, 6, 11]),
        (4, 12, [0, 4, 7, 11]),
        (3, 6, [0, 2, 5]),
        (2, 6, [0, 5]),
        (12, 24, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, 1, [0]),
    ],
)
def test_spread_table(count: int, total: int, kept: list[int]) -> None:
    """A changed rule would silently make other students from the same recipe; 12 to 6 is DistilBERT's."""
    assert spread(count, total) == kept


def test_spread_is_increasing() -> None:
    """Rounding halves the wrong way would keep one layer twice and lose another."""
    for total in range(1, 49):
        for count in range(1, total + 1):
            kept = spread(count, total)
            assert kept == sorted(set(kept))
            assert len(kept) == count
            assert kept[0] == 0
            assert count == 1 or kept[-1] == total - 1


@pytest.mark.parametrize(("family", "head"), CASES)
def test_all_layers_give_the_teacher(family: str, head: str) -> None:
    """A weight, norm or bias that is not copied only shows as a student that starts worse than it could."""
    teacher = make_teacher(family, head)
    student = CopyLayers(layers=6).make(teacher, Head(head))
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=0)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_layers_in_the_middle_are_skipped(family: str, head: str) -> None:
    """The right number of the wrong layers: the student must equal the teacher with the other layers taken out."""
    teacher = make_teacher(family, head)
    kept = [0, 2, 3, 5]
    student = CopyLayers(layers=kept).make(teacher, Head(head))
    assert student.config.num_hidden_layers == 4

    shortened = copy.deepcopy(teacher)
    place, layers = find_stacks(shortened)["layers"]
    parent, _, name = place.rpartition(".")
    setattr(shortened.get_submodule(parent), name, torch.nn.ModuleList(layers[index] for index in kept))
    shortened.config.num_hidden_layers = 4
    if getattr(shortened.config, "layer_types", None):  # read again in forward, by position
        shortened.config.layer_types = [shortened.config.layer_types[index] for index in kept]
    cache = {"use_cache": False} if family in DECODERS else {}  # the shortened one's layer_idx has gaps
    torch.testing.assert_close(logits(student, **cache), logits(shortened, **cache), rtol=0, atol=0)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_saved_and_reopened_is_equal(family: str, head: str, tmp_path: Path) -> None:
    """A student that only works in memory: its saved configuration describes another model than the weights."""
    student = CopyLayers(layers=[0, 3, 4]).make(make_teacher(family, head), Head(head))
    student.save_pretrained(tmp_path)
    again, info = getattr(transformers, head).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(again.eval()), logits(student), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_student_is_trainable_float32_and_its_own(family: str) -> None:
    """A student that shares storage with the teacher trains the teacher; one in bfloat16 loses small updates."""
    teacher = make_teacher(family).to(torch.bfloat16).requires_grad_(False)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    config_before = teacher.config.to_dict()
    student = CopyLayers(layers=2).make(teacher, Head(CLASSIFY))
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in student.parameters())
    assert student.config.dtype == torch.float32
    theirs = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not theirs & {value.data_ptr() for value in student.state_dict().values()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert teacher.config.to_dict() == config_before


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3_text"])
def test_generation_with_cache_is_that_without(family: str) -> None:
    """A kept `layer_idx` of 5 in a model of 3 layers writes to cache slots nobody reads: generation turns wrong."""
    teacher = make_teacher(family, CAUSAL, tie_word_embeddings=True)
    teacher.generation_config.max_new_tokens = 9
    student = CopyLayers(layers=3).make(teacher, Head(CAUSAL))
    assert student.generation_config is not teacher.generation_config
    assert student.generation_config.max_new_tokens == 9
    ids = torch.tensor([[5, 6, 7, 8]])
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = student.generate(ids, use_cache=True, **settings)
    assert cached.shape == (1, 13)
    assert torch.equal(cached, student.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize(("family", "head"), [("llama", CAUSAL), ("gpt2", CAUSAL), ("bert", MASKED)])
def test_tied_weights_stay_tied(family: str, head: str) -> None:
    """An output matrix copied apart from the embedding has twice the parameters, and its training goes astray."""
    student = CopyLayers(layers=2).make(make_teacher(family, head, tie_word_embeddings=True), Head(head))
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_config_needs_no_weights_and_is_the_students() -> None:
    """`--check` compares configurations before anything loads; one that differs from the model's checks nothing."""
    teacher = make_teacher("qwen3", CAUSAL)
    planned = CopyLayers(layers=[0, 2, 5]).config(teacher.config)
    assert planned.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    made = CopyLayers(layers=[0, 2, 5]).make(teacher, Head(CAUSAL)).config
    assert (planned.num_hidden_layers, planned.layer_types) == (made.num_hidden_layers, made.layer_types)
    assert teacher.config.num_hidden_layers == 6


def test_a_list_that_is_not_per_layer_is_left_alone() -> None:
    """Three stop tokens in a model of three layers are not one a layer: cut, generation would never stop."""
    teacher = make_teacher("llama", CAUSAL, num_hidden_layers=3, eos_token_id=[2, 3, 4])
    assert CopyLayers(layers=2).config(teacher.config).eos_token_id == [2, 3, 4]


def test_head_settings_reach_the_student() -> None:
    """Label names and the padding token are what a served student is read by; lost, they turn into LABEL_0."""
    settings = {
        "num_labels": 3,
        "id2label": {0: "BAD", 1: "GOOD", 2: "ODD"},
        "label2id": {"BAD": 0, "GOOD": 1, "ODD": 2},
        "problem_type": "single_label_classification",
        "pad_token_id": 3,
    }
    config = CopyLayers(layers=2).make(make_teacher("gpt2"), Head(CLASSIFY, settings)).config
    assert {key: getattr(config, key) for key in settings} == settings


def test_layers_of_another_model_than_the_teacher(make_model: Any) -> None:
    """Copying from the fine-tuned teacher all the same would hand the baseline what the teacher has learned."""
    base = make_model("bert-bare", layers=4, seed=3)
    teacher = make_teacher("bert")
    student = CopyLayers(layers=[0, 3], model=str(base))
    assert student.config(teacher.config).num_hidden_layers == 2
    made = student.make(teacher, Head(CLASSIFY, {"num_labels": 3}))
    whole = transformers.AutoModel.from_pretrained(base)
    for new, old in enumerate([0, 3]):
        ours, theirs = made.bert.encoder.layer[new].state_dict(), whole.encoder.layer[old].state_dict()
        assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert made.bert.embeddings.word_embeddings.weight.equal(whole.embeddings.word_embeddings.weight)
    assert made.config.num_labels == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [(["good", "bad", "odd"], "wrongly"), (["bad", "good"], "2 labels"), (["bad", "good", "x"], "label names differ")],
)
def test_other_labels_are_refused(names: list[str], words: str) -> None:
    """A copied head under permuted names is a classifier that calls good bad, at full confidence."""
    settings = {"num_labels": len(names), "id2label": dict(enumerate(names))}
    with pytest.raises(UserError, match=words):
        CopyLayers(layers=2).make(make_teacher("bert"), Head(CLASSIFY, settings))


def test_other_labels_of_a_named_model_are_refused(make_model: Any) -> None:
    """Likewise where the head is copied from a checkpoint that the entry names; a head made new has no names."""
    settings = {"num_labels": 2, "id2label": {0: "negative", 1: "positive"}}
    teacher = make_teacher("bert")
    for labels, fine in ((("negative", "positive"), True), (("positive", "negative"), False), (("a", "b", "c"), True)):
        student = CopyLayers(layers=2, model=str(make_model("bert", labels=labels)))
        if fine:
            assert student.make(teacher, Head(CLASSIFY, settings)).config.id2label == settings["id2label"]
        else:
            with pytest.raises(UserError, match="wrongly"):
                student.make(teacher, Head(CLASSIFY, settings))


@pytest.mark.parametrize("layers", [0, -1, 7, [], [0, 6], [-1, 2], [2, 0], [0, 0, 1]])
def test_impossible_layers_are_refused(layers: int | list[int]) -> None:
    """Python's negative and unordered indices would quietly build another student than the user has in mind."""
    with pytest.raises(UserError) as caught:
        CopyLayers(layers=layers).config(make_teacher("bert").config)
    assert caught.value.key == "layers"
    assert len(caught.value.mistakes) == 1


def test_unlike_layers_are_refused() -> None:
    """ModernBERT's first layer has no input norm: with the norm of layer 1 left out the student starts from noise."""
    with pytest.raises(UserError, match="do not fit together") as caught:
        CopyLayers(layers=[1, 2]).make(make_teacher("modernbert"), Head(CLASSIFY))
    assert caught.value.key == "layers"
    assert "\n" not in str(caught.value)


def test_a_layer_that_depends_on_its_position_is_refused() -> None:
    """GPT-2 may scale attention by the layer's number: same weights, another function, and no shape tells."""
    teacher = make_teacher("gpt2", scale_attn_by_inverse_layer_idx=True)
    CopyLayers(layers=[0, 1, 2]).make(teacher, Head(CLASSIFY))  # positions kept
    with pytest.raises(UserError, match="would work differently at its new position"):
        CopyLayers(layers=[0, 3]).make(teacher, Head(CLASSIFY))


@pytest.mark.parametrize(
    "make_config",
    [
        lambda: transformers.T5GemmaConfig(encoder=GEMMA, decoder=GEMMA, vocab_size=20),
        lambda: transformers.AlbertConfig(
            vocab_size=20, embedding_size=4, hidden_size=8, num_attention_heads=2, num_hidden_layers=3
        ),
    ],
    ids=["two configurations", "shared layers"],
)
def test_unknown_architectures_are_refused(make_config: Callable[[], PretrainedConfig]) -> None:
    """Guessing which list holds the layers of an unknown model would drop the wrong ones."""
    teacher = transformers.AutoModelForSequenceClassification.from_config(make_config())
    with pytest.raises(UserError, match=re.escape("student: {name: pretrained")):
        CopyLayers(layers=2).make(teacher, Head(CLASSIFY))


# --- copy_layers of encoder-decoder models ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bart", "mbart", "marian", "pegasus", "m2m_100", "t5", "umt5"])
def test_layers_of_both_stacks(family: str, tmp_path: Path) -> None:
    """Decoder layers under the encoder's numbers, or one side's depth applied to the other: half of the student would
    be at random or missing."""
    teacher = make_two_stacks(family)
    student = CopyLayers(layers=[0, 2, 5], decoder_layers=[0, 3]).make(teacher, Head(SEQ2SEQ))
    shortened = copy.deepcopy(teacher)
    for side, kept in (("encoder", (0, 2, 5)), ("decoder", (0, 3))):
        stack = getattr(shortened, f"get_{side}")()
        name = "block" if family in ("t5", "umt5") else "layers"
        setattr(stack, name, torch.nn.ModuleList(getattr(stack, name)[index] for index in kept))
    torch.testing.assert_close(target_logits(student), target_logits(shortened), rtol=0, atol=0)
    assert not torch.allclose(target_logits(student), target_logits(teacher))
    student.save_pretrained(tmp_path)
    again, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(target_logits(again.eval()), target_logits(student), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_numbers_of_layers_of_both_stacks(family: str) -> None:
    """`layers: 12, decoder_layers: 3` is the published shape; left out, the decoder is as deep as the encoder."""
    teacher = make_two_stacks(family)
    whole = CopyLayers(layers=6, decoder_layers=4).make(teacher, Head(SEQ2SEQ))
    torch.testing.assert_close(target_logits(whole), target_logits(teacher), rtol=0, atol=0)
    for entries, depths in (({"layers": 6, "decoder_layers": 2}, (6, 2)), ({"layers": 3}, (3, 3))):
        student = CopyLayers(**entries)
        made = student.make(teacher, Head(SEQ2SEQ))
        names = ("layers", "block")
        found = tuple(
            len(getattr(stack, next(name for name in names if hasattr(stack, name))))
            for stack in (made.get_encoder(), made.get_decoder())
        )
        assert found == depths
        assert student.config(teacher.config).to_dict() == {**made.config.to_dict(), "dtype": None}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_generation_with_cache_of_two_stacks(family: str) -> None:
    """Kept `layer_idx` of the decoder's self- and cross-attention point into a cache that is shorter."""
    teacher = make_two_stacks(family)
    teacher.generation_config.no_repeat_ngram_size = 3
    student = CopyLayers(layers=2, decoder_layers=[0, 3]).make(teacher, Head(SEQ2SEQ))
    ids = torch.tensor([[5, 6, 7, 8]])
    with_cache, without = (student.generate(ids, max_new_tokens=12, use_cache=cached) for cached in (True, False))
    assert with_cache.tolist() == without.tolist()
    assert student.generation_config.no_repeat_ngram_size == 3


@pytest.mark.parametrize(
    ("family", "entries", "key", "words"),
    [
        ("bart", {"layers": 7}, "layers", "not between 1 and 6"),
        ("bart", {"layers": 6}, "decoder_layers", "6 is not between 1 and 4"),
        ("t5", {"layers": 6, "decoder_layers": [0, 4]}, "decoder_layers", "0 to 3"),
        ("t5", {"layers": 6, "decoder_layers": [2, 0]}, "decoder_layers", "in ascending order: [0, 2]"),
        ("bert", {"layers": 2, "decoder_layers": 2}, "decoder_layers", "BertConfig describes one stack"),
    ],
)
def test_impossible_stacks_are_refused(family: str, entries: dict[str, Any], key: str, words: str) -> None:
    """The key that is wrong must be named: the two stacks may be of different depth."""
    teacher = make_teacher("bert") if family == "bert" else make_two_stacks(family)
    with pytest.raises(UserError) as caught:
        CopyLayers(**entries).config(teacher.config)
    assert caught.value.key == key
    assert words in str(caught.value)


def test_t5_needs_its_first_layers() -> None:
    """Only the first T5 layer has the table of relative positions: without it the model would not know word order."""
    with pytest.raises(UserError, match="do not fit together") as caught:
        CopyLayers(layers=[1, 2], decoder_layers=[0]).make(make_two_stacks("t5"), Head(SEQ2SEQ))
    assert "\n" not in str(caught.value)


def test_from_config_generates_as_its_teacher_does() -> None:
    """Other lengths or no end token: a student judged by its texts would look worse than it is."""
    teacher = make_two_stacks("bart", forced_bos_token_id=7)
    teacher.generation_config.update(min_length=3, forced_bos_token_id=7)
    student = FromConfig(overrides={"decoder_layers": 1}).make(teacher, Head(SEQ2SEQ))
    assert student.generation_config.to_dict() == teacher.generation_config.to_dict()
    assert student.generation_config is not teacher.generation_config


# --- from_config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "head"), CASES)
def test_from_config_has_the_asked_shape(family: str, head: str, tmp_path: Path) -> None:
    """An override under a model's other name for a size (`n_layer`) must not be set beside it and ignored."""
    wanted = FromConfig(overrides={"num_hidden_layers": 2, "hidden_size": 8})
    student = wanted.make(make_teacher(family, head), Head(head))
    assert student.config.num_hidden_layers == 2
    assert len(find_stacks(student)["layers"][1]) == 2
    assert student.get_input_embeddings().weight.shape[0] == SIZES["vocab_size"]
    assert not student.training
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in student.parameters())
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(getattr(transformers, head).from_pretrained(tmp_path)), logits(student))


def test_from_config_follows_the_seed() -> None:
    """Student and baseline must start from the same weights, or their difference is luck."""
    teacher, student = make_teacher("bert"), FromConfig(overrides={"num_hidden_layers": 1})
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(logits(student.make(teacher, Head(CLASSIFY))))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_from_config_recomputes_what_only_followed() -> None:
    """Kept from the teacher, `head_dim` would make attention twice as wide as the hidden size asks for."""
    teacher = make_teacher("llama", num_key_value_heads=2).config
    assert teacher.head_dim == 8
    narrow = FromConfig(overrides={"hidden_size": 16, "num_attention_heads": 4}).config(teacher)
    assert (narrow.head_dim, narrow.num_key_value_heads) == (4, 4)
    assert FromConfig(overrides={"hidden_size": 8, "head_dim": 8}).config(teacher).head_dim == 8
    grouped = make_teacher("llama", num_attention_heads=4, num_key_value_heads=2).config
    assert FromConfig(overrides={"num_attention_heads": 2}).config(grouped).num_key_value_heads == 2
    shallow = FromConfig(overrides={"num_hidden_layers": 4}).config(make_teacher("gemma3_text").config)
    assert len(shallow.layer_types) == 4


def test_from_config_of_another_model_keeps_the_vocabulary(tmp_path: Path) -> None:
    """A smaller vocabulary than the tokenizer's is an index error in the middle of training, or another token's row."""
    other = AutoConfig.for_model("gpt2", n_embd=24, n_head=3, n_layer=5, vocab_size=77)
    other.save_pretrained(tmp_path)
    teacher = make_teacher("bert")
    student = FromConfig(model=str(tmp_path), overrides={"n_layer": 2}).make(
        teacher, Head(CLASSIFY, {"num_labels": 3, "pad_token_id": 0})
    )
    config = student.config
    assert type(student).__name__ == "GPT2ForSequenceClassification"
    assert (config.n_layer, config.n_embd, config.vocab_size, config.num_labels) == (2, 24, 50, 3)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert FromConfig(model=str(tmp_path)).own_config() is None  # its tokenizer is not used


def test_from_config_does_not_inherit_quantization() -> None:
    """Saved with the teacher's quantization settings, a float32 student could not be opened again."""
    teacher = make_teacher("bert").config
    teacher.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert not hasattr(FromConfig(overrides={"num_hidden_layers": 1}).config(teacher), "quantization_config")


@pytest.mark.parametrize(
    ("family", "overrides", "key", "words"),
    [
        ("bert", {"num_hiden_layers": 2}, "overrides.num_hiden_layers", "Did you mean 'num_hidden_layers'"),
        ("gpt2", {"n_layers": 2}, "overrides.n_layers", "Did you mean 'n_layer'"),
        ("bert", {"num_labels": 5}, "overrides.num_labels", "the task decides"),
        ("bert", {"hidden_size": 15}, "overrides", "15"),
        ("gpt2", {"hidden_size": 15}, "overrides", "15"),
        ("distilbert", {"hidden_size": 15}, "overrides", "15"),
        ("llama", {"hidden_size": 15, "num_attention_heads": 4}, "overrides", "15"),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 3}, "overrides", "num_key_value_heads 3"),
        ("bert", {"num_attention_heads": 0}, "overrides", "num_attention_heads"),
        ("bert", {"num_hidden_layers": 0}, "overrides", "at least 1"),
        ("bert", {"hidden_size": "wide"}, "overrides", "hidden_size"),
        ("bert", {"hidden_act": "gelo"}, "overrides", "gelo"),
        ("qwen3", {"num_hidden_layers": 3, "layer_types": ["full_attention"]}, "overrides", "layer_types"),
    ],
)
def test_from_config_mistakes_are_one_line(family: str, overrides: dict[str, Any], key: str, words: str) -> None:
    """Transformers takes any unknown key and ignores it: a mistyped size trains a student of another size."""
    with pytest.raises(UserError) as caught:
        FromConfig(overrides=overrides).config(make_teacher(family).config)
    assert caught.value.key == key
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- all --------------------------------------------------------------------------------------------------------------


def test_pretrained_student_is_its_own(tmp_path: Path) -> None:
    """The student's own checkpoint, not the teacher's shape, decides what a pretrained student is."""
    make_teacher("distilbert", num_hidden_layers=2).save_pretrained(tmp_path)
    student, teacher = PretrainedStudent(model=str(tmp_path)), make_teacher("bert")
    assert student.config(teacher.config).n_layers == 2
    assert student.own_config() is not None
    assert type(student.make(teacher, Head(CLASSIFY))).__name__ == "DistilBertForSequenceClassification"


@pytest.mark.parametrize("layers", [2, [0, 5]])
def test_derived_students_have_no_checkpoint_of_their_own(layers: int | list[int]) -> None:
    """A derived student that claimed a checkpoint would have its label order checked against the teacher's copy."""
    assert CopyLayers(layers=layers).own_config() is None


EXAMPLES = {
    "copy_layers": CopyLayers(layers=[0, 2]),
    "from_config": FromConfig(overrides={"num_hidden_layers": 2}),
    "lora": LoraStudent(model="user/name", r=4),
    "optimal_brain_damage": OptimalBrainDamage(ratio=0.5, rounds=3),
    "pretrained": PretrainedStudent(model="user/name"),
    "prune_depth": PruneDepth(layers=0.5, by="loss"),
    "prune_width": PruneWidth(heads=2, hidden=0.5),
    "prune_vocabulary": PruneVocabulary(tokens=8000, keep=["film"]),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_entry_builds_the_same_student(name: str) -> None:
    """The recipe written beside a student must build that student again."""
    written = entry(EXAMPLES[name])
    assert written.pop("name") == name == STUDENTS[name].name
    assert STUDENTS[name](**written) == EXAMPLES[name]


SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
PER_LAYER: dict[str, tuple[str, dict[str, Any], list[int], dict[str, Any]]] = {
    "longformer": ("MaskedLM", {**SMALL, "attention_window": [4, 8, 4, 8]}, [1, 3], {"attention_window": [8, 8]}),
    "led": (
        "Seq2SeqLM",
        {
            "vocab_size": 60,
            "d_model": 32,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
            "attention_window": [4, 8, 4, 8],
        },
        [1, 2],
        {"attention_window": [8, 4]},
    ),
    "qwen2_moe": (
        "CausalLM",
        {
            **SMALL,
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "mlp_only_layers": [0, 3],
        },
        [1, 3],
        {"mlp_only_layers": [1]},
    ),
}


@pytest.mark.parametrize("kind", PER_LAYER)
def test_lists_of_layers_are_cut_with_them(kind: str, tmp_path: Path) -> None:
    """A window for each of the teacher's layers is refused by the student's first forward pass, after hours; numbers of
    layers name others than were meant."""
    auto, settings, kept, lists = PER_LAYER[kind]
    auto_class: Any = getattr(transformers, f"AutoModelFor{auto}")
    torch.manual_seed(0)
    teacher = auto_class.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    student = CopyLayers(layers=kept).make(teacher, Head(f"AutoModelFor{auto}"))
    assert {name: getattr(student.config, name) for name in lists} == lists
    student.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path).eval()
    inputs = {"input_ids": torch.randint(3, 60, (2, 24))}
    if teacher.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, student(**inputs).logits)
