"""Every task with every kind of model: it works, or one line says why not, before any weight is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.objectives import KLDivergence
from hf_distill.recipe.recipe import Recipe
from hf_distill.run.pairing import open_pair
from hf_distill.students import CopyLayers
from hf_distill.tasks import TASKS, Setup
from hf_distill.teachers import FinetunedTeacher, PretrainedTeacher

ENCODERS = {"bert", "bert-bare", "bert-mlm", "bert-tokens", "distilbert", "roberta"}
DECODERS = {"llama", "llama-lm", "gpt2", "gpt2-lm"}
BOTH = {"t5", "bart"}
KINDS = sorted(ENCODERS | DECODERS | BOTH)

# Which architectures can do a task at all.
ABLE = {
    "fill-mask": ENCODERS,
    "question-answering": ENCODERS | DECODERS | BOTH,
    "sentence-similarity": ENCODERS | DECODERS,
    "summarization": BOTH,
    "text-classification": ENCODERS | DECODERS | BOTH,
    "text-generation": DECODERS,
    "token-classification": (ENCODERS | DECODERS | BOTH) - {"bart"},
    "translation": BOTH,
}
# Whose weights have learned it.
TRAINED = {
    "fill-mask": {"bert-mlm"},
    "question-answering": set[str](),
    "sentence-similarity": ABLE["sentence-similarity"],
    "summarization": BOTH,
    "text-classification": {"bert", "distilbert", "roberta", "llama", "gpt2"},
    "text-generation": {"llama-lm", "gpt2-lm"},
    "token-classification": {"bert-tokens"},
    "translation": BOTH,
}
LINES = {
    ("text-generation", "bert"): (
        "teacher.model: a bert model sees the words after the one that it predicts. Wanted one that sees only those "
        "before it (GPT-2, Llama, ...); or task: fill-mask."
    ),
    ("text-generation", "bart"): (
        "teacher.model: a bart model reads with an encoder and writes with a decoder. Wanted one that continues a text "
        "(GPT-2, Llama, ...); or task: summarization or translation."
    ),
    (
        "fill-mask",
        "llama-lm",
    ): "teacher.model: there is no llama model with a head for fill-mask (wanted ...ForMaskedLM).",
    ("fill-mask", "bart"): "teacher.model: a bart model writes the whole text again. Wanted an encoder",
    ("summarization", "bert"): (
        "teacher.model: there is no bert model with a head for summarization (wanted ...ForSeq2SeqLM). Choose another "
        "model, or a task it has a head for: fill-mask, question-answering,"
    ),
    ("token-classification", "bart"): "teacher.model: there is no bart model with a head for token-classification",
}


@pytest.fixture(scope="module")
def weightless(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the directory of each kind, with configuration and tokenizer but no weights: whoever reads them fails."""
    directories = {}
    for kind in KINDS:
        to = tmp_path_factory.mktemp("weightless") / kind
        shutil.copytree(make_model(kind), to, ignore=shutil.ignore_patterns("*.safetensors"))
        directories[kind] = str(to)
    return directories


def fault(task: str, teacher: Any) -> str | None:
    """Return the line that a pair is refused with."""
    recipe = Recipe(
        task=TASKS[task](),
        data=Data(path="unread.csv"),
        teacher=teacher,
        student=CopyLayers(layers=1),
        objectives=(KLDivergence(),),
        training={"output_dir": "unused"},
    )
    try:
        open_pair(recipe)
    except UserError as error:
        (line,) = error.mistakes
        assert "\n" not in line
        return line
    return None


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_task_and_a_model(task: str, kind: str, weightless: dict[str, str]) -> None:
    """A model without the head is a traceback in the middle of a run; one that looks ahead is a perfect perplexity."""
    untrained = fault(task, FinetunedTeacher(model=weightless[kind]))
    if kind in ABLE[task]:
        assert untrained is None
    else:
        assert untrained is not None
        assert untrained.startswith(LINES.get((task, kind), "teacher.model: "))
        assert "Choose another model, or a task it has a head for: " in untrained or "Wanted " in untrained
    trained = fault(task, PretrainedTeacher(model=weightless[kind]))
    if kind in TRAINED[task]:
        assert trained is None
    elif kind in ABLE[task]:
        assert trained is not None
        assert "it has no trained head for the task" in trained
        assert "teacher: {name: finetuned, model: ...}" in trained
    else:
        assert trained == untrained


def test_a_task_that_is_named_can_do_it(weightless: dict[str, str]) -> None:
    """A line that sends a user to a task that refuses the model as well is worse than none."""
    for kind in KINDS:
        for task in TASKS:
            line = fault(task, FinetunedTeacher(model=weightless[kind])) or ""
            _, found, names = line.rstrip(".").partition("or a task it has a head for: ")
            if found:
                assert names.split(", ") == sorted(name for name in TASKS if kind in ABLE[name])


def test_the_student_is_asked_as_well(weightless: dict[str, str]) -> None:
    """A student that looks ahead learns to copy, with a loss that falls like no other."""
    from hf_distill.students import PretrainedStudent

    recipe = Recipe(
        task=TASKS["text-generation"](),
        data=Data(path="unread.csv"),
        teacher=PretrainedTeacher(model=weightless["gpt2-lm"]),
        student=PretrainedStudent(model=weightless["bert-bare"]),
        objectives=(KLDivergence(),),
        training={"output_dir": "unused"},
    )
    with pytest.raises(UserError, match=r"^student\.model: a bert model sees the words after the one that it predicts"):
        open_pair(recipe)


def test_an_encoder_that_was_made_a_decoder_generates(make_model: Any) -> None:
    """`is_decoder` masks what comes later, in the whole BERT family: that one is a causal language model."""
    assert fault("text-generation", FinetunedTeacher(model=str(make_model("bert-mlm", is_decoder=True)))) is None


def test_check_needs_no_weights(weightless: dict[str, str], tmp_path: Path, sentiment_csv: Any) -> None:
    """The same line from `--check`, which counts parameters of the model it thinks the task makes."""
    from hf_distill import load_recipe
    from hf_distill.run.dry_run import check

    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: fill-mask\n"
        f"data: {{path: {{train: {sentiment_csv.train}, validation: {sentiment_csv.validation}}}, "
        "columns: {text: sentence}}\n"
        f"teacher: {{name: finetuned, model: {weightless['llama']}}}\n"
        "student: {name: copy_layers, layers: 1}\n"
        "objectives: [{name: kl}]\n"
        f"training: {{output_dir: {tmp_path / 'out'}}}\n"
    )
    with pytest.raises(UserError) as caught:
        check(load_recipe(path))
    assert f"{path}:3: teacher.model: there is no llama model with a head for fill-mask" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_classifier_trains(kind: str, make_model: Any, tmp_path: Path) -> None:
    """What is not refused must work: a head on an encoder-decoder reads its input twice, a decoder's the last token."""
    from datasets import Dataset

    from hf_distill import DistillationArguments, DistillationTrainer

    path = make_model(kind)
    tokenizer = open_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = ["a great film", "dull", "the plot is moving and the cast is charming", "bad !"]
    data = Dataset.from_dict({"text": texts, "label": ["positive", "negative"] * 2})
    config = open_config(str(path))
    head = config if kind in TRAINED["text-classification"] else None
    setup = Setup(tokenizer=tokenizer, teacher=head, student=head, max_length=32)
    prepared = TASKS["text-classification"]().prepare({"train": data, "eval": data}, setup)
    student, teacher = (load_model(str(path), prepared.head)[0] for _ in range(2))
    trainer = DistillationTrainer(
        student,
        DistillationArguments(output_dir=str(tmp_path), report_to=[], disable_tqdm=True, max_steps=1),
        teacher=teacher,
        layout=prepared.layout,
        train_dataset=prepared.train,
        data_collator=prepared.collator,
    )
    trainer.train()
    assert all(value.isfinite().all() for value in student.state_dict().values() if value.is_floating_point())
    with torch.no_grad():
        rows = [dict(row) for row in prepared.train.remove_columns(["length", "labels"])]
        together = teacher(**prepared.collator(rows)).logits
        alone = torch.cat([teacher(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# ---- Length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "kind", "columns"),
    [
        ("text-classification", "bert", {"text": ["film " * 200, "dull"], "label": [0, 1]}),
        ("text-classification", "roberta", {"text": ["film " * 200, "dull"], "label": [0, 1]}),
        ("token-classification", "bert-tokens", {"tokens": [["film"] * 200, ["dull"]], "tags": [[0] * 200, [1]]}),
        ("fill-mask", "bert-mlm", {"text": ["film " * 200, "dull"]}),
        ("text-generation", "gpt2-lm", {"text": [" film" * 200, " dull"]}),
        ("text-generation", "gpt2-lm", {"prompt": ["is it", "is it"], "completion": [" film" * 200, " dull"]}),
    ],
    ids=["classifier", "roberta", "tags", "masks", "text", "completion"],
)
def test_texts_longer_than_the_model(
    task: str, kind: str, columns: dict[str, Any], make_model: Any, tmp_path: Path
) -> None:
    """A text of 33 tokens in a table of 32 positions is an index error, at the first batch that has one."""
    from datasets import Dataset

    # Neither recipe nor tokenizer says how long: the table of positions does.
    short = make_model(
        kind, **{"n_positions" if "gpt2" in kind else "max_position_embeddings": 32 + 2 * (kind == "roberta")}
    )
    path = tmp_path / "model"
    shutil.copytree(short, path)
    tokenizer = open_tokenizer(str(path))
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(path)

    def opened(max_length: int | None) -> Any:
        return open_pair(
            Recipe(
                task=TASKS[task](),
                data=Data(path="unread.csv", max_length=max_length),
                teacher=PretrainedTeacher(model=str(path)),
                student=CopyLayers(layers=1),
                objectives=(KLDivergence(),),
                training={"output_dir": "unused"},
            )
        )

    with pytest.raises(
        UserError, match=r"^data\.max_length: 33 tokens are more than the models take; wanted at most 32"
    ):
        opened(33)
    pair = opened(None)
    assert pair.max_length == 32
    data = Dataset.from_dict(columns)
    setup = Setup(
        tokenizer=pair.tokenizer, teacher=pair.teacher_head, student=pair.student_head, max_length=pair.max_length
    )
    prepared = TASKS[task]().prepare({"train": data, "eval": data}, setup)
    assert max(prepared.train["length"][:]) == 32
    model, _ = load_model(str(path), prepared.head, own_head=True)
    rows = [{key: value for key, value in row.items() if key != "length"} for row in prepared.eval]
    inputs = dict(prepared.collator(rows))
    inputs.pop("labels", None)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
