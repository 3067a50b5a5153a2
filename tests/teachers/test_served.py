"""A language model behind a server: its rows are those of the model itself, whatever goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_server
import forked
import numpy as np
import pytest
import torch
from fake_server import FakeServer, changed
from runs import run
from scoring_server import NAME, scoring

from hf_distill import DistillationArguments, DistillationTrainer, parallel, servers
from hf_distill.completions.section import Completions
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.models.target_rows import SparseRows
from hf_distill.objectives import ReverseKL
from hf_distill.objectives.sampled import SampledReverseKL
from hf_distill.objectives.written import Span
from hf_distill.recipe.reader import load_recipe
from hf_distill.rows.tokens import TokenRows
from hf_distill.run.dry_run import check
from hf_distill.tasks.language import PadTokens
from hf_distill.teachers import ServedTeacher
from hf_distill.teachers.served.source import ServedRows

KEY = "zs8Wq-not-a-real-key"
ROWS = [
    {"prompt": prompt, "completion": completion}
    for prompt in ("the film is", "the plot is", "it was a")
    for completion in (" great", " a very bad story", " moving film", " dull and stale")
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short."""
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def teacher(make_model: Any) -> Path:
    """Directory of the model that is served."""
    directory: Path = make_model("llama-lm", layers=4, seed=1)
    return directory


@pytest.fixture
def fake(teacher: Path) -> Iterator[FakeServer]:
    """A server of the teacher."""
    with scoring(teacher).running() as server:
        yield server


def model_of(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


@cache
def frozen(directory: Path) -> Any:
    """Return a model that nobody trains."""
    return model_of(directory).eval()


@cache
def tokenizer_of(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def opened(teacher: Path, tmp_path: Path) -> Callable[..., ServedRows]:
    """Return the source of a teacher, ready to be asked."""

    def make(fake: FakeServer, **settings: Any) -> ServedRows:
        entry = ServedTeacher(**{"url": fake.url, "model": NAME, "path": str(tmp_path / "answers"), **settings})
        source: Any = entry.load(None, None)  # type: ignore[arg-type]
        tokenizer = tokenizer_of(teacher)
        source.begin(frozen(teacher))
        source.read_by(TokenRows(shift=True, classes=len(tokenizer)), tokenizer)
        fake.requests.clear()
        return source

    return make


def batch_of(teacher: Path, side: str = "right") -> dict[str, Any]:
    """Return a padded batch: of each example the last tokens are learned, of the last one none."""
    tokenizer = tokenizer_of(teacher)
    texts = [tokenizer(one["prompt"] + one["completion"])["input_ids"] for one in ROWS[:4]]
    longest = max(map(len, texts))
    columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for number, ids in enumerate(texts):
        pad = [0] * (longest - len(ids))
        own = {
            "input_ids": (ids, pad),
            "attention_mask": ([1] * len(ids), pad),
            "labels": (
                [IGNORED] * (len(ids) - 2 * (number < 3)) + ids[len(ids) - 2 :] * (number < 3),
                [IGNORED] * len(pad),
            ),
        }
        for name, (values, padding) in own.items():
            columns[name].append(padding + values if side == "left" else values + padding)
    return {name: torch.tensor(one) for name, one in columns.items()}


def local_rows(teacher: Path, batch: dict[str, Any], classes: int) -> torch.Tensor:
    layout = TokenRows(shift=True, classes=classes)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        position = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = frozen(teacher)(**inputs, position_ids=position).logits
    return layout.select(logits, None, batch).student


@pytest.mark.parametrize("api", ["vllm", "sglang"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("top", ["all", 5, 0])
def test_the_rows_are_those_of_the_model(
    teacher: Path, fake: FakeServer, opened: Any, api: str, side: str, top: Any
) -> None:
    """A row that belongs to its neighbour, or to a padded place, trains on the answer to another question."""
    source, batch = opened(fake, api=api, top=top), batch_of(teacher, side)
    log_p = local_rows(teacher, batch, source.config.vocab_size).log_softmax(-1)
    wanted = SparseRows.of(log_p, source.config.vocab_size if top == "all" else top)
    (step,) = source.of_step([batch])
    found = source.targets(step).rows
    assert len(fake.requests) == 3
    assert source.targets(batch).rows.indices.equal(found.indices)  # asked for without a step, and stored by now
    assert len(fake.requests) == 3
    assert found.indices.equal(wanted.indices)
    torch.testing.assert_close(found.log_probabilities, wanted.log_probabilities, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.remaining, wanted.remaining, rtol=0, atol=1e-4)
    own = TokenRows(shift=True).places(batch).labels
    written = log_p.gather(-1, own.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(step["cached_written"], written, rtol=0, atol=1e-5)


def test_only_what_counts_is_asked(teacher: Path, fake: FakeServer, opened: Any) -> None:
    """Tokens after the last row, padding, and equal texts would be paid for; a prompt is sent and not told again."""
    source, batch = opened(fake, api="sglang", concurrency=1), batch_of(teacher)
    source.of_step([batch, batch])
    bodies = fake.posted("/generate")
    learned = [int((row != IGNORED).nonzero()[0, 0]) for row in batch["labels"][:3]]
    assert sorted(body["logprob_start_len"] for body in bodies) == sorted(at - 1 for at in learned)
    assert sorted(len(body["input_ids"]) for body in bodies) == sorted(at + 2 for at in learned)


# ---- Faults ----------------------------------------------------------------------------------------------------------


def cell_of(found: Any) -> dict[str, Any]:
    """Return what an answer of vLLM says about its last token."""
    cell: dict[str, Any] = found["choices"][0]["prompt_logprobs"][-1]
    return cell


def with_cell(change: Callable[[dict[str, Any]], Any]) -> fake_server.Fault:
    def edit(found: Any) -> Any:
        change(cell_of(found))
        return found

    return changed(edit)


def with_choice(**values: Any) -> fake_server.Fault:
    return changed(lambda found: {**found, "choices": [{**found["choices"][0], **values}]})


def each(value: Any) -> fake_server.Fault:
    """Return a fault: every log-probability of the last token is another value."""
    return with_cell(lambda cell: [one.update(logprob=value) for one in cell.values()])


WRONG = {
    "short": changed(lambda found: (found["choices"][0]["prompt_logprobs"].pop(), found)[1]),
    "no rows": with_choice(prompt_logprobs=None),
    "too few": with_cell(lambda cell: cell.pop(next(reversed(cell)))),
    "missing": each(-9999.0),
    "NaN": each(float("nan")),
    "infinite": each(float("inf")),
    "text": each("-1.0"),
    "null": each(None),
    "above 1": each(-0.1),
    "without the token": with_cell(lambda cell: cell.pop(next(iter(cell)))),
    "unknown token": with_cell(lambda cell: cell.update({"99999": {"logprob": -9.0}})),
    "a word": with_cell(lambda cell: cell.update({"\x1b[31mfilm": {"logprob": -9.0}})),
    "other model": changed(lambda found: {**found, "model": "another"}),
    "other tokens": with_choice(prompt_token_ids=[1, 2, 3]),
    "two choices": changed(lambda found: {**found, "choices": found["choices"] * 2}),
    "a list": changed(lambda found: [found]),
    "other cells": with_choice(prompt_logprobs=["\x1b[2J"] * 30),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_asked_for_again_and_then_refused(
    teacher: Path, fake: FakeServer, opened: Any, name: str
) -> None:
    """A number in the place of another would be learned: nothing about the loss would look wrong."""
    source, batch = opened(fake, top=5, concurrency=1), batch_of(teacher)
    fake.faults = [WRONG[name]]
    again = source.of_step([batch])[0]["cached_log_probabilities"]
    log_p = local_rows(teacher, batch, source.config.vocab_size).log_softmax(-1)
    torch.testing.assert_close(again, SparseRows.of(log_p, 5).log_probabilities, rtol=0, atol=1e-5)
    assert len(fake.requests) == 4
    source = opened(fake, top=5, concurrency=1, path=str(Path(source.answers.file).parent / "new"))
    fake.faults = [WRONG[name]] * 6
    with pytest.raises(UserError, match="the server twice answered") as error:
        source.of_step([batch])
    assert len(error.value.mistakes) == 1
    assert "\x1b" not in str(error.value)


def test_order_is_no_matter(teacher: Path, fake: FakeServer, opened: Any) -> None:
    """The entries of a token come in any order, and answers too: the first one asked for may come last."""

    def shuffle(found: Any) -> Any:
        cells = found["choices"][0]["prompt_logprobs"]
        cells[1:] = [dict(sorted(cell.items(), key=lambda one: one[1]["logprob"])) for cell in cells[1:]]
        return found

    source, batch = opened(fake, top=5), batch_of(teacher)
    fake.faults = [fake_server.slow(0.2), changed(shuffle), changed(shuffle)]
    found = source.of_step([batch])[0]["cached_indices"]
    assert found.equal(SparseRows.of(local_rows(teacher, batch, source.config.vocab_size), 5).indices)


def test_padding_columns_of_the_model_take_no_part(teacher: Path, fake: FakeServer, opened: Any) -> None:
    """A model whose embeddings are padded gives them some probability; the student's softmax leaves them out."""
    source = opened(fake, top="all")
    classes = source.config.vocab_size - 6
    source._asking = replace(source._asking, top=classes, classes=classes)
    source._layout = TokenRows(shift=True, classes=classes)
    batch = batch_of(teacher)
    found = source.targets(batch).rows
    log_p = local_rows(teacher, batch, classes).log_softmax(-1)
    torch.testing.assert_close(found.log_probabilities, SparseRows.of(log_p, classes).log_probabilities)


# ---- At the start ----------------------------------------------------------------------------------------------------


def test_a_server_that_gives_too_little_says_how_to_start_it(fake: FakeServer, opened: Any) -> None:
    """The first refusal comes after hours, or 20 of 64 are taken for all of them."""
    fake.answer.most = 20  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="--max-logprobs 64, or set top: 20") as error:
        opened(fake, top=64)
    assert error.value.key == "top"
    with pytest.raises(UserError, match="--max-logprobs -1"):
        opened(fake, top="all")


def test_another_model_or_tokenizer_is_refused_at_the_start(
    make_model: Any, teacher: Path, fake: FakeServer, opened: Any
) -> None:
    """The log-probabilities of other words look like any others."""
    with pytest.raises(UserError, match="Did you mean 'teacher'") as error:
        opened(fake, model="teachr")
    assert error.value.key == "model"
    scorer: Any = fake.answer
    other = make_model("llama-lm", layers=2, vocab=("film", "good", "bad", "story"), seed=3)
    scorer.tokenizer = tokenizer_of(other)
    with pytest.raises(UserError, match="other tokens of a text"):
        opened(fake, top=5)
    scorer.directory = other
    del scorer.tokenizer
    with pytest.raises(UserError, match="out of vocabulary"):
        opened(fake, top=5)


def test_a_local_copy_shows_other_weights(make_model: Any, teacher: Path, fake: FakeServer, opened: Any) -> None:
    """A server of an earlier version of a model has the same name and tokens."""
    opened(fake, top=5, local=str(teacher))
    with pytest.raises(UserError, match="differ from those of") as error:
        opened(fake, top=5, local=str(make_model("llama-lm", layers=4, seed=2)))
    assert error.value.key == "local"


def test_servers_of_two_models_are_refused(make_model: Any, teacher: Path, fake: FakeServer, opened: Any) -> None:
    """Half of the rows would come from another model."""
    with scoring(teacher).running() as other:
        source = opened(fake, url=[fake.url, other.url], top=5)
        source.of_step([batch_of(teacher)])
        assert other.posted("/v1/completions")
        other.answer.directory = make_model("llama-lm", layers=4, seed=2)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="the same model everywhere"):
            opened(fake, url=[fake.url, other.url], top=5)


def test_a_text_that_is_too_long_is_told_before_it_is_sent(teacher: Path, fake: FakeServer, opened: Any) -> None:
    """The server's own words say nothing of the recipe."""
    fake.answer.longest = 6  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="max_length: 5"):
        opened(fake, top=5).of_step([batch_of(teacher)])
    assert not fake.requests


# ---- In training -----------------------------------------------------------------------------------------------------


def recipe(directory: Path, entry: dict[str, Any], student: Path, **changes: Any) -> Path:
    data = directory / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    whole = {
        "task": "text-generation",
        "data": {"path": str(data), "splits": {"train": "train[:8]", "eval": "train[8:]"}},
        "teacher": entry,
        "student": {"name": "pretrained", "model": str(student)},
        "objectives": [{"name": "kl", "weight": 0.5}, {"name": "labels", "weight": 0.5}],
        "training": {"output_dir": str(directory / "out"), "max_steps": 3, "per_device_train_batch_size": 2,
                     "gradient_accumulation_steps": 2, "use_cpu": True, "logging_steps": 1, "report_to": "none"},
        "report": {"baseline": False, "latency": False},
        **changes,
    }  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def served(fake: FakeServer, directory: Path, **settings: Any) -> dict[str, Any]:
    return {"name": "served", "url": fake.url, "model": NAME, "path": str(directory / "answers"), **settings}


def test_a_run_is_that_with_the_model_itself(
    make_model: Any, teacher: Path, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a served teacher that knows all tokens is that of the local one: live, stored, at any temperature."""
    monkeypatch.setenv("SOME_KEY", KEY)
    student = make_model("llama-lm", layers=2)
    own = served(fake, tmp_path, top="all", key="SOME_KEY")
    objectives = [{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}]
    entries = {
        "local": {"name": "pretrained", "model": str(teacher)},
        "live": own,
        "stored": {"name": "cached", "precision": "float32", "top": 1000, "teacher": own},
    }
    found, asked = {}, {}
    for name, entry in entries.items():
        directory = tmp_path / name
        directory.mkdir()
        found[name] = run(recipe(directory, entry, student, objectives=objectives))
        asked[name] = len(fake.posted("/v1/completions"))
    local = [one["loss"] for one in found["local"].history["student"] if "loss" in one]
    for name in ("live", "stored"):
        losses = [one["loss"] for one in found[name].history["student"] if "loss" in one]
        np.testing.assert_allclose(losses, local, atol=1e-6)
        perplexity = [found[one].teacher.metrics["perplexity"] for one in ("local", name)]
        assert perplexity[0] == pytest.approx(perplexity[1], abs=1e-3)
    # A probe, and each of the 12 texts once; then a probe alone.
    assert (asked["live"], asked["stored"]) == (13, 14)
    assert found["live"].settings["teacher"]["model behind a server"] == NAME
    files = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert files == []


def on_policy(make_model: Any, teacher: Path, directory: Path) -> Callable[..., list[float]]:
    """Return a function that trains a student on its own samples and returns the losses."""
    tokenizer = tokenizer_of(teacher)
    prompts = [{"input_ids": (ids := tokenizer(one["prompt"])["input_ids"]), "labels": [IGNORED] * len(ids),
                "prompt_length": len(ids)} for one in ROWS[:8]]  # fmt: skip
    from datasets import Dataset

    def trained(source: Any, *objectives: Any) -> list[float]:
        trainer = DistillationTrainer(
            model_of(make_model("llama-lm", layers=2)),
            DistillationArguments(output_dir=str(directory / "out"), max_steps=3, per_device_train_batch_size=2,
                                  gradient_accumulation_steps=2, use_cpu=True, logging_steps=1, report_to="none"),
            teacher=source,
            objectives=objectives,
            train_dataset=Dataset.from_list(prompts),
            data_collator=PadTokens(0),
            processing_class=tokenizer,
            completions=Completions(by="student", max_new_tokens=6),
        )  # fmt: skip
        trainer.train()
        return [one["loss"] for one in trainer.state.log_history if "loss" in one]

    return trained


def test_own_samples_are_scored_once(make_model: Any, teacher: Path, fake: FakeServer, tmp_path: Path) -> None:
    """On-policy, all texts of a step are asked for at once, and the loss is that with the model itself."""
    trained = on_policy(make_model, teacher, tmp_path)
    entry = ServedTeacher(url=fake.url, model=NAME, top="all", path=str(tmp_path / "answers"), concurrency=4)
    losses = trained(entry, ReverseKL())
    np.testing.assert_allclose(losses, trained(model_of(teacher), ReverseKL()), atol=1e-6)
    asked = [tuple(body["prompt"]) for body in fake.posted("/v1/completions")]
    assert len(asked) == len(set(asked))
    assert len(asked) <= 1 + 12
    assert fake.most > 1
    assert trained(entry, ReverseKL()) == losses  # as after a resume: everything is stored
    assert len(fake.posted("/v1/completions")) == len(asked) + 1


def test_one_number_a_token_is_enough_for_some(
    make_model: Any, teacher: Path, fake: FakeServer, tmp_path: Path
) -> None:
    """Objectives that compare the tokens of the text alone get them from the server as from the model itself."""
    trained = on_policy(make_model, teacher, tmp_path)
    entry = ServedTeacher(url=fake.url, model=NAME, top=0, path=str(tmp_path / "answers"))
    chosen = (SampledReverseKL(), Span())
    np.testing.assert_allclose(trained(entry, *chosen), trained(model_of(teacher), *chosen), atol=1e-5)
    with pytest.raises(ValueError, match="one number a token"):
        trained(entry, ReverseKL())


def test_a_killed_run_asks_nothing_twice(make_model: Any, teacher: Path, fake: FakeServer, tmp_path: Path) -> None:
    """What was answered before a crash was paid for."""
    student = make_model("llama-lm", layers=2)
    path = recipe(tmp_path, {"name": "cached", "teacher": served(fake, tmp_path, top=5, concurrency=1)}, student)
    # Before the seventh text it tokenises one.
    fake.faults = [None] * 7 + [fake_server.slow(60.0)]
    child = forked.start(lambda: run(path))
    deadline = time.monotonic() + 120
    while len(fake.posted("/v1/completions")) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    assert forked.status(child) == -signal.SIGKILL
    before = [tuple(body["prompt"]) for body in fake.posted("/v1/completions")]
    fake.faults.clear()
    run(path)
    asked = [tuple(body["prompt"]) for body in fake.posted("/v1/completions")]
    probe = asked[0]
    twice = {one for one in asked if asked.count(one) > 1} - {probe}
    assert twice == {before[-1]}  # which was under way
    assert len(set(asked)) == 13


def test_each_process_asks_for_its_own_rows_and_sees_a_failure(
    teacher: Path, fake: FakeServer, opened: Any, tmp_path: Path
) -> None:
    """One process that raises alone leaves the other waiting without end."""
    teacher_batch = batch_of(teacher)

    def work() -> Any:
        from accelerate import PartialState

        PartialState(cpu=True)
        source = opened(fake, top=5, path=str(tmp_path / "both"))
        mine = {name: one[parallel.rank() : parallel.rank() + 1] for name, one in teacher_batch.items()}
        source.of_step([mine])
        if parallel.is_first():
            source._asking = replace(source._asking, model="another")
        theirs = {name: one[2:3] for name, one in teacher_batch.items()}
        try:
            source.of_step([theirs])
        except UserError as error:
            return str(error)
        return ""

    first, second = forked.two_processes(work, tmp_path / "results")
    assert "does not exist" in first
    assert first == second


# ---- --check ---------------------------------------------------------------------------------------------------------


def test_check_contacts_nobody_and_says_what_it_costs(make_model: Any, tmp_path: Path) -> None:
    """The bill would be a surprise, or a check would need a server that is not running yet."""
    entry = {"name": "served", "url": "http://127.0.0.1:9", "model": NAME, "top": 20}
    said = check(load_recipe(recipe(tmp_path, entry, make_model("llama-lm", layers=2))))
    assert "12 requests for 78 tokens, 42 of them learned" in said
    assert f"{78 * 21 * 78 / 1e3:.1f} kB" in said


def test_own_samples_are_counted_before_they_are_written(make_model: Any, tmp_path: Path) -> None:
    """Counted as they stand in the data, prompts cost nothing, and the bill of the training would be a surprise."""
    from datasets import Dataset

    from hf_distill.teachers.served.cost import cost_in_words

    def split(*rows: list[int]) -> Dataset:
        labels = [[-100] * 2 + one[2:] for one in rows]
        return Dataset.from_dict({"input_ids": rows, "labels": labels, "prompt_length": [2] * len(rows)})

    data: Any = SimpleNamespace(train=split([5, 6], [5, 6], [7, 8, 9]), eval=split([5, 6], [7, 8, 9, 2]))
    said = cost_in_words(data, 20, Completions(by="student", max_new_tokens=10))
    assert "each pass over the train rows 3 requests for at most 36 tokens, 30 of them learned" in said
    assert "to evaluate 2 requests for at most 16 tokens, 12 of them learned" in said


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"api": "openai"}, "teacher.api", "learn from them as data"),
        ({"url": "localhost:8000"}, "teacher: url", "http://HOST:PORT"),
        ({"url": "http://me:secret1@localhost"}, "teacher: url", "key: NAME"),
        ({"top": -1}, "teacher.top", "-1"),
        ({"key": "NOT_IN_THE_ENVIRONMENT"}, "teacher.key", "not set"),
    ],
)
def test_what_cannot_work_is_refused(make_model: Any, tmp_path: Path, changes: Any, key: str, said: str) -> None:
    """A server that cannot score would answer something else."""
    entry = {"name": "served", "url": "http://127.0.0.1:9", "model": NAME, **changes}
    with pytest.raises(UserError) as error:
        check(load_recipe(recipe(tmp_path, entry, make_model("llama-lm", layers=2))))
    assert said in str(error.value)
    assert key in str(error.value)
    assert "secret1" not in str(error.value)


def test_another_temperature_is_refused_with_the_reason(make_model: Any, tmp_path: Path) -> None:
    """The servers take a temperature and do not use it: the student would be taught by another distribution."""
    entry = {"name": "served", "url": "http://127.0.0.1:9", "model": NAME}
    objectives = [{"name": "kl", "temperature": 2.0}]
    path = recipe(tmp_path, entry, make_model("llama-lm", layers=2), objectives=objectives)
    with pytest.raises(UserError, match="whatever temperature they are asked for"):
        check(load_recipe(path))
    whole = recipe(tmp_path, {**entry, "top": "all"}, make_model("llama-lm", layers=2), objectives=objectives)
    check(load_recipe(whole))
