"""Log-probabilities of tokens given as data: read right, refused where they cannot be, taught as a model's are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import WriteRecipe, run, weights

from hf_distill.errors import UserError
from hf_distill.recipe.reader import load_recipe
from hf_distill.report.text import rows as table
from hf_distill.run.dry_run import check
from hf_distill.tasks import TextClassification
from hf_distill.teachers import GivenTeacher
from hf_distill.teachers.given.token_columns import CompletionTargets, Names, read_tokens

PROMPTS = ["the film is", "the plot is", "it was a", "is it", "the cast is"]
COMPLETIONS = [" great", " a very bad story", " moving film", " dull and stale", " charming ."]
KL = [{"name": "kl", "weight": 0.5, "temperature": 1.0}, {"name": "labels", "weight": 0.5}]
PLAIN = {"top_token_ids": "ids", "top_logprobs": "values"}
SOME = {**PLAIN, "token_ids": "own"}


@pytest.fixture(scope="module")
def server(make_model: Any) -> Any:
    """Return rows as a server of a tiny model would give them: all tokens at each position, the likeliest first."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def answer(kind: str) -> list[dict[str, Any]]:
        where = make_model(kind, layers=4, seed=1)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(where), AutoTokenizer.from_pretrained(where)
        rows = []
        for prompt, completion in ((one, other) for one in PROMPTS for other in COMPLETIONS):
            before = tokenizer(prompt)["input_ids"]
            ids = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                found = model(torch.tensor([ids])).logits[0].log_softmax(-1)[len(before) - 1 : -1]
            values, top = found.sort(descending=True)
            rows.append({"prompt": prompt, "completion": completion, "tokens": ids[len(before) :],
                         "top": top.tolist(), "values": values.tolist()})  # fmt: skip
        return rows

    return answer


def plain(row: dict[str, Any], top: int, _: Any) -> dict[str, Any]:
    cut = {"ids": [one[:top] for one in row["top"]], "values": [one[:top] for one in row["values"]]}
    return cut if top >= 100 else {**cut, "own": row["tokens"]}


def in_text(row: dict[str, Any], top: int, tokenizer: Any) -> dict[str, Any]:
    """The cell as OpenAI's API writes it, as JSON; the token itself is told although it is not among the likeliest."""
    content = []
    for own, ids, values in zip(row["tokens"], row["top"], row["values"], strict=True):
        likeliest = [
            {"token": tokenizer.decode([one]), "logprob": value, "bytes": None}
            for one, value in zip(ids[:top], values[:top], strict=True)
        ]
        content.append({"token": tokenizer.decode([own]), "logprob": values[ids.index(own)], "top_logprobs": likeliest})
    return {"logprobs": json.dumps({"content": content})}


def in_ids(row: dict[str, Any], top: int, _: Any) -> dict[str, Any]:
    """The same with numbers for texts, as lists and not as JSON."""
    content = []
    for own, ids, values in zip(row["tokens"], row["top"], row["values"], strict=True):
        likeliest = [
            {"token": f"token_id:{one}", "logprob": value} for one, value in zip(ids[:top], values[:top], strict=True)
        ]
        content.append({"token": f"token_id:{own}", "logprob": values[ids.index(own)], "top_logprobs": likeliest})
    return {"logprobs": content}


def by_id(row: dict[str, Any], top: int, _: Any) -> dict[str, Any]:
    """The cell as vLLM has it in Python, as JSON."""
    positions = [
        {str(one): {"logprob": value, "rank": 1} for one, value in zip(ids[:top], values[:top], strict=True)}
        for ids, values in zip(row["top"], row["values"], strict=True)
    ]
    return {"logprobs": json.dumps(positions), "own": json.dumps(row["tokens"])}


@pytest.fixture
def write(server: Any, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> Any:
    """Write a recipe with a teacher, and data of a form."""
    from transformers import AutoTokenizer

    def write(kind: str, teacher: dict[str, Any], form: Any = plain, top: int = 1000, **sections: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(make_model(kind, layers=4, seed=1))
        lines = [
            json.dumps({"prompt": row["prompt"], "completion": row["completion"], **form(row, top, tokenizer)})
            for row in server(kind)
        ]
        for split, part in (("train", lines[:17]), ("validation", lines[17:])):
            (tmp_path / f"{split}.jsonl").write_text("\n".join(part), encoding="utf-8")
        # Adam turns the rounding of a gradient that is 0 but for rounding into a whole step.
        training = {"optim": "sgd", "learning_rate": 0.05, "num_train_epochs": 2, **sections.pop("training", {})}
        return write_recipe(
            task="text-generation",
            teacher=teacher,
            data={"path": {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}},
            student={"name": "pretrained", "model": str(make_model(kind, layers=2))},
            objectives=sections.pop("objectives", KL),
            training=training,
            **sections,
        )

    return write


def model(kind: str, make_model: Any) -> dict[str, Any]:
    return {"name": "pretrained", "model": str(make_model(kind, layers=4, seed=1))}


# --- the same as a model ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("brief_latency")
@pytest.mark.parametrize(
    ("kind", "top", "forms"),
    [
        ("llama-lm", 1000, {"plain": (plain, PLAIN), "ids": (in_ids, {"logprobs": "logprobs"})}),
        ("gpt2-lm", 1000, {"text": (in_text, {"logprobs": "logprobs"})}),
        ("llama-lm", 5, {"plain": (plain, SOME), "vllm": (by_id, {"logprobs": "logprobs", "token_ids": "own"})}),
        ("gpt2-lm", 40, {"text": (in_text, {"logprobs": "logprobs"})}),
    ],
)
def test_a_student_learns_from_given_tokens_what_it_learns_from_the_model(
    kind: str, top: int, forms: dict[str, Any], write: Any, make_model: Any, tmp_path: Path
) -> None:
    """Targets one position off, of another row, or without the mass of the other tokens train as quietly as these."""
    teachers = {"model": (model(kind, make_model), plain)}
    if top < 100:
        cached = {"name": "cached", "teacher": model(kind, make_model), "top": top, "precision": "float32"}
        teachers["model"] = ({**cached, "path": str(tmp_path / "cache")}, plain)
    teachers |= {name: ({"name": "given", "columns": columns}, form) for name, (form, columns) in forms.items()}
    found, students = {}, {}
    for name, (teacher, form) in teachers.items():
        path = write(
            kind, teacher, form, top, training={"output_dir": str(tmp_path / name)}, report={"latency": top == 40}
        )
        found[name], students[name] = run(path), weights(tmp_path / name)
    live, expected = found.pop("model"), students.pop("model")
    for name, report in found.items():
        for tensor, value in expected.items():
            assert np.allclose(value, students[name][tensor], atol=1e-5), (name, tensor)
        assert report.student.metrics == pytest.approx(live.student.metrics, rel=1e-5)
        assert report.agreement == live.agreement
        assert (report.teacher.parameters, report.teacher.latency) == (None, None)
        cells = {row.label: row.cells["teacher"] for row in table(report)}
        assert cells["parameters"] == "-"
        if top == 1000 or name == "text":  # of the others some labels are not among the likeliest
            assert report.teacher.metrics == pytest.approx(live.teacher.metrics, rel=1e-5)
        else:
            assert math.isnan(report.teacher.metrics["perplexity"])


def test_it_is_told_before_anything_runs(write: Any) -> None:
    """`--check` of data whose rows a run refuses would cost the run."""
    text = check(load_recipe(write("llama-lm", {"name": "given", "columns": SOME}, plain, 5)))
    assert "no model, targets from the data" in text
    with pytest.raises(UserError, match=r"teacher\.columns: the train split has no column 'idss'"):
        check(load_recipe(write("llama-lm", {"name": "given", "columns": {**PLAIN, "top_token_ids": "idss"}})))


def test_the_first_rows_of_large_data_are_looked_at(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger the data, the dearer a run that ends at a row whose like is among the first."""
    import hf_distill.run.dry_run
    from hf_distill.data.loading import Sample, peek

    def part(*args: Any, **named: Any) -> Sample:
        found = peek(*args, **named)
        assert found is not None
        return Sample({"train": found.splits["train"].select(range(9))}, whole=False)

    monkeypatch.setattr(hf_distill.run.dry_run, "peek", part)
    check(load_recipe(write("llama-lm", {"name": "given", "columns": SOME}, plain, 5)))
    with pytest.raises(UserError, match=r"teacher\.columns: row 0 .*\(9 of 9 rows are like this\)"):
        check(load_recipe(write("llama-lm", {"name": "given", "columns": PLAIN}, plain, 5)))


def test_conversations_are_refused(write: Any, tmp_path: Path) -> None:
    """Tokens of a server stand behind a prompt that the template made, which rows of messages do not show."""
    path = write("llama-lm", {"name": "given", "columns": {"logprobs": "logprobs"}}, in_ids, 5)
    for split in ("train", "validation"):
        lines = [json.loads(one) for one in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        chats = [{"prompt": [{"role": "user", "content": one["prompt"]}],
                  "completion": [{"role": "assistant", "content": one["completion"]}],
                  "logprobs": one["logprobs"]} for one in lines]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    with pytest.raises(UserError, match=r"chat template"):
        check(load_recipe(path))


def test_a_long_completion_is_cut_with_its_targets(write: Any, tmp_path: Path) -> None:
    """Targets that are not cut with their tokens move all that follow by as many."""
    teacher = {"name": "given", "columns": SOME}
    path = write("llama-lm", teacher, plain, 5)
    train = tmp_path / "train.jsonl"
    train.write_text(
        train.read_text().replace('"the film is"', '""'), encoding="utf-8"
    )  # its first token is not learned
    report = run(path, "data.max_length=5")
    assert report.eval_rows == 8


# --- how they are read ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names(make_model: Any) -> Names:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_model("gpt2-lm"))
    return Names(tokenizer, len(tokenizer))


def read(names: Names, rows: list[dict[str, Any]], completion: str = " great film") -> list[CompletionTargets]:
    from datasets import Dataset

    split = Dataset.from_dict({"prompt": ["the"] * len(rows), "completion": [completion] * len(rows)})
    beside = Dataset.from_dict({what: [row[what] for row in rows] for what in rows[0]})
    return read_tokens({"train": split}, {"train": beside}, {what: what for what in rows[0]}, names)["train"]


def cell(ids: list[list[Any]], values: list[list[Any]], **more: Any) -> dict[str, Any]:
    """JSON, which may hold anything."""
    cells = {"top_token_ids": ids, "top_logprobs": values, **more}
    return {what: json.dumps(one) for what, one in cells.items()}


def test_the_end_of_a_text_is_learned_where_it_is_given_and_no_other(names: Names, caplog: Any) -> None:
    """A target that is made up for it would teach when to stop."""
    great, film = names.tokenizer(" great film")["input_ids"]
    end = names.tokenizer.eos_token_id
    values = [[-0.5, -1.5]] * 3
    with_end, without = read(
        names, [cell([[great, 7], [9, film], [end, 7]], values), cell([[great, 7], [9, film]], values[:2])]
    )
    assert "in 1 of 2 rows of the train split no log-probabilities are given for the end" in caplog.text
    assert with_end.tokens == [great, film, end]
    assert without.tokens == [great, film]
    assert with_end.own.tolist() == [-0.5, -1.5, -0.5]
    assert with_end.top.tolist() == [[great, 7], [9, film], [end, 7]]


def test_tokens_that_the_tokenizer_would_not_make_are_learned_as_they_were_said(names: Names) -> None:
    """A model that spells a word says other tokens than the tokenizer makes of its text; its targets are theirs."""
    spelled = [names.tokenizer.convert_tokens_to_ids(one) for one in ("Ġ", "g", "r", "e", "a", "t")]
    film = names.tokenizer(" film")["input_ids"]
    tokens = [*spelled, *film]
    assert tokens[:6] != names.tokenizer(" great")["input_ids"]
    (found,) = read(names, [cell([[one] for one in tokens], [[-0.1]] * 7, token_ids=tokens)])
    assert found.tokens == tokens


@pytest.mark.parametrize(
    ("ids", "values", "said"),
    [
        ([[5, 6]], [[-0.5, -1.5]], "row 1 .* 1 positions for a completion of 2 tokens"),
        ([[5, 6], [5, 6], [5, 6]], [[-0.5, -1.5]] * 3, "row 1 .* tokens at position 0 of which none is ' great'"),
        ([[5, 6]] * 4, [[-0.5, -1.5]] * 4, "row 1 .* 4 positions for a completion of 2 tokens"),
        ([[5, 6], [5, 6]], [[-0.5, -1.5]], "row 1 .* 2 positions of top_token_ids and 1 of top_logprobs"),
        ([[5, 6], [5, 6]], [[-0.5, -1.5], [-0.5]], "row 1 .* at position 1 2 tokens and 1 log-probabilities"),
        ([[5, 6], [5, 6]], [[-0.5, -1.5], [0.5, -1.5]], "row 1 .* 0.5 at position 1; wanted natural log-prob"),
        ([[5, 6], [5, 6]], [[-0.5, -1.5], [math.nan, -1.5]], "row 1 .* nan at position 1"),
        ([[5, 6], [5, 6]], [[-0.5, -1.5], [None, -1.5]], "row 1 .* 'None' at position 1; wanted a log-prob"),
        ([[5, 6], [5, 6]], [[-0.5, -1.5], [-0.1, -0.1]], "row 1 .* a sum of 1.8.* at position 1"),
        ([[5, 6], [5, 5]], [[-0.5, -1.5], [-0.5, -1.5]], "row 1 .* twice the token 5 at position 1"),
        ([[5, 6], [5, 100_000]], [[-0.5, -1.5], [-0.5, -1.5]], "row 1 .* 100000 at position 1; wanted a token below"),
        ([[5, 6], [5, -1]], [[-0.5, -1.5], [-0.5, -1.5]], "row 1 .* -1 at position 1; wanted a token below"),
        ([[5, 6], []], [[-0.5, -1.5], []], "row 1 .* no tokens at position 1"),
        ([[5, 6], [5, "film"]], [[-0.5, -1.5]] * 2, "row 1 .* 'film' at position 1; wanted the number of a token"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_with_row_and_position(
    ids: list[Any], values: list[Any], said: str, names: Names
) -> None:
    """Each of these is a distribution to a loss, which makes one of anything."""
    own = {"token_ids": names.tokenizer(" great film")["input_ids"]}
    good = cell([[5, 6], [5, 6]], [[-0.5, -1.5]] * 2, **own)
    more = own if len(ids) == 2 else {"token_ids": None}
    with pytest.raises(UserError, match=said) as error:
        read(names, [good, cell(ids, values, **more)])
    assert error.value.key == "columns"


def test_other_tokens_than_the_completion_has_are_counted(names: Names) -> None:
    """Of a teacher with another tokenizer every row differs: one line says so, not one for the first alone."""
    great = names.tokenizer(" great")["input_ids"]
    row = cell([[5, 6], [5, 6]], [[-0.5, -1.5]] * 2, token_ids=[*great, *great])
    with pytest.raises(UserError, match=r"row 0 .* reads? .*great great.*\(3 of 3 rows are like this\).*token_ids"):
        read(names, [row] * 3)


def test_texts_of_tokens(names: Names) -> None:
    """A text that is two tokens, or none, is not a token; a wrong one would be given the mass."""

    def said(*texts: str) -> dict[str, Any]:
        likeliest = [[{"token": one, "logprob": -0.5}, {"token": " a", "logprob": -2}] for one in texts]
        return {"logprobs": json.dumps(
            [{"token": one, "logprob": -0.5, "top_logprobs": some} for one, some in zip(texts, likeliest, strict=True)]
        )}  # fmt: skip

    (found,) = read(names, [said(" great", " film")])
    assert found.tokens == names.tokenizer(" great film")["input_ids"]
    assert found.top[:, 1].tolist() == names.tokenizer(" a a")["input_ids"]
    with pytest.raises(UserError, match=r"row 0 .* 'xyzzy' at position 1, which is not a token"):
        read(names, [said(" great", "xyzzy")])
    row = json.loads(said(" great", " film")["logprobs"])
    row[0]["top_logprobs"][1]["token"] = " xyzzy"
    with pytest.raises(UserError, match=r"row 0 .* ' xyzzy' at position 0, which is not a token"):
        read(names, [{"logprobs": json.dumps(row)}])


# --- what it is not for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"top_token_ids": "a"}, "top_token_ids and top_logprobs"),
        ({"token_ids": "a"}, "top_token_ids and top_logprobs"),
        ({"logprobs": "a", "probabilities": "b"}, "top_token_ids and top_logprobs"),
        ({"logprobs": ["a", "b"]}, "one column for each"),
    ],
)
def test_an_entry_that_says_too_little(columns: dict[str, Any], said: str) -> None:
    """Half of a pair of columns would be found missing after the data was read."""
    with pytest.raises(UserError, match=said):
        GivenTeacher(columns=columns)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"objectives": [{"name": "kl", "temperature": 2.0}]}, r"objectives\[0\]\.temperature: .* at temperature 1"),
        ({"objectives": [{"name": "logits_mse"}]}, r"objectives\[0\]: 'logits_mse' does not work"),
        ({"objectives": [{"name": "hidden"}]}, r"objectives\[0\]: 'hidden' compares hidden states of"),
        ({"task": {"name": "text-generation", "examples": "text"}}, r"teacher\.columns: .* learns from text"),
        ({"teacher": {"name": "given", "columns": {"probabilities": ["a", "b"]}}}, r"teacher\.columns: .* logprobs"),
    ],
)
def test_what_it_cannot_serve_is_refused(sections: dict[str, Any], said: str, write: Any) -> None:
    """It would fail after the data was read, in words of another module; or learn at a temperature that is not it."""
    path = write("llama-lm", {"name": "given", "columns": SOME}, plain, 5)
    recipe = {**json.loads(path.read_text()), **sections}
    path.write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        check(load_recipe(path))


def test_targets_of_the_other_kind_are_refused() -> None:
    """Log-probabilities of tokens are lists of numbers too, as those of classes are."""
    with pytest.raises(UserError, match="wanted probabilities or logits"):
        GivenTeacher(columns={"logprobs": "a"}).check_task(TextClassification())
