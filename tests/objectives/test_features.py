"""Objectives on what the models compute on the way: one contract for all of them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from features import EXAMPLES, Pair, make_pair, padded, part
from ruamel.yaml import YAML
from torch import nn

from hf_distill import DistillationArguments, DistillationTrainer, UserError
from hf_distill.component import entry
from hf_distill.data.label_names import IGNORED
from hf_distill.objectives import (
    OBJECTIVES,
    Attention,
    Contrastive,
    Embeddings,
    Hidden,
    Hint,
    InputGradient,
    KLDivergence,
    Labels,
    LogitsMSE,
    Objective,
    Patient,
    Relational,
    Relations,
    RowObjective,
    SimilarityPreserving,
)
from hf_distill.objectives.base import Term
from hf_distill.objectives.features import StackObjective
from hf_distill.rows.base import UNITS

# Every objective that is not on logits, with settings that matter; a new one is held to the contract by a line here.
FEATURE_EXAMPLES: dict[str, list[Objective]] = {
    "hidden": [
        Hidden(),
        Hidden(loss="cosine", layers="last"),
        Hidden(normalize=True, projection="always", layers=((0, 0), (2, 3))),
        Hidden(layers="similarity"),
    ],
    "embeddings": [Embeddings()],
    "attention": [
        Attention(),
        Attention(compare="kl"),
        Attention(compare="kl", heads="mean", layers="last"),
        Attention(layers="similarity"),
    ],
    "patient": [Patient(), Patient(layers="tail", token="last")],
    "hint": [Hint(), Hint(layers=((1, 2),))],
    "relations": [Relations(relation_heads=2), Relations(relation_heads=1, of=("keys", "values"), layers="similarity")],
    "similarity_preserving": [SimilarityPreserving(), SimilarityPreserving(of="first")],
    "contrastive": [Contrastive(memory=0), Contrastive(memory=0, loss="crd", width=4)],
    "relational": [Relational(), Relational(angle_weight=0.0, of="last")],
    "input_gradient": [
        InputGradient(),
        InputGradient(loss="cosine", classes=2),
        InputGradient(loss="mse", projection="always"),
    ],
}
# Not without a reason: a minimum away from the teacher.
AWAY_FROM_THE_TEACHER = {"contrastive"}

OBJECTIVE = [
    pytest.param(example, id=str(entry(example))) for examples in FEATURE_EXAMPLES.values() for example in examples
]
KINDS = ("bert", "distilbert", "llama", "t5-encoder", "t5-decoder")


def cases() -> list[Any]:
    found = []
    for kind in KINDS:
        stack = kind.partition("-")[2]
        for examples in FEATURE_EXAMPLES.values():
            for example in examples:
                one = example
                if stack:
                    if not isinstance(example, StackObjective):
                        continue
                    one = dataclasses.replace(example, part=stack)  # type: ignore[arg-type]
                found.append(pytest.param(one, kind, id=f"{entry(one)}-{kind}"))
    return found


CASES = cases()
made: dict[str, Pair] = {}


def pair_of(kind: str) -> Pair:
    name = kind.partition("-")[0]
    if name not in made:
        made[name] = make_pair(name)
    return made[name]


def rounding(kind: str) -> float:
    # Llama and T5 compute norms and softmax in float32, whatever the model's precision.
    return 1e-9 if "bert" in kind else 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_on_features_is_held_to_the_contract(name: str) -> None:
    """An objective that no test below has an example of could break every promise unnoticed."""
    if issubclass(OBJECTIVES[name], RowObjective):
        return  # tests/objectives/test_objectives.py
    needs = OBJECTIVES[name]().needs()
    elsewhere = needs.vectors or needs.unit == "span" or needs.tasks
    if elsewhere:  # there is no such comparison in the models here
        every = (file.read_text(encoding="utf-8") for file in Path(__file__).parents[1].rglob("test_*.py"))
        assert any(f"def test_{name}_against_numpy(" in text for text in every)
        return
    assert FEATURE_EXAMPLES.get(name), f"add examples of '{name}' to FEATURE_EXAMPLES"
    for example in FEATURE_EXAMPLES[name]:
        assert type(example) is OBJECTIVES[name]
        assert example.name == name
        assert example.unit in UNITS


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_entry_builds_the_same_objective(objective: Objective) -> None:
    """The recipe written beside a student must name the loss that trained it, through YAML too."""
    text = io.StringIO()
    YAML(typ="safe").dump(entry(objective), text)
    written = YAML(typ="safe").load(text.getvalue())
    assert OBJECTIVES[written.pop("name")](**written) == objective


@pytest.mark.parametrize("objective", [*OBJECTIVE, KLDivergence(), Labels(), LogitsMSE()], ids=lambda one: one.name)
def test_what_reaches_the_head_is_said(objective: Objective) -> None:
    """Metrics of a classifier whose head nothing trains are those of random answers, and DDP waits for gradients that
    never come: both are told by `reaches_head` alone, so it has to be what the gradient says."""
    pair = pair_of("bert").to(torch.float64)
    pair.losses(pair.prepare(objective)).sum().backward()
    reached = [one.grad is not None and bool(one.grad.any()) for one in pair.student.classifier.parameters()]
    assert any(reached) == objective.reaches_head
    assert any(one.grad is not None and one.grad.any() for one in pair.student.bert.parameters())


@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_padding_changes_nothing(objective: Objective, kind: str) -> None:
    """Padding that is counted makes the loss depend on the longest example of the batch, and pulls at states that
    nobody reads."""
    pair = pair_of(kind)
    term = pair.prepare(objective)
    whole = pair.losses(term)
    assert whole.shape == (EXAMPLES,)
    assert bool((whole > 0).any())
    torch.testing.assert_close(pair.losses(term, padded(pair.inputs, 5)), whole, rtol=rounding(kind), atol=1e-9)


@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_sums_do_not_depend_on_the_split(objective: Objective, kind: str) -> None:
    """A mean inside would weigh short micro-batches like long ones; what compares examples must say that it does."""
    pair = pair_of(kind)
    term = pair.prepare(objective)
    whole = pair.losses(term)
    halves = torch.cat([pair.losses(term, part(pair.inputs, where)) for where in (slice(0, 2), slice(2, None))])
    if objective.within_batch:
        assert not torch.allclose(halves, whole, rtol=1e-3)
    else:
        torch.testing.assert_close(halves, whole, rtol=rounding(kind), atol=1e-9)


@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_gradient_reaches_the_student_and_what_is_learned(objective: Objective, kind: str) -> None:
    """A projection without gradient stays random, and a teacher with one would follow its student."""
    pair = pair_of(kind)
    for model in (pair.student, pair.teacher):
        model.zero_grad(set_to_none=True)
    term = pair.prepare(objective)
    pair.losses(term).sum().backward()
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    gradients = [parameter.grad for parameter in pair.student.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool((gradient != 0).any()) for gradient in gradients)
    # A run tells apart the metrics of a head that is not trained, by what the objective says of itself.
    head = [one for name, one in pair.student.named_parameters() if name.startswith("classifier")]
    if head:
        moved = any(one.grad is not None and bool((one.grad != 0).any()) for one in head)
        assert moved == objective.reaches_head
    for name, parameter in term.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name
    owned = {id(parameter) for parameter in term.parameters()}
    assert owned.isdisjoint(id(one) for model in (pair.student, pair.teacher) for one in model.parameters())


@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_nothing_is_lost_against_itself(objective: Objective, kind: str) -> None:
    """Other layers, heads or tokens on the two sides would still train; only against itself must they cost 0."""
    if objective.name in AWAY_FROM_THE_TEACHER:
        return
    pair = pair_of(kind).with_itself()
    if getattr(objective, "layers", None) not in (None, "last", "uniform", "similarity"):
        # Each layer with itself: the mapping is what the formulas below are about.
        objective = dataclasses.replace(objective, layers="uniform")  # type: ignore[call-arg]
    term = pair.prepare(objective)
    identity(term)
    torch.testing.assert_close(pair.losses(term), torch.zeros(EXAMPLES, dtype=torch.float64), rtol=0, atol=1e-6)


def identity(term: Term) -> None:
    for module in term.modules():
        if isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_half_precision_is_finite_and_close(objective: Objective) -> None:
    """Squares and logarithms in bfloat16 have two digits; the models may, the loss must not."""
    pair = pair_of("bert")
    term = pair.prepare(objective)
    half = pair.to(torch.bfloat16)
    found = half.losses(half.prepare(objective))  # from the same seed
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), pair.losses(term), rtol=0.3, atol=0.05)


@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_a_batch_that_is_all_padding_costs_nothing(objective: Objective, kind: str) -> None:
    """0 / 0 is NaN, and one NaN in a gradient is the end of the model."""
    # In float64 a row of Llama's attention that may look nowhere is itself NaN: its softmax is in float32.
    pair = pair_of(kind).to(torch.float32)
    inputs = dict(pair.inputs, attention_mask=torch.zeros_like(pair.inputs["attention_mask"]))
    inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
    term = pair.prepare(objective)
    losses = pair.losses(term, inputs)
    assert losses.tolist() == [0.0] * EXAMPLES
    losses.sum().backward()
    gradients = [one.grad for one in (*pair.student.parameters(), *term.parameters()) if one.grad is not None]
    assert all(bool((gradient == 0).all()) for gradient in gradients)


# --- what does not fit ------------------------------------------------------------------------------------------------


def refused(objective: Objective, student: Any, teacher: Any) -> tuple[str, str]:
    with pytest.raises(UserError) as caught:
        objective.check(student, teacher)
    return caught.value.key, str(caught.value)


BERT = transformers.BertConfig(num_hidden_layers=4, hidden_size=12, num_attention_heads=3)
LARGE = transformers.BertConfig(num_hidden_layers=12, hidden_size=16, num_attention_heads=4)
T5 = transformers.T5Config(num_layers=3, num_decoder_layers=2, num_heads=4)
MAMBA = transformers.MambaConfig(num_hidden_layers=4)
QWEN = transformers.Qwen3NextConfig(num_hidden_layers=4)


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "key", "said"),
    [
        (
            Hidden(layers=((5, 2),)),
            *(BERT, LARGE, "layers"),
            "[5, 2]: the student has no layer 5. Its layers are 1 to 4, 0 is the output of its embeddings; pairs are "
            "[student, teacher].",
        ),
        (
            Hidden(layers=((1, 2), (4, 13))),
            *(BERT, LARGE, "layers"),
            "[4, 13]: the teacher has no layer 13. Its layers are 1 to 12, 0 is the output of its embeddings; pairs "
            "are [student, teacher].",
        ),
        (
            Attention(layers=((0, 2),), heads="mean"),
            *(BERT, LARGE, "layers"),
            "[0, 2]: index 0 is the output of the embeddings, and there is no attention in them; the student's layers "
            "are 1 to 4.",
        ),
        (
            Hidden(layers="tail"),
            *(LARGE, BERT, "layers"),
            "'tail' counts both stacks from the end, and the student's 12 layers are more than the teacher's 4. Try "
            "'uniform'.",
        ),
        (
            Attention(),
            *(BERT, LARGE, "heads"),
            "the teacher (bert) has 4 attention heads and the student (bert) 3: no multiple, so they cannot be "
            "grouped. Compare their means: 'mean'.",
        ),
        (
            Hidden(),
            *(T5, T5, "part"),
            "the student (t5) has an encoder and a decoder: say which is compared, encoder or decoder.",
        ),
        (
            Hidden(part="encoder"),
            *(BERT, LARGE, "part"),
            "'encoder' is for encoder-decoder models, and the student (bert) is not one.",
        ),
        (
            Hidden(part="decoder", layers=((3, 1),)),
            *(T5, T5, "layers"),
            "[3, 1]: the student has no layer 3. Its layers are 1 to 2, 0 is the output of its embeddings; pairs are "
            "[student, teacher].",
        ),
        (
            Attention(),
            *(MAMBA, MAMBA, "name"),
            "the student (mamba) has no attention heads, or not in every layer, so there is no attention to compare. "
            "Compare hidden states instead: {name: hidden}.",
        ),
        (
            Attention(),
            *(BERT, QWEN, "name"),
            "the teacher (qwen3_next) has no attention heads, or not in every layer, so there is no attention to "
            "compare. Compare hidden states instead: {name: hidden}.",
        ),
        (
            Embeddings(),
            *(transformers.PretrainedConfig(), BERT, "name"),
            "the student (PreTrainedConfig) does not say how many layers it has, or how wide they are, so they cannot "
            "be compared. Compare the outputs instead, e.g. {name: kl}.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_weight(
    objective: Objective, student: Any, teacher: Any, key: str, said: str
) -> None:
    """Found out in the first step, minutes after the start, and as an IndexError, or never: layer -1 exists."""
    assert refused(objective, student, teacher) == (key, said)


def test_what_fits_is_let_through() -> None:
    """A check that refuses everything would pass the test above."""
    Attention(heads="mean").check(BERT, LARGE)
    Attention().check(changed(BERT, num_attention_heads=2), LARGE)
    Hidden(part="decoder", layers=((2, 2),)).check(T5, T5)
    Hidden().check(MAMBA, MAMBA)


def changed(config: Any, **settings: Any) -> Any:
    return type(config)(**{**config.to_dict(), **settings})


@pytest.mark.parametrize(
    "layers", [[[1, 2, 3]], [[1, -1]], [1, 2], "first", [], [[True, 1]], [[1.0, 2]]], ids=lambda layers: str(layers)
)
def test_layers_that_are_no_layers(layers: Any) -> None:
    """-1 is Python's last, and a bare list of numbers says nothing about the teacher's."""
    with pytest.raises(ValueError, match="layers"):
        Hidden(layers=layers)


@pytest.mark.parametrize("objective", [Hidden(), Attention()], ids=lambda objective: objective.name)
def test_a_model_that_does_not_give_its_layers_is_named(objective: Objective) -> None:
    """`None` is not subscriptable tells a user nothing, and layers of another stack would be compared in silence."""
    pair = pair_of("bert")
    term = pair.prepare(objective)
    (kind,) = objective.outputs
    comparison = pair.compare(term, pair.inputs)
    empty = dataclasses.replace(comparison, teacher={"logits": None})
    said = rf"'{objective.name}' needs .* of all 4 layers, and the teacher \(bert\) gives none"
    with pytest.raises(ValueError, match=said):
        term(empty)
    short = dataclasses.replace(comparison, student={kind: comparison.student[kind][:1]})
    with pytest.raises(ValueError, match=r"of all 2 layers, and the student \(bert\) gives 1 instead of"):
        term(short)


def test_attention_is_found_under_the_fast_kernels_too(tmp_path: Any) -> None:
    """SDPA, the default, returns no maps: an objective on them would fail, or be 0 in silence."""
    pair = make_pair("bert")
    for model in (pair.student, pair.teacher):
        model.set_attn_implementation("sdpa")
    rows = [{key: value[index] for key, value in pair.inputs.items()} for index in range(EXAMPLES)]
    args = DistillationArguments(
        output_dir=str(tmp_path), max_steps=1, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True
    )
    trainer = DistillationTrainer(
        pair.student, args, teacher=pair.teacher, objectives=[Attention(), Hidden(layers="similarity")],
        train_dataset=rows,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["objective/attention"] > 0
    assert logs["objective/hidden"] > 0


def test_layers_are_not_measured_under_fsdp(tmp_path: Any) -> None:
    """The student is placed later there: on a GPU it would fail inside a layer, and where one process alone has loaded
    the weights, each would choose other layers."""
    pair = make_pair("bert")
    args = DistillationArguments(output_dir=str(tmp_path), report_to="none", disable_tqdm=True)
    settings: dict[str, Any] = {"teacher": pair.teacher, "objectives": [Hidden(layers="similarity")]}
    rows = [{key: value[index] for key, value in pair.inputs.items()} for index in range(EXAMPLES)]
    trainer = DistillationTrainer(pair.student, args, train_dataset=rows, **settings)  # type: ignore[arg-type]
    trainer.is_fsdp_enabled = True
    with pytest.raises(UserError, match=r"'similarity' .* FSDP.* layers: \[\[1, 2\], \.\.\.\]"):
        trainer._settle_terms()
    trainer.train_dataset = None  # nothing is trained, nothing is measured
    trainer._settle_terms()
