"""Students asked for by what they may cost: the shapes there are, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from hf_distill.component import settings
from hf_distill.errors import UserError
from hf_distill.models.outline import outline
from hf_distill.students import CopyLayers, FromConfig, PruneDepth, PruneWidth
from hf_distill.students.around import AroundStudent
from hf_distill.students.cost import Cost

BERT = transformers.BertConfig(num_hidden_layers=4, hidden_size=16, num_attention_heads=2, intermediate_size=32)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"size": 0.5, "latency": 0.5}, "latency"),
        ({"size": 0.5, "layers": 3}, "layers"),
        ({}, "layers"),
        ({"parameters": "20 apples"}, "parameters"),
        ({"size": 0.0}, "size"),
        ({"size": 1.5}, "size"),
        ({"latency": 1.0}, "latency"),
    ],
)
def test_contradictions_are_refused_at_their_key(given: dict[str, Any], key: str) -> None:
    """Of two answers to one question a run would silently take one."""
    with pytest.raises(UserError) as caught:
        CopyLayers(**given)
    assert caught.value.wrong[0][0] == key  # type: ignore[attr-defined]


def test_a_cost_becomes_a_shape_that_says_what_it_is_for() -> None:
    """A resolved recipe that still asks for a cost would be chosen anew by everyone who runs it."""
    asked = CopyLayers(parameters="1.2B", freeze=["embeddings"])
    assert asked.cost == Cost("parameters", "1.2B")
    assert asked.cost.limit == 1_200_000_000
    shapes = list(asked.shapes(BERT))
    assert [shape.layers for shape in shapes] == [1, 2, 3, 4]
    assert {shape.cost for shape in shapes} == {None}
    assert settings(shapes[1]) == {"freeze": ["embeddings"], "layers": 2, "chosen_for": {"parameters": "1.2B"}}
    assert shapes[1].config(BERT).num_hidden_layers == 2


def test_both_stacks_keep_their_proportion() -> None:
    """A decoder of three layers under an encoder of twelve would be copied whole until the encoder is as short."""
    bart = transformers.BartConfig(encoder_layers=6, decoder_layers=3)
    shapes = [(one.layers, one.decoder_layers) for one in CopyLayers(size=0.5).shapes(bart)]
    assert shapes == [(1, None), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3)]
    fixed = [(one.layers, one.decoder_layers) for one in CopyLayers(size=0.5, decoder_layers=2).shapes(bart)]
    assert fixed == [(count, 2) for count in range(1, 7)]


def test_an_entry_around_it_is_put_around_each_shape() -> None:
    """Adapters on a student of half the size: the cost inside would be forgotten, or refused."""

    class Around(AroundStudent):
        name = "around"
        made: Any = None

    Around.__abstractmethods__ = frozenset()
    shapes = list(Around(student=CopyLayers(size=0.5)).shapes(BERT))
    assert [one.student.layers for one in shapes] == [1, 2, 3, 4]


def test_without_a_run_the_shape_must_be_given() -> None:
    """In Python nobody chooses; a student with all layers would look like one of half the size."""
    with pytest.raises(UserError, match="only a run") as caught:
        CopyLayers(size=0.5).config(BERT)
    assert caught.value.key == "size"


LLAMA = transformers.LlamaConfig(
    num_hidden_layers=4, hidden_size=64, num_attention_heads=8, num_key_value_heads=2, intermediate_size=96
)


# 31 heads can only share one key, so they cost less than 30 that share six.
GROUPED = transformers.LlamaConfig(
    num_hidden_layers=2,
    hidden_size=64,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=8,
    vocab_size=9,
)


@pytest.mark.parametrize("config", [BERT, LLAMA, GROUPED], ids=["bert", "llama", "grouped"])
@pytest.mark.parametrize("entry", [PruneDepth, PruneWidth, FromConfig])
def test_each_shape_costs_more_than_the_one_before(entry: Any, config: Any) -> None:
    """Each shape must be one that the entry can make, and larger than the one before, or the choice is not the best."""
    shapes = list(entry(size=0.5).shapes(config))
    counts = [outline("AutoModel", one.config(config), trust_remote_code=False).num_parameters() for one in shapes]
    assert counts == sorted(set(counts))
    assert counts[-1] == outline("AutoModel", config, trust_remote_code=False).num_parameters()
    with pytest.raises(UserError, match="only a run"):
        entry(size=0.5).config(config)
    for field in entry.decided[:1]:
        with pytest.raises(UserError, match="which decides it"):
            entry(size=0.5, **{field: 1})


def test_overrides_that_fit_no_shape_say_why() -> None:
    """Without a shape there is no cheapest one to name."""
    with pytest.raises(UserError, match="at least 1") as caught:
        list(FromConfig(size=0.5, overrides={"num_hidden_layers": -1}).shapes(BERT))
    assert caught.value.key == "overrides"
