"""Tokens in the cache: found by every task and every process, and never those of other settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_distill.data import load_splits
from hf_distill.data.section import Data
from hf_distill.models.loading import open_config, open_tokenizer
from hf_distill.models.tokenizers import tokenizer_name
from hf_distill.tasks import TASKS, Prepared, Setup

TEXTS = ["a great film", "the plot is dull", "this cast is moving", "bad scene", "it was funny !", "very stale ."]
ROWS: dict[str, list[dict[str, Any]]] = {
    "fill-mask": [{"text": text} for text in TEXTS],
    "question-answering": [
        {"question": "what is it", "context": text, "answers": {"text": [text.split()[0]], "answer_start": [0]}}
        for text in TEXTS
    ],
    "sentence-similarity": [{"text": text, "text_pair": text[::-1]} for text in TEXTS],
    "summarization": [{"text": text, "summary": text.split()[0]} for text in TEXTS],
    "text-classification": [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)],
    "text-generation": [{"text": text} for text in TEXTS],
    "token-classification": [
        {"tokens": text.split(), "tags": [index % 2] * len(text.split())} for index, text in enumerate(TEXTS)
    ],
    "translation": [{"source": text, "target": text.split()[0]} for text in TEXTS],
}
KINDS = {
    "fill-mask": "bert-mlm",
    "summarization": "t5",
    "text-generation": "gpt2-lm",
    "token-classification": "bert-tokens",
    "translation": "t5",
}
# What a task needs besides, on texts as short.
SETTINGS: dict[str, dict[str, Any]] = {"question-answering": {"stride": 2}}


def files_of(*case: Any, **changed: Any) -> list[str]:
    """Return where the tokens of a small data set lie; the arguments are those of `prepared_of`."""
    prepared = prepared_of(*case, **changed)
    return [file["filename"] for split in (prepared.train, prepared.eval) for file in split.cache_files]


def prepared_of(
    task: str,
    path: str,
    models: list[str],
    max_length: int = 32,
    change: Any = None,
    columns: dict[str, Any] | None = None,
    **settings: Any,
) -> Prepared:
    """Return a small data set as a task prepares it.

    Args:
        task: Name.
        path: Of the data.
        models: Whose tokenizers: the student's and, for some, the teacher's.
        max_length: Of an example.
        change: What to do to the tokenizers first.
        columns: Of the data, beside those of the same name.
        **settings: Of the task.
    """
    data = Data(path=path, columns=columns or {}, splits={"train": "train[:4]", "eval": "train[4:]"})
    entry = TASKS[task](**{**SETTINGS.get(task, {}), **settings})
    tokenizers = [open_tokenizer(model) for model in models]
    for tokenizer in tokenizers:
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        if change is not None:
            change(tokenizer)
    prepared: Prepared = entry.prepare(
        load_splits(data, entry.roles),
        Setup(
            tokenizer=tokenizers[0],
            teacher_tokenizer=tokenizers[1] if len(tokenizers) > 1 else None,
            max_length=max_length,
            configs=tuple(open_config(model) for model in models),
        ),
    )
    return prepared


@pytest.fixture
def cases(make_model: Any, tmp_path: Path) -> dict[str, tuple[str, str, list[str]]]:
    """Return task, data and models of each case."""
    found = {}
    for task, rows in ROWS.items():
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found[task] = (task, str(path), [str(make_model(KINDS.get(task, "bert")))])
    task, data, models = found["text-classification"]
    found["two tokenizers"] = (task, data, [*models, str(make_model("roberta"))])
    return found


def test_every_task_is_here() -> None:
    """A task left out would tokenise everything again in every run, and nobody would know why it is slow."""
    assert set(ROWS) == set(TASKS)


def test_another_process_finds_the_tokens(cases: dict[str, tuple[str, str, list[str]]]) -> None:
    """`datasets` hashes a pickle of the function, which differs between processes and after the tokenizer was used."""
    first = {name: files_of(*case) for name, case in cases.items()}
    assert all(len(set(files)) >= 2 for files in first.values())
    assert len({file for files in first.values() for file in files}) >= 2 * len(ROWS)
    stamps = {file: os.stat(file).st_mtime_ns for files in first.values() for file in files}
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_tokenising import files_of\n"
        "cases = json.loads(sys.argv[2])\n"
        "print(json.dumps({name: files_of(*case) for name, case in reversed(cases.items())}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), json.dumps(cases)],
        env={**os.environ, "PYTHONHASHSEED": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == first
    assert "Tokenising" not in done.stderr
    assert "Masking" not in done.stderr
    assert stamps == {file: os.stat(file).st_mtime_ns for file in stamps}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        *((name, {"max_length": 16}) for name in (*ROWS, "two tokenizers")),
        ("text-generation", {"packing": True}),
        ("fill-mask", {"mask_share": 0.5}),
        ("fill-mask", {"whole_word": True}),
        ("fill-mask", {"loss_on": "all"}),
        ("fill-mask", {"seed": 3}),
        ("token-classification", {"label_all_subwords": True}),
        ("text-classification", {"change": lambda one: setattr(one, "truncation_side", "left")}),
        ("text-generation", {"change": lambda one: setattr(one, "eos_token", one.convert_ids_to_tokens(5))}),
    ],
)
def test_what_changes_tokens_is_another_entry(
    name: str, changed: dict[str, Any], cases: dict[str, tuple[str, str, list[str]]]
) -> None:
    """Tokens of the last run, found under the settings of this one, are wrong without a word."""
    before, after = files_of(*cases[name]), files_of(*cases[name], **changed)
    # Sub-words are labelled in training, masks are drawn once for evaluation: the other split may stay.
    split = {"label_all_subwords": slice(0, 1), "change": slice(0, None), "max_length": slice(0, None)}
    kept = set(before) & set(after)
    assert before != after
    if set(changed) & {"max_length", "change", "packing"}:
        assert not kept
    else:
        part = split.get(next(iter(changed)), slice(1, None))
        assert not set(before[part]) & set(after[part])


def test_a_chat_template_is_part_of_the_key(make_model: Any, tmp_path: Path) -> None:
    """It lies beside the vocabulary, not in it: with another one a conversation is another text."""
    path = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "is it dull"}, {"role": "assistant", "content": "it is great"}]
    path.write_text((json.dumps({"messages": chat}) + "\n") * 6, encoding="utf-8")
    template = (
        "{% for message in messages %}{% if message.role == 'assistant' %}SIGN {% generation %}{{ message.content }}"
        "{% endgeneration %}{% else %}{{ message.content }} {% endif %}{% endfor %}"
    )

    def files(sign: str) -> list[str]:
        def change(tokenizer: Any) -> None:
            tokenizer.chat_template = template.replace("SIGN", sign)

        return files_of("text-generation", str(path), [str(make_model("llama-lm"))], change=change)

    assert files("a") == files("a")
    assert not set(files("a")) & set(files("the"))


def test_what_a_tokenizer_is_called(make_model: Any) -> None:
    """`TokenizersBackend` is the class of every tokenizer that is loaded from a file alone: it says nothing."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    assert tokenizer_name(plain) == "WordLevel"
    assert tokenizer_name(open_tokenizer(str(make_model("bert")))) == "BertTokenizer"


@pytest.mark.parametrize("name", [*ROWS, "two tokenizers"])
@pytest.mark.parametrize("max_length", [32, 7])  # 7 cuts texts, and makes several examples of one
def test_every_task_keeps_group_and_weight_with_their_row(
    name: str, max_length: int, cases: dict[str, tuple[str, str, list[str]]]
) -> None:
    """A task that sorts, drops or cuts rows would weigh one row with the weight of another, and blame its group."""
    task, path, models = cases[name]
    max_length += 5 if task == "question-answering" else 0
    rows = [{**row, "who": f"reader {number}", "w": number + 1} for number, row in enumerate(ROWS[task])]
    if task == "summarization":
        rows[1]["summary"] = " "  # dropped by the task
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = prepared_of(task, path, models, max_length, columns={"group": "who", "weight": "w"})
    tokenizer = open_tokenizer(models[0])
    groups = found.groups
    assert groups is not None
    seen = set()
    for view in filter(None, (found, found.for_teacher)):
        for split in (view.train, view.eval):
            for row in split:
                number = int(row["example_group"].split()[1])
                assert row["example_weight"] == number + 1
                seen.add(number)
                if view is found:
                    assert _words(row, tokenizer) <= set(TEXTS[number].split()) | {"what", "is", "it"}
    assert seen == set(range(len(TEXTS))) - ({1} if task == "summarization" else set())
    assert [groups.names[number] for number in groups.train] == found.train["example_group"][:]
    by_row = [f"reader {number}" for number in (4, 5)]
    assert sorted({groups.names[number] for number in groups.eval}) == by_row
    if task == "question-answering":
        assert [groups.names[number] for number in groups.eval] == by_row  # one a question, however many windows
        assert max_length > 32 or len(found.eval) > 2


def _words(row: dict[str, Any], tokenizer: Any) -> set[str]:
    """Return the words of a tokenised row that are one token, those under a mask too."""
    ids = row["input_ids"][0] if isinstance(row["input_ids"][0], list) else row["input_ids"]
    labels = row.get("labels") if isinstance(row.get("labels"), list) and len(row["labels"]) == len(ids) else ids
    under = [label if label > 1 else one for one, label in zip(ids, labels, strict=True)]
    return {tokenizer.decode([one]).strip() for one in under} & {word for text in TEXTS for word in text.split()}
