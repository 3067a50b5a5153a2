"""Caches that are interrupted, damaged, or not the right ones."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import start, status
from invariants.cached import cache_of, capture, parts
from invariants.cases import arguments
from runs import WriteRecipe, run

from hf_distill import parallel
from hf_distill.cache import cache as module
from hf_distill.cache import shards as cache_format
from hf_distill.cache.cache import Cache
from hf_distill.cache.recorder import Recorder
from hf_distill.cache.replay import TrainingData
from hf_distill.errors import UserError
from hf_distill.files.records import write_record
from hf_distill.models.layers import States

# What is drawn, and columns of layers, are part of what a capture that was killed must not change.
SETTINGS: Any = {"top": 4, "tail": 3, "states": (States(1), States(2, "mean"))}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_EXAMPLES", 4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the teacher is asked about."""
    seen: list[int] = []
    real = Recorder.__call__

    def counting(self: Any, batch: Any, seed: int) -> Any:
        seen.append(len(batch["input_ids"]))
        return real(self, batch, seed)

    monkeypatch.setattr(Recorder, "__call__", counting)
    return seen


def answers(cache: Cache) -> dict[bytes, tuple[Any, ...]]:
    """Return everything that a complete cache holds, by example."""
    rows = cache_format.load(cache.path, cache_format.read_cache(cache.path) or {}).to_list()
    return {row.pop("example"): tuple(map(repr, row.values())) for row in rows}


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_killed_in_the_middle(kind: str, tmp_path: Path, asked: list[int]) -> None:
    """kill -9: what was finished is not asked again, what was not is not taken for finished, and nothing else differs
    from a cache made in one go."""
    path = tmp_path / "cache"
    _, teacher, data = parts(kind)
    cache = cache_of(teacher, data, path, **SETTINGS)
    args = arguments(tmp_path / "args", per_device_eval_batch_size=2)

    def die_in_the_third_shard() -> None:
        real, calls = Recorder.__call__, []

        def dying(self: Any, *given: Any) -> Any:
            calls.append(1)
            if len(calls) == 6:  # batches of 2 for shards of 4
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *given)

        Recorder.__call__ = dying  # type: ignore[method-assign]
        cache.fill(args)

    assert status(start(die_in_the_third_shard)) == -signal.SIGKILL
    finished = sorted(path.glob("*.arrow"))
    assert len(finished) == 2
    assert not (path / cache_format.CACHE).exists()
    before = [file.stat().st_mtime_ns for file in finished]
    assert "no complete cache" in refused(lambda: cache.apply(data))
    cache.fill(args)
    assert sum(asked) == 24 - 8
    assert [file.stat().st_mtime_ns for file in finished] == before
    assert not list(path.glob("*.tmp"))
    whole = cache_of(teacher, data, tmp_path / "whole", **SETTINGS)
    whole.fill(args)
    assert answers(cache) == answers(whole)
    assert len(answers(cache)) == 24


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_resumed_by_another_number_of_processes(
    processes: int, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are ranges of examples, whoever writes them: one process of three is stopped, five go on."""
    _, teacher, data = parts("classification")
    cache = cache_of(teacher, data, tmp_path / "cache")
    cache_format.claim(cache.path, {**cache.identity, "shard_examples": 4}, 0)

    def take_part(index: int, of: int) -> None:
        monkeypatch.setattr(parallel, "rank", lambda: index)
        monkeypatch.setattr(parallel, "processes", lambda: of)
        cache._capture(arguments(tmp_path / "args", per_device_eval_batch_size=4))

    for index in (0, 2):
        take_part(index, 3)
    assert sum(asked) == 16
    for index in range(processes):
        take_part(index, processes)
    # Each process looks when it begins, at another time than the others: nothing is written twice, or by nobody.
    assert sum(asked) == 24
    monkeypatch.undo()
    cache.fill(arguments(tmp_path / "args"))
    assert len(answers(cache)) == 24


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[:-100]
    elif how == "flipped":
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if how == "missing":
        file.unlink()


@pytest.mark.parametrize(("how", "reason"), [("truncated", "was written with"), ("flipped", "its sha256 is different")])
def test_a_damaged_shard(how: str, reason: str, tmp_path: Path, asked: list[int]) -> None:
    """One flipped bit is another target, and nothing else would ever tell. The way out that is given has to work, and
    costs one shard."""
    _, teacher, data = parts("classification")
    cache = capture(teacher, data, tmp_path / "cache")
    held = answers(cache)
    asked.clear()
    file = sorted(cache.path.glob("*.arrow"))[2]
    damage(file, how)
    said = refused(lambda: cache.fill(arguments(tmp_path / "args")))
    assert str(file) in said
    assert reason in said
    assert not asked
    file.unlink()
    cache.fill(arguments(tmp_path / "args", per_device_eval_batch_size=4))
    assert sum(asked) == 4
    assert answers(cache) == held


@pytest.mark.parametrize("name", ["cache.json", "plan.json", "targets-00002-of-00006.arrow.json"])
def test_a_damaged_record(name: str, tmp_path: Path) -> None:
    """A flipped bit in a name was a KeyError; what the records say is said again, or refused in a line."""
    _, teacher, data = parts("classification")
    cache = capture(teacher, data, tmp_path / "cache")
    held, whole = answers(cache), (cache.path / name).read_bytes()
    for place in (0, len(whole) // 3, whole.index(b"s"), len(whole) - 2):
        content = bytearray(whole)
        content[place] ^= 1
        (cache.path / name).write_bytes(content)
        try:
            again = capture(teacher, data, tmp_path / "cache")
        except UserError:
            (cache.path / name).write_bytes(whole)
        else:
            assert answers(again) == held


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    """The system's error comes through, whole shards stay, no half of one does, and the same command goes on."""
    from datasets.arrow_writer import ArrowWriter

    _, teacher, data = parts("causal-lm")
    cache = cache_of(teacher, data, tmp_path / "cache")
    real, written = ArrowWriter.write_table, []

    def write(self: Any, *args: Any, **kwargs: Any) -> None:
        written.append(1)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *args, **kwargs)

    args = arguments(tmp_path / "args", per_device_eval_batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(ArrowWriter, "write_table", write)
        patch.setattr(cache_format, "_TOGETHER", 1)
        with pytest.raises(OSError, match="No space left"):
            cache.fill(args)
    assert [file.name[:13] for file in cache.path.glob("*.arrow")] == ["targets-00000"]
    assert not list(cache.path.glob("*.tmp"))
    assert not (cache.path / cache_format.CACHE).exists()
    asked.clear()
    cache.fill(args)
    assert sum(asked) == 20


def test_too_large_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    """Said before the teacher is asked anything."""
    _, teacher, data = parts("classification")
    monkeypatch.setattr("hf_distill.files.atomic.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    said = refused(lambda: cache_of(teacher, data, tmp_path / "cache").fill(arguments(tmp_path / "args")))
    assert "GiB free" in said
    assert not asked


# ---- Caches that do not belong ---------------------------------------------------------------------------------------


def test_another_teacher(tmp_path: Path) -> None:
    """One weight is enough."""
    _, teacher, data = parts("classification")
    capture(teacher, data, tmp_path / "cache")
    with torch.no_grad():
        teacher.classifier.bias[0] += 1e-6
    assert "is of another teacher" in refused(lambda: capture(teacher, data, tmp_path / "cache"))


def test_other_settings(tmp_path: Path) -> None:
    """The refusal names the setting."""
    _, teacher, data = parts("causal-lm")
    capture(teacher, data, tmp_path / "cache", top=5)
    said = refused(lambda: capture(teacher, data, tmp_path / "cache", top=6))
    assert "other settings (top 5 there and 6 here)" in said
    said = refused(lambda: capture(teacher, data, tmp_path / "cache", top=5, temperature=1.0))
    assert "temperature 2.0 there and 1.0 here" in said


def test_other_examples(tmp_path: Path) -> None:
    """Also with the same number of rows, and one token that differs in the last of them; and begun caches as well."""
    _, teacher, data = parts("classification")
    capture(teacher, data, tmp_path / "cache")
    rows = data.train.to_list()
    rows[20]["input_ids"][-1] = 1
    other = TrainingData(type(data.train).from_list(rows), data.eval, data.collator, data.layout)
    said = refused(lambda: capture(teacher, other, tmp_path / "cache").apply(other))
    assert "1 of 40 examples of the train split are not in it, the first in row 20" in said
    assert "read in the same way, so the data itself is different" in said
    (tmp_path / "cache" / cache_format.CACHE).unlink()
    assert "holds a cache of other examples" in refused(lambda: capture(teacher, other, tmp_path / "cache"))


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    """A mistyped path must not be filled with shards."""
    _, teacher, data = parts("classification")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    assert "files that are not a cache" in refused(lambda: capture(teacher, data, tmp_path / "thesis"))


def test_what_reads_differently(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Length, tokenizer and data of a recipe: the refusal says which it is."""
    import shutil

    import transformers

    model = tmp_path / "model"
    shutil.copytree(make_model("bert", layers=2, seed=1), model)
    teacher = {
        "name": "cached",
        "path": str(tmp_path / "cache"),
        "teacher": {"name": "pretrained", "model": str(model)},
    }
    path = write_recipe(teacher=teacher, student={"name": "copy_layers", "layers": 1})
    run(path)
    said = refused(lambda: run(path, "data.max_length=6", f"training.output_dir={tmp_path / 'two'}"))
    assert "max_length 64 there and 6 here" in said
    assert "teacher.path" in said
    assert "are not in it" in said
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    vocabulary = dict(tokenizer.get_vocab())
    vocabulary["film"], vocabulary["story"] = vocabulary["story"], vocabulary["film"]
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(model)
    said = refused(lambda: run(path, f"training.output_dir={tmp_path / 'four'}"))
    assert "different: tokenizer)" in said


def test_a_chat_template(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Another template makes other tokens of the same conversations."""
    import json
    import shutil

    import transformers

    template = "{% for m in messages %}{% generation %}SIGN {{ m['content'] }}{% endgeneration %}{% endfor %}"
    model = tmp_path / "model"
    shutil.copytree(make_model("llama-lm", layers=2), model)

    def write(sign: str) -> None:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = template.replace("SIGN", sign)
        tokenizer.save_pretrained(model)

    data = tmp_path / "chats.jsonl"
    chats = [[{"role": "assistant", "content": text}] for text in ("the film is great", "a dull plot")]
    data.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    write("very")
    teacher = {
        "name": "cached",
        "path": str(tmp_path / "cache"),
        "teacher": {"name": "pretrained", "model": str(model)},
    }
    path = write_recipe(
        task="text-generation", data={"path": {"train": str(data), "validation": str(data)}}, teacher=teacher,
        student={"name": "copy_layers", "layers": 1}, objectives=[{"name": "kl"}],
    )  # fmt: skip
    run(path)
    write("awful")
    said = refused(lambda: run(path, f"training.output_dir={tmp_path / 'two'}"))
    assert "does not belong to this data" in said
    assert "different: chat template" in said


# ---- Two runs at once, and other precisions --------------------------------------------------------------------------


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    """One line with its key, as for every other directory that cannot be written."""
    (tmp_path / "file").write_text("")
    _, teacher, data = parts("classification")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError) as caught:
            capture(teacher, data, path)
        assert caught.value.key == "path"


def test_two_runs_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path all runs share one directory. The one that looked first, and claimed second, was refused: the
    other's plan was no cache."""
    real, began = cache_format.check_writable, []

    def check(path: Any, need_bytes: int | None = None) -> None:
        real(path, need_bytes)
        if not began:
            began.append(1)
            cache_format.claim(tmp_path, {"examples": "those", "format": 1}, 0)
            (tmp_path / "_plan.json.12.ab.tmp").write_text("")  # of a third one, under way or killed

    monkeypatch.setattr(cache_format, "check_writable", check)
    cache_format.claim(tmp_path, {"examples": "those", "format": 1}, 0)
    assert cache_format.read_plan(tmp_path) == {"examples": "those", "format": 1}


def test_two_runs_fill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run B looks which shards are missing, run A writes them all and trains. B went on to write its own over them,
    whose last bits differ with its batch size; once B was stopped, the cache was damaged for everyone. A lock keeps
    them apart now, but not on every file system."""
    monkeypatch.setattr("hf_distill.files.lock.LOCKS", False)
    _, teacher, data = parts("classification", dtype=torch.float32)
    first = cache_of(teacher, data, tmp_path / "cache")
    second = cache_of(teacher, data, tmp_path / "cache")
    real, calls = Recorder.__call__, []

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr("os.getpid", os.getppid)  # another process, that lives
                first.fill(arguments(tmp_path / "args", per_device_eval_batch_size=4))
        if len(calls) > 12:  # of the second: far into its own shards
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Recorder, "__call__", record)
    try:
        second.fill(arguments(tmp_path / "args", per_device_eval_batch_size=1))
    except KeyboardInterrupt:
        calls.append(-1)
    monkeypatch.setattr(Recorder, "__call__", real)
    held = cache_format.read_cache(first.path)
    assert held is not None
    cache_format.verify(first.path, held, range(len(held["shards"])))


def test_answers_computed_in_half_precision(tmp_path: Path) -> None:
    """A cache that a run with bf16 made was taken in silence by one without, whose live teacher says something else."""
    _, teacher, data = parts("classification", dtype=torch.float32)
    said: list[str] = []
    for bf16 in (True, True, False):
        cache = cache_of(teacher, data, tmp_path / "cache")
        cache.say = said.append
        cache.fill(arguments(tmp_path / "args", bf16=bf16))
        assert any("computed in bfloat16" in line for line in said) is (not bf16)


@pytest.mark.parametrize("name", ["../{}", "{}x", "", None])
def test_shards_have_the_names_of_shards(name: str | None, tmp_path: Path) -> None:
    """A cache from elsewhere whose list of shards leads out of it read any file of the machine."""
    _, teacher, data = parts("classification")
    cache = capture(teacher, data, tmp_path / "cache")
    held = cache_format.read_cache(cache.path) or {}
    records = held["shards"]
    records[0] = {} if name is None else {**records[0], "file": name.format(records[0]["file"])}
    write_record(cache.path / cache_format.CACHE, held)
    assert "does not list its shards" in refused(lambda: cache_format.read_cache(cache.path))
