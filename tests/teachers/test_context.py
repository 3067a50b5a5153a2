"""A teacher that reads another prompt: the same completion at two places, the loss by hand, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from runs import WriteRecipe, run, same, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distill import DistillationArguments, DistillationTrainer, load_recipe
from hf_distill.completions.sampling import Completion
from hf_distill.errors import UserError
from hf_distill.objectives import KLDivergence, Labels, ReverseKL
from hf_distill.run.dry_run import check
from hf_distill.tasks import Setup
from hf_distill.tasks.text_generation import TextGeneration
from hf_distill.teachers import PretrainedTeacher
from hf_distill.teachers.context import Context
from hf_distill.training.rollouts import with_completion

CHAT = (
    "{% for m in messages %}{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
PROMPTS = ["the film is", "a story was", "this cast is very", "the plot and the scene is"]
SAID = [" wonderful and moving", " dull", " clever , the plot is fresh", " great !"]
STYLE = ["a great story .", "boring .", "funny and clever .", "the film was very , very bad ."]


def rows(kind: str, count: int = 16) -> dict[str, list[Any]]:
    pairs = [(PROMPTS[at % 4], SAID[at // 4 % 4], STYLE[(at + at // 4) % 4]) for at in range(count)]
    if kind == "texts":
        return {
            "prompt": [one[0] for one in pairs],
            "completion": [one[1] for one in pairs],
            "style": [one[2] for one in pairs],
        }
    turns = [
        [{"role": "system", "content": "the film"}] * (at % 3 == 0)
        + [{"role": "user", "content": one[0]}, {"role": "assistant", "content": one[1]}]
        + [{"role": "user", "content": "and"}, {"role": "assistant", "content": " fresh"}] * (at % 2)
        for at, one in enumerate(pairs)
    ]
    return {"messages": turns, "style": [one[2] for one in pairs]}


def prepared(model: Path, kind: str, context: Context | None, **setup: Any) -> Any:
    """Return the data as a run with this teacher prepares it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, CHAT
    every = datasets.Dataset.from_dict(rows(kind))
    beside, split = every.select_columns(["style"]), every.remove_columns(["style"])
    teacher = PretrainedTeacher(model=str(model), context=context)
    pair: Any = SimpleNamespace(teacher=teacher.config(), tokenizer=tokenizer)
    names = ("train", "eval")
    found, _ = teacher.prepare(
        TextGeneration(),
        dict.fromkeys(names, split),
        dict.fromkeys(names, beside),
        Setup(tokenizer=tokenizer, **setup),
        pair,
    )
    return found, tokenizer


def trained(path: Path, data: Any, student: Any, teacher: Any, tokenizer: Any, *terms: Any, **settings: Any) -> Any:
    args = DistillationArguments(
        output_dir=str(path), report_to="none", disable_tqdm=True, per_device_train_batch_size=4, save_strategy="no",
        per_device_eval_batch_size=4, learning_rate=1e-2, **settings,
    )  # fmt: skip
    return DistillationTrainer(
        student, args, teacher=teacher, objectives=terms, layout=data.layout, data_collator=data.collator,
        train_dataset=data.train, eval_dataset=data.eval, processing_class=tokenizer,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["texts", "chats"])
@pytest.mark.parametrize("settings", [{"padding_free": False}, {"padding_free": True}])
def test_the_loss_by_hand(make_model: Any, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    """One place off, or with the context's tokens in the loss, the student learns another text, and nothing tells."""
    model = make_model("llama-lm", layers=2, seed=3)
    context = Context(prompt="the {{ style }} : ")
    data, tokenizer = prepared(model, kind, context)
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    with torch.no_grad():
        for one in student.parameters():
            one.add_(0.1 * torch.randn(one.shape, dtype=one.dtype))
    teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    made = trained(tmp_path, data, student, teacher, tokenizer, KLDivergence(), Labels(weight=0.1), **settings)
    assert made._heads is not None
    found = made.evaluate()
    raw, total, count = rows(kind), 0.0, 0
    student.eval()
    lengths = set()
    for at in range(16):
        if kind == "texts":
            prompt = tokenizer(raw["prompt"][at])["input_ids"]
            ids = tokenizer(raw["prompt"][at] + raw["completion"][at])["input_ids"] + [tokenizer.eos_token_id]
            longer = tokenizer(f"the {raw['style'][at]} : {raw['prompt'][at]}")["input_ids"]
            spans = [(len(prompt), len(ids))]
            shift = len(longer) - len(prompt)
            read = [*longer, *ids[len(prompt) :]]
        else:
            turns = raw["messages"][at]
            own = turns[0]["content"] if turns[0]["role"] == "system" else ""
            rest = turns[1:] if own else turns
            text = f"the {raw['style'][at]} : "
            system = {"role": "system", "content": f"{text}\n\n{own}" if own else text}

            def encode(messages: Any, **options: Any) -> Any:
                whole = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                return tokenizer(whole, add_special_tokens=False)["input_ids"]

            ids, read = encode(turns), encode([system, *rest])
            shift = len(read) - len(ids)
            spans = []
            for place, one in enumerate(turns):
                if one["role"] == "assistant":
                    begin = len(encode(turns[:place], add_generation_prompt=True))
                    spans.append((begin, len(encode(turns[: place + 1]))))
        lengths.add(shift)
        with torch.no_grad():
            p = teacher(input_ids=torch.tensor([read])).logits[0].log_softmax(-1)
            q = student(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for begin, end in spans:
            for place in range(begin, end):
                if ids[place] != read[place + shift]:
                    continue
                here, there = q[place - 1], p[place + shift - 1]
                total += float((there.exp() * (there - here)).sum())
                count += 1
    assert len(lengths) > 2
    counted = sum(int((torch.tensor(row["aligned_at"]) >= 0).sum()) for row in data.eval)
    assert counted == count
    assert found["eval_objective/kl"] == pytest.approx(total / count, rel=1e-9)


@pytest.mark.parametrize("kind", ["texts", "chats"])
def test_an_empty_context_changes_nothing(make_model: Any, tmp_path: Path, kind: str) -> None:
    """Bit for bit: the map from one sequence to the other is then the identity."""
    model = make_model("llama-lm", layers=2, seed=3)
    found = []
    for context in (None, Context(prompt="{{ style[:0] }}")):
        data, tokenizer = prepared(model, kind, context)
        torch.manual_seed(0)
        student = AutoModelForCausalLM.from_pretrained(
            make_model("llama-lm", layers=1, seed=4), attn_implementation="eager"
        )
        teacher = AutoModelForCausalLM.from_pretrained(model).eval()
        made = trained(tmp_path, data, student, teacher, tokenizer, KLDivergence(), Labels(weight=0.1), max_steps=4)
        made.train()
        assert ("teacher_input_ids" in data.train.column_names) == (context is not None)
        found.append(dict(made.model.state_dict()))
    assert same(*found)


def test_own_samples_are_read_after_the_context() -> None:
    """The prompt of the student before the teacher's completion would be no context at all."""
    row = {"input_ids": [5, 6], "labels": [-100, -100], "prompt_length": 2, "aligned_at": [-1, -1]}
    row |= {"teacher_input_ids": [8, 9, 5, 6], "teacher_prompt_length": 4}
    made = with_completion(row, Completion([7, 2], True))
    assert made["input_ids"] == [5, 6, 7, 2]
    assert made["teacher_input_ids"] == [8, 9, 5, 6, 7, 2]
    assert made["aligned_at"] == [-1, -1, 3, 4]  # the last token of the prompt predicts the first of the completion
    assert with_completion(made, Completion([4], False))["teacher_input_ids"] == [8, 9, 5, 6, 4]


def write(write_recipe: WriteRecipe, tmp_path: Path, model: Path, kind: str = "texts", **sections: Any) -> Path:
    every = datasets.Dataset.from_dict(rows(kind, 24))
    for split in ("train", "validation"):
        text = "".join(json.dumps(one) + "\n" for one in every)
        (tmp_path / f"{split}.jsonl").write_text(text)
    columns = {"prompt": "prompt", "completion": "completion"} if kind == "texts" else {"messages": "messages"}
    data = {"path": {one: str(tmp_path / f"{one}.jsonl") for one in ("train", "validation")}, "columns": columns}
    student = {"name": "lora", "model": str(model), "r": 4}
    given = {"student": student, "objectives": ["kl"], **sections}
    return write_recipe(task="text-generation", data={**data, **given.pop("data", {})}, **given)


def test_a_run_without_and_with_a_cache(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Stored for the student's prompt, the targets would be those of a teacher without the context."""
    model = make_model("llama-lm", layers=2, seed=3)
    teacher = {"name": "pretrained", "model": str(model), "context": {"prompt": "{{ style }} "}}
    found = {}
    for name, one in {
        "live": teacher,
        "off": {"name": "adapter_off", "context": teacher["context"]},
        "cached": {
            "name": "cached",
            "teacher": teacher,
            "top": 400,
            "precision": "float32",
            "path": str(tmp_path / "c"),
        },
        "without": {key: value for key, value in teacher.items() if key != "context"},
    }.items():
        training = {"output_dir": str(tmp_path / name), "max_steps": 4, "learning_rate": 1e-2}
        path = write(write_recipe, tmp_path, model, teacher=one, training=training)
        check(load_recipe(path))
        found[name] = run(path), weights(tmp_path / name)
    assert same(found["live"][1], found["off"][1])
    assert found["live"][0].teacher.metrics == found["off"][0].teacher.metrics != found["without"][0].teacher.metrics
    for name, one in found["live"][1].items():
        torch.testing.assert_close(found["cached"][1][name], one, rtol=1e-4, atol=1e-5)
    assert not same(found["live"][1], found["without"][1])
    assert found["cached"][0].agreement == pytest.approx(found["live"][0].agreement)


def test_a_run_on_own_samples(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The form of a distilled prompt: one copy of the weights, which writes without the prompt and reads with it."""
    model = make_model("llama-lm", layers=2, seed=3)
    path = write(
        write_recipe, tmp_path, model,
        teacher={"name": "adapter_off", "context": {"prompt": "{{ style }} the great film : "}},
        objectives=["reverse_kl"],
        completions={"by": "student", "max_new_tokens": 4},
        training={"max_steps": 6, "learning_rate": 1e-2, "logging_steps": 1},
    )  # fmt: skip
    said = check(load_recipe(path))
    assert "adapters off" in said
    found = run(path)
    logs = [one["objective/reverse_kl"] for one in found.history["student"] if "objective/reverse_kl" in one]
    assert len(logs) == 6
    assert logs[0] > 0  # without the context, a student that has learned nothing yet is its teacher


@pytest.mark.parametrize("teacher", ["adapter_off", "pretrained"])
def test_prompts_alone_are_evaluated_after_the_context(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: Any, teacher: str
) -> None:
    """Evaluated without the context, a teacher that is the student itself agrees with it everywhere."""
    model = make_model("llama-lm", layers=2, seed=3)
    context = {"prompt": "{{ style }} the great film : "}
    named = {"model": str(model)} if teacher == "pretrained" else {}
    path = write(
        write_recipe, tmp_path, model,
        teacher={"name": teacher, "context": context, **named},
        objectives=["reverse_kl"],
        data={"columns": {"prompt": "prompt"}},
        completions={"by": "student", "max_new_tokens": 4},
        training={"max_steps": 1, "learning_rate": 1e-9, "eval_strategy": "steps", "eval_steps": 1},
    )  # fmt: skip
    for split in ("train", "validation"):
        data = datasets.Dataset.from_dict(rows("texts", 24)).remove_columns(["completion"])
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in data))
    assert "the student writes them once" in check(load_recipe(path))
    found = run(path)
    assert found.settings["completions"] == {"eval_rows_written_by_the_student": 24}
    values = [
        value
        for one in found.history["student"]
        for name, value in one.items()
        if name.startswith("eval_") and name.endswith("reverse_kl")
    ]
    assert values
    assert min(values) > 1e-4
    assert found.teacher.metrics == {"agreement": 1.0}
    assert found.chance is None  # that of a perplexity is none of agreement


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"teacher": {"context": {"prompt": "{{ styl }}"}}}, "names 'styl', which is not a column"),
        ({"teacher": {"context": {"prompt": "{{ style "}}}, "not a Jinja template"),
        ({"teacher": {"context": {"prompt": "the film " * 40}}}, "would read more than its 64 tokens"),
        ({"data": {"columns": {"text": "prompt"}}}, "comes before a prompt, and these are plain texts"),
        ({"objectives": [{"name": "hidden", "layers": [[1, 1]]}]}, "compares the models token by token"),
        ({"completions": {"by": "teacher", "max_new_tokens": 4}}, "would write without it"),
        ({"task": "fill-mask"}, "Wanted text-generation"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    """A context that is left out in silence is a run that learns nothing, from itself."""
    kind = "bert-mlm" if "task" in sections else "llama-lm"
    model = make_model(kind, layers=2, seed=3)
    teacher = {
        "name": "pretrained",
        "model": str(model),
        "context": {"prompt": "the film "},
        **sections.pop("teacher", {}),
    }
    data = {"columns": {"text": "prompt"}} if "task" in sections else {}
    path = (
        write(write_recipe, tmp_path, model, teacher=teacher, **{"data": data, **sections})
        if "task" not in sections
        else None
    )
    if path is None:
        path = write_recipe(
            task="fill-mask",
            teacher=teacher,
            data={"path": str(tmp_path / "none.jsonl"), "columns": {"text": "prompt"}},
        )
        (tmp_path / "none.jsonl").write_text('{"prompt": "the film"}\n{"prompt": "a film"}\n')
    for how in (lambda one: check(load_recipe(one)), run):
        with pytest.raises(UserError) as caught:
            how(path)
        assert any(words in line for line in caught.value.mistakes)


def test_a_wrong_column_is_told_at_the_template(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Told at data.prompt, and with a column that is not the user's, it is looked for in vain."""
    model = make_model("llama-lm", layers=2, seed=3)
    teacher = {"name": "pretrained", "model": str(model), "context": {"prompt": "{{ styel }}"}}
    with pytest.raises(UserError) as caught:
        check(load_recipe(write(write_recipe, tmp_path, model, teacher=teacher)))
    said = str(caught.value)
    assert "teacher.context.prompt" in said
    assert "'styel'" in said
    assert "Did you mean 'style'?" in said
    assert "example_origin" not in said


def test_in_python_it_is_refused(make_model: Any, tmp_path: Path) -> None:
    """The trainer has no columns to make a prompt of, and would train without it."""
    model = make_model("llama-lm", layers=2, seed=3)
    student = AutoModelForCausalLM.from_pretrained(model)
    teacher = PretrainedTeacher(model=str(model), context=Context(prompt="the"))
    with pytest.raises(UserError, match="teacher_input_ids and aligned_at"):
        DistillationTrainer(
            student, DistillationArguments(output_dir=str(tmp_path)), teacher=teacher, objectives=[ReverseKL()]
        )
