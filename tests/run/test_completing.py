"""Completions that are written before the training: by the teacher, learned as they are, in runs and as data sets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_server import FakeServer
from fake_vllm import FakeVLLM
from runs import run, same, weights
from scoring_server import NAME, Scorer

from hf_distill.cli import main
from hf_distill.errors import UserError

TEXTS = ["the plot is", "a great", "is it", "the cast was very", "dull and", "this film with the"]
SMALL = {"max_new_tokens": 5}


@pytest.fixture
def pair(make_model: Any) -> tuple[str, str]:
    """Paths of a teacher and a student with one tokenizer."""
    return str(make_model("llama-lm", seed=1)), str(make_model("llama-lm", layers=1, seed=2))


@pytest.fixture(autouse=True)
def stored(tmp_path: Path, monkeypatch: Any) -> None:
    """Store completions of each test apart: equal ones would be found."""
    monkeypatch.setattr("hf_distill.completions.store.default_root", lambda: tmp_path / "stored")


def recipe(tmp_path: Path, pair: tuple[str, str], rows: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    data = tmp_path / "prompts.jsonl"
    rows = rows or [{"prompt": text} for text in TEXTS]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    sections = {
        "task": "text-generation",
        "data": {"path": {"train": str(data), "eval": str(data)}, "max_length": 24},
        "teacher": {"name": "pretrained", "model": pair[0]},
        "student": {"name": "pretrained", "model": pair[1]},
        "completions": {"by": "teacher", **SMALL},
        "objectives": [{"name": "labels"}],
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "report_to": "none",
        },
        "report": {"latency": False},
    }
    path.write_text(yaml.safe_dump({**sections, **more}))
    return path


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_student_learns_what_the_teacher_wrote(tmp_path: Path, pair: Any, capsys: Any) -> None:
    """Sequence-level distillation is cross-entropy on the teacher's texts. Learned must be these tokens alone, each as
    often as any other; and the report must be about them."""
    import torch
    from transformers import AutoModelForCausalLM

    path = recipe(tmp_path, pair, completions={"by": "teacher", **SMALL, "per_prompt": 2})
    report = run(path)
    facts = report.settings["completions"]
    assert facts["train"]["written"] == 2 * len(TEXTS)
    assert facts["train"]["kept"] + sum(facts["train"].get("dropped", {}).values()) == 2 * len(TEXTS)
    assert facts["eval_rows_written_by_the_teacher"] == len(TEXTS)
    assert report.settings["train_rows"] == facts["train"]["kept"]
    # The eval rows are the first completion of each prompt; their perplexity by hand, from the data set of the command.
    assert main(["generate", str(path), "--into", str(tmp_path / "written")]) == 0
    rows = lines(tmp_path / "written" / "validation.jsonl")
    model = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float64)
    losses: list[float] = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        logs = model(ids).logits[0].log_softmax(-1)
        start = len(row["prompt_ids"])
        losses += [-float(logs[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])]
    assert report.teacher.metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert "the teacher writes 2 completions each of 6 prompts of 2 to 4 tokens" in capsys.readouterr().out


def test_written_once_for_reruns_seeds_and_the_data_set(tmp_path: Path, pair: Any, monkeypatch: Any) -> None:
    """A large teacher's hours are paid once. And what is learned from the data set must be what is learned at once:
    other tokens, or ends that were not written, would be another student."""
    from hf_distill.completions.backends.transformers import GeneratingWriter

    asked: list[int] = []
    real = GeneratingWriter.write
    monkeypatch.setattr(
        GeneratingWriter, "write", lambda self, prompts, *args: asked.append(len(prompts)) or real(self, prompts, *args)
    )
    path = recipe(tmp_path, pair)
    run(path, "report.seeds=2")
    assert asked == [len(TEXTS)]  # train and eval rows are the same prompts
    at_once = weights(tmp_path / "out")
    into = tmp_path / "data"
    assert main(["generate", str(path), "--into", str(into), "--check", "completions.max_new_tokens=4"]) == 0
    assert not into.exists()
    assert main(["generate", str(path), "--into", str(into)]) == 0
    assert main(["generate", str(path), "--into", str(into)]) == 0
    assert asked == [len(TEXTS)]
    rows = lines(into / "train.jsonl")
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert {row["written_by"] for row in rows} == {"teacher"}
    run(path, f"data.path={into}", "completions.by=data", f"training.output_dir={tmp_path / 'again'}")
    assert same(at_once, weights(tmp_path / "again"))
    # Other completions are not mixed with these, and nothing else is overwritten.
    assert main(["generate", str(path), "completions.temperature=0", "--into", str(into)]) == 2
    assert lines(into / "train.jsonl") == rows
    (into / "train.jsonl").unlink()  # then train and eval rows would be those of two models
    (into / "validation.jsonl").write_bytes(b"\xff")
    assert main(["generate", str(path), "--into", str(into)]) == 2
    assert [file.name for file in into.iterdir()] == ["validation.jsonl"]
    assert main(["generate", str(path), "--into", str(tmp_path)]) == 2


def test_a_cached_teacher_over_what_the_student_wrote(tmp_path: Path, pair: Any, capsys: Any) -> None:
    """Two commands: the student writes, the teacher's targets are stored. What the student wrote itself must never be a
    label, and the teacher must read the very tokens that were drawn."""
    into = tmp_path / "rollouts"
    path = recipe(tmp_path, pair, objectives=[{"name": "reverse_kl"}], completions={"by": "student", **SMALL})
    assert main(["generate", str(path), "--into", str(into)]) == 0
    rows = lines(into / "train.jsonl")
    assert [row["written_by"] for row in rows] == ["student"] * len(TEXTS)
    assert [row["written_by"] for row in lines(into / "validation.jsonl")] == ["teacher"] * len(TEXTS)
    second = (
        "completions.by=data",
        f"data.path={into}",
        f'teacher={{"name": "cached", "teacher": {{"name": "pretrained", "model": "{pair[0]}"}}, "top": 3}}',
    )
    assert main(["cache", str(path), *second]) == 0
    assert f"{2 * len(TEXTS)} examples" in capsys.readouterr().out
    report = run(path, *second)
    assert report.settings["train_rows_with_label"] == 0
    with pytest.raises(UserError, match="label"):
        run(path, *second, "objectives.0.name=labels")


@pytest.mark.parametrize("completions", [{"by": "student"}, {"by": "student", "share": 0.5}, {"by": "mixture"}])
def test_stored_targets_of_texts_that_are_not_written_yet(
    tmp_path: Path, pair: Any, capsys: Any, completions: dict[str, Any]
) -> None:
    """A cache holds targets of given texts. Found out in the first step, the cache has been paid for and is of no use;
    the way out that the message names has to take the same recipe."""
    cached = {"name": "cached", "teacher": {"name": "pretrained", "model": pair[0]}, "top": 3}
    rows = [{"prompt": text, "completion": " a film"} for text in TEXTS]
    path = recipe(
        tmp_path, pair, rows, teacher=cached, objectives=[{"name": "kl"}], completions={**SMALL, **completions}
    )
    assert main([str(path), "--check"]) == 2
    assert "completions.by: new texts are written" in capsys.readouterr().err
    assert main(["cache", str(path)]) == 2
    assert "completions.by: new texts are written" in capsys.readouterr().err
    with pytest.raises(UserError, match="new texts are written"):
        run(path)
    assert not (tmp_path / "out").exists()
    if completions == {"by": "student"}:
        assert main(["generate", str(path), "--check", "--by", "student", "--into", str(tmp_path / "rollouts")]) == 0


@pytest.fixture
def chatting(tmp_path: Path, make_model: Any) -> Any:
    """Return a function that makes a teacher and a student with one chat template; their folders may be written to."""
    import shutil

    from chats import tokenizer_of

    def make(template: str) -> tuple[str, str]:
        tokenizer = tokenizer_of(template)
        models = []
        for layers in (2, 1):
            size = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
            made = make_model("llama-lm", layers=layers, seed=layers, **size)
            models.append(str(tmp_path / f"model{layers}"))
            shutil.copytree(made, models[-1])
            tokenizer.save_pretrained(models[-1])
        return models[0], models[1]

    return make


def anew(tmp_path: Path) -> dict[str, Any]:
    """Return a section `data` without a limit of its own."""
    return {"path": {"train": str(tmp_path / "prompts.jsonl"), "eval": str(tmp_path / "prompts.jsonl")}}


def test_conversations_are_written_as_conversations(tmp_path: Path, chatting: Any) -> None:
    """Another student reads the same data set with a chat template of its own; this one must read the same tokens."""
    from chats import CHATML, says, user

    talk = [user("is it dull"), says("it is"), user("very")]
    rows = [{"messages": talk}, {"messages": [user("a film")]}, {"messages": [*talk, says("very dull")]}]
    path = recipe(tmp_path, chatting(CHATML), rows, data=anew(tmp_path))
    into = tmp_path / "data"
    assert main(["generate", str(path), "--into", str(into)]) == 0
    written, evaluated = lines(into / "train.jsonl"), lines(into / "validation.jsonl")
    assert [row["messages"][:-1] for row in written] == [talk, [user("a film")], talk]
    assert all(row["messages"][-1] == says(row["completion"]) for row in written)
    assert sorted(row["finish_reason"] == "data" for row in evaluated) == [False, False, True]
    report = run(path, f"data.path={into}", "completions.by=data")
    assert report.settings["train_rows"] == len(written)


@pytest.mark.parametrize(
    ("completions", "key", "says"),
    [
        ({"by": "teacher", "share": 0.5}, "completions.share", "no effect"),
        ({"by": "student", "num_beams": 2}, "completions.num_beams", "no effect"),
        ({"by": "teacher", "per_prompt": 2, "temperature": 0}, "completions.per_prompt", "nothing is drawn"),
        ({"by": "teacher", "max_new_tokens": 24}, "completions.max_new_tokens", "no room for a prompt"),
    ],
)
def test_settings_without_an_effect_are_refused(
    completions: dict[str, Any], key: str, says: str, tmp_path: Path, pair: Any, capsys: Any
) -> None:
    """A setting that does nothing lets its author believe that it did; `--check` and the run say the same line."""
    path = recipe(tmp_path, pair, completions={**SMALL, **completions})
    assert main([str(path), "--check"]) == 2
    line = capsys.readouterr().err.strip()
    assert f" {key}:" in line or f"{key}: " in line
    assert says in line
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == line


@pytest.mark.parametrize(
    ("its", "own", "by", "says"),
    [
        ([2], [9], "student", "run on to max_new_tokens"),
        ([2, 9], 9, "teacher", "does not stop there"),
        ([2, 9], 9, "data", "does not stop there"),
        (2, [2, 9], "student", None),
        ([2, 9], [9, 2], "student", None),
    ],
)
def test_ends_at_which_the_student_does_not_stop_are_told(
    its: Any, own: Any, by: str, says: str | None, tmp_path: Path, pair: Any, capsys: Any
) -> None:
    """A base student (151643) of an instruction-tuned teacher (151645) learns an end that does not stop it: its texts
    grow to the limit, and nothing says why."""
    import shutil

    models = []
    for side, ends, source in (("teacher", its, pair[0]), ("student", own, pair[1])):
        shutil.copytree(source, tmp_path / side)
        file = tmp_path / side / "generation_config.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, "eos_token_id": ends}))
        models.append(str(tmp_path / side))
    rows = [{"prompt": text, "completion": " a film"} for text in TEXTS]
    path = recipe(tmp_path, (models[0], models[1]), rows, completions={"by": by, **SMALL}, objectives=[{"name": "kl"}])
    assert main([str(path), "--check"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "stops only at" in line]
    assert [says in line for line in notes] == [True] * (says is not None)
    assert all("(2)" in line and "(9)" in line and "generation_config.json to [2, 9]" in line for line in notes)


def test_a_student_without_any_end_is_told() -> None:
    """All that it writes is cut at the limit, and without this line only the logs of the training would show it."""
    from types import SimpleNamespace

    from transformers import LlamaConfig

    from hf_distill.completions.section import Completions
    from hf_distill.run.text_ends import ends_in_words

    student, task = SimpleNamespace(source="/none"), SimpleNamespace(writes=True)
    teacher = SimpleNamespace(members=lambda: [("", SimpleNamespace(source=None))])
    own: Any = SimpleNamespace(completions=Completions(by="student"), student=student, teacher=teacher, task=task)
    for known in (None, 2):
        tokenizer = SimpleNamespace(eos_token_id=known)
        pair: Any = SimpleNamespace(tokenizer=tokenizer, student=LlamaConfig(eos_token_id=None), own_tokens=False)
        assert ["cannot end a text" in line for line in ends_in_words(own, pair)] == [True] * (known is None)


def test_different_chat_templates_are_told(tmp_path: Path, chatting: Any, capsys: Any) -> None:
    """The teacher scores prompts in a form that it may never have seen, or thinks where the student does not."""
    from chats import CHATML, THINKING, tokenizer_of, user

    rows = [{"messages": [user("a film")]}]
    models = chatting(CHATML)
    path = recipe(tmp_path, models, rows, data=anew(tmp_path), objectives=[{"name": "kl"}])
    assert main([str(path), "--check"]) == 0
    assert "chat templates" not in capsys.readouterr().out
    tokenizer_of(THINKING).save_pretrained(models[0])
    assert main([str(path), "--check"]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "chat templates" in line]
    assert "that of the teacher has the switch enable_thinking" in note
    assert main([str(path), "--check", f"tokenizer={models[0]}"]) == 0
    assert "chat templates" not in capsys.readouterr().out


def test_a_baseline_learns_the_completions_of_the_data(tmp_path: Path, pair: Any) -> None:
    """On the teacher's texts it would be the student itself, and the teacher would seem to help with nothing."""
    rows = [{"prompt": text, "completion": " a film"} for text in TEXTS]
    path = recipe(tmp_path, pair, rows, report={"latency": False, "baseline": True})
    report = run(path)
    assert "eval_rows_written_by_the_teacher" not in report.settings["completions"]
    assert "of the data" in report.settings["completions"]["baseline"]
    by_data = run(path, "completions.by=data", f"training.output_dir={tmp_path / 'data'}")
    assert report.baseline.metrics == by_data.student.metrics
    assert report.student.metrics != by_data.student.metrics
    with pytest.raises(UserError, match="baseline learns from labels"):
        run(
            recipe(tmp_path, pair, report={"latency": False, "baseline": True}),
            f"training.output_dir={tmp_path / 'none'}",
        )


def test_who_writes_where_the_teacher_cannot(tmp_path: Path, pair: Any, capsys: Any) -> None:
    """Two models, or the student's own average, write nothing before the training. Evaluated on texts of the student as
    labels, a report would praise it for repeating itself."""
    two = {"name": "ensemble", "teachers": [{"name": "pretrained", "model": one} for one in (pair[0], pair[0])]}
    path = recipe(tmp_path, pair, teacher=two)
    assert main([str(path), "--check"]) == 2
    assert "not one language model" in capsys.readouterr().err
    with pytest.raises(UserError, match="not one language model"):
        run(path)
    rows = [{"prompt": text, **({"completion": " a film"} if place == 2 else {})} for place, text in enumerate(TEXTS)]
    student = {"completions": {"by": "student", **SMALL}, "objectives": [{"name": "reverse_kl"}]}
    report = run(recipe(tmp_path, pair, teacher=two, **student))
    assert report.settings["completions"] == {"eval_rows_written_by_the_student": len(TEXTS)}
    assert (report.metric, report.teacher.metrics) == ("agreement", {"agreement": 1.0})
    assert "they are no labels" in capsys.readouterr().out
    report = run(recipe(tmp_path, pair, rows, teacher=two, **student), "training.output_dir=" + str(tmp_path / "some"))
    assert report.settings["eval_rows_with_label"] == 1
    assert "perplexity" in report.student.metrics


def writing_server(teacher: str) -> tuple[Scorer, FakeServer]:
    """Return what scores, and a server of vLLM that scores and writes, not running yet."""
    from transformers import AutoModelForCausalLM

    scorer = Scorer(Path(teacher))
    writer = FakeVLLM(AutoModelForCausalLM.from_pretrained(teacher))

    def answer(path: str, body: Any) -> Any:
        if path != "/v1/completions" or "prompt_logprobs" in body:
            return scorer(path, body)
        return {**writer.answer(path, {**body, "model": "tiny"}), "model": body["model"]}

    return scorer, FakeServer(answer)


def test_a_teacher_behind_a_server_writes(tmp_path: Path, pair: Any, capsys: Any) -> None:
    """What a server writes is learned as if the model were here: the same tokens, ends and weights; and paid once."""
    greedy = {"by": "teacher", **SMALL, "temperature": 0.0}
    local, theirs = tmp_path / "local", tmp_path / "served"
    run(recipe(tmp_path, pair, completions=greedy), f"training.output_dir={local}")
    scorer, fake = writing_server(pair[0])
    with fake.running() as server:
        entry = {"name": "served", "url": server.url, "model": NAME, "path": str(tmp_path / "answers"), "top": 5}
        path = recipe(tmp_path, pair, completions=greedy, teacher=entry)
        assert main([str(path), "--check"]) == 0
        assert "requests for" in capsys.readouterr().out
        assert not server.requests
        report = run(path, f"training.output_dir={theirs}")
        assert same(weights(theirs), weights(local))
        assert report.settings["completions"]["eval_rows_written_by_the_teacher"] == len(TEXTS)
        assert "perplexity" in report.teacher.metrics
        asked = server.posted("/v1/completions")
        wrote = [body for body in asked if "prompt_logprobs" not in body]
        # The train rows, and the eval rows, which are the same prompts.
        assert len(wrote) == len(TEXTS)
        # A probe, and the eval texts: labels alone compare nothing with the teacher.
        assert len(asked) - len(wrote) == 1 + len(TEXTS)
        run(path, "teacher.top=4", f"training.output_dir={tmp_path / 'again'}")
        assert len([body for body in server.posted("/v1/completions") if "prompt_logprobs" not in body]) == len(TEXTS)
        scorer.longest = 8
        with pytest.raises(UserError, match="--max-model-len"):
            run(path, "completions.temperature=1.0", f"training.output_dir={tmp_path / 'long'}")
    for at, one in (("teacher", entry), ("teacher.teacher", {"name": "cached", "teacher": entry})):
        path = recipe(tmp_path, pair, completions=greedy, teacher=one)
        for change, said in (
            (f"{at}.api=sglang", "a server of vLLM"),
            ("completions.backend=continuous_batching", "on its own server"),
            ("completions.num_beams=2", "on its own server"),
        ):
            assert main([str(path), "--check", change]) == 2
            assert said in capsys.readouterr().err


def test_a_row_keeps_its_place_and_its_weight(make_model: Any) -> None:
    """Completions of another row's prompt are learned without an error. One that ended at once is a single label."""
    from datasets import Dataset, Features, Value

    from hf_distill.completions.sampling import Completion
    from hf_distill.data.example_columns import WEIGHT
    from hf_distill.run.completing import _filled, with_completions
    from hf_distill.tasks.language import token_features

    rows: dict[str, Any] = {"input_ids": [[5], [6, 7, 2], [8, 9]], "labels": [[-100], [-100, -100, 2], [-100, -100]]}
    rows |= {"length": [1, 3, 2], "prompt_length": [1, 2, 2], WEIGHT: [1.0, 2.0, 3.0]}
    features = Features({**token_features(numbers=["prompt_length"]), WEIGHT: Value("float64")})
    split = Dataset.from_dict(rows, features=features)
    end, cut = Completion((2,), ended=True), Completion((4, 4), ended=False)
    made = with_completions(split, [[end, cut], [], [cut]])
    assert made["input_ids"][:] == [[5, 2], [5, 4, 4], [8, 9, 4, 4]]
    assert made["labels"][:] == [[-100, 2], [-100, 4, 4], [-100, -100, 4, 4]]
    assert (made["length"][:], made["prompt_length"][:], made[WEIGHT][:]) == ([2, 3, 4], [1, 1, 2], [1.0, 1.0, 3.0])
    filled = _filled(split, [0, 2], [[end], [cut]], labels=False)
    assert filled["input_ids"][:] == [[5, 2], [6, 7, 2], [8, 9, 4, 4]]
    assert filled["labels"][:] == [[-100, -1], [-100, -100, 2], [-100, -100, -1, -1]]
    assert filled[WEIGHT][:] == [1.0, 2.0, 3.0]


def test_a_cached_teacher_stores_targets_of_what_it_wrote(tmp_path: Path, pair: Any) -> None:
    """Both in one pass: divergences on the teacher's own texts; resumed and repeated, nothing is computed again."""
    cached = {"name": "cached", "teacher": {"name": "pretrained", "model": pair[0]}, "top": 3}
    path = recipe(tmp_path, pair, teacher=cached, objectives=[{"name": "kl", "weight": 0.5}, {"name": "labels"}])
    report = run(path)
    assert report.settings["train_rows_with_label"] == len(TEXTS)
    live = run(
        path, f'teacher={{"name": "pretrained", "model": "{pair[0]}"}}', f"training.output_dir={tmp_path / 'live'}"
    )
    assert report.teacher.metrics["perplexity"] == pytest.approx(live.teacher.metrics["perplexity"], rel=1e-5)
