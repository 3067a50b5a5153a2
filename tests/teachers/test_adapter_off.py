"""The student's base as its teacher: the numbers of a base beside it, a student that stays as it is, and whole runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from invariants.cases import Collator, NotingTrainer, arguments, make_model, make_rows, objectives, split, train
from prepared import refused
from runs import WriteRecipe, run, same
from safetensors.torch import load_file

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.adapters_off import WithoutAdapters
from hf_distill.models.lora import Lora
from hf_distill.objectives import Hidden, InputGradient, KLDivergence
from hf_distill.run.dry_run import check
from hf_distill.teachers import AdapterOffTeacher, CachedTeacher

LAYERS = {"causal-lm-gpt2": ["c_attn", "c_fc"], "causal-lm": ["q_proj", "down_proj"]}


def adapted(kind: str, **settings: Any) -> Any:
    """Return a model whose adapters change it from the start; with `head`, one of them is in its head."""
    layers = [*LAYERS.get(kind, ["query", "v", "v_proj"]), *(["lm_head"] if settings.pop("head", False) else [])]
    whole = settings.pop("whole", None)
    base = make_model(kind, 2, seed=2, dropout=0.1, dtype=torch.float32)
    if whole or "lm_head" in layers:
        import peft

        model: Any = peft.get_peft_model(
            base, peft.LoraConfig(r=2, target_modules=layers, modules_to_save=whole, lora_dropout=0.1)
        )
    else:
        model = Lora(r=2, dropout=0.1, target_modules=layers, **settings).wrap(base)
    torch.manual_seed(6)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad and name.endswith("weight"):
                one.add_(0.3 * torch.randn(one.shape))
    return model


def trainer(path: Path, kind: str, student: Any, teacher: Any, **settings: Any) -> NotingTrainer:
    terms = settings.pop("terms", None) or objectives(kind)
    return NotingTrainer(
        student,
        arguments(path, **{"max_steps": 3, "optim": "adamw_torch", **settings}),
        teacher=teacher,
        objectives=terms,
        train_dataset=datasets.Dataset.from_list(make_rows(kind)),
        eval_dataset=datasets.Dataset.from_list(make_rows(kind, 13)),
        data_collator=Collator(),
    )


def state_of(model: Any) -> Any:
    """Return all that a forward pass of the teacher could leave changed."""
    return (
        {name: one.training for name, one in model.named_modules()},
        {name: one.requires_grad for name, one in model.named_parameters()},
        {name: vars(one).get("_disable_adapters") for name, one in model.named_modules()},
        {name: getattr(one, "active_adapters", None) for name, one in model.named_modules()},
        {name: getattr(one, "merged_adapters", None) for name, one in model.named_modules()},
        {name: one.clone() for name, one in model.state_dict().items()},
    )


@pytest.mark.parametrize(
    ("kind", "settings", "training"),
    [
        ("causal-lm", {}, split(4)),
        ("causal-lm", {}, {**split(4), "gradient_checkpointing": True, "padding_free": True}),
        ("causal-lm", {"use_dora": True}, {**split(8), "padding_free": False}),
        ("causal-lm", {"head": True}, split(8)),
        ("causal-lm", {"whole": ["lm_head"]}, split(8)),
        ("causal-lm-gpt2", {}, split(2)),
        ("classification", {}, split(4)),
        ("token-classification", {"use_rslora": True}, split(8)),
        ("sequence-to-sequence-t5", {}, split(8)),
    ],
)
def test_it_is_a_base_beside_the_student(
    kind: str, settings: dict[str, Any], training: dict[str, Any], tmp_path: Path
) -> None:
    """A teacher with a trace of adapters, of the trained head or of dropout is another teacher, and nothing tells."""
    base = make_model(kind, 2, seed=2, dropout=0.1, dtype=torch.float32)
    student = adapted(kind, **settings)
    made = trainer(tmp_path / "one", kind, copy.deepcopy(student), AdapterOffTeacher(), **training)
    beside = trainer(tmp_path / "two", kind, copy.deepcopy(student), base, **training)
    chunked = kind.startswith(("causal", "sequence")) and not settings.get("head") and not settings.get("whole")
    assert (made._heads is not None) == (beside._heads is not None) == chunked
    inputs = made._prepare_inputs(Collator()(make_rows(kind, 5)))
    given = {name: value for name, value in inputs.items() if name in made.source.takes}  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(made.teacher(**given)["logits"], base.eval()(**given)["logits"])
        assert not torch.equal(made.model.eval()(**given)["logits"], base(**given)["logits"])
    torch.manual_seed(7)
    found = train(made)
    torch.manual_seed(7)
    wanted = train(beside)
    assert found.losses == wanted.losses
    assert len(found.losses) == 3
    for mine, theirs in zip(found.gradients, wanted.gradients, strict=True):
        assert same(mine, theirs)
    assert same(found.weights, wanted.weights)
    now, then = made.evaluate(), beside.evaluate()
    assert {name: now[name] for name in now if "/" in name} == {name: then[name] for name in then if "/" in name}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_student_is_as_before_whatever_happens(error: type[BaseException]) -> None:
    """A student left without adapters, or with frozen ones, goes on training nothing."""
    student = adapted("classification").train()
    student.add_adapter("second", student.peft_config["default"])
    for one in student.base_model.model.bert.encoder.layer[0].attention.self.query.lora_A.parameters():
        one.requires_grad_(False)  # by the user
    student.bert.encoder.layer[1].eval()
    student.gradient_checkpointing_enable()
    before = state_of(student)
    teacher = WithoutAdapters(student)
    ids = torch.tensor([[2, 3, 4]])
    base = make_model("classification", 2, seed=2, dropout=0.1, dtype=torch.float32).eval()
    assert torch.equal(teacher(input_ids=ids)["logits"], base(input_ids=ids)["logits"])

    def fail(*_: Any) -> None:
        raise error

    hook = student.bert.encoder.layer[1].register_forward_hook(fail)
    with pytest.raises(error):
        teacher(input_ids=ids)
    hook.remove()
    for mine, theirs in zip(state_of(student)[:-1], before[:-1], strict=True):
        assert mine == theirs
    assert same(state_of(student)[-1], before[-1])
    names = dict(teacher.named_parameters())
    assert sum(one.numel() for one in names.values()) == base.num_parameters()


def test_what_has_no_base_is_refused(tmp_path: Path) -> None:
    """Without adapters the teacher is the student, whose loss is 0; merged, it is the student of a moment ago."""
    import peft

    with pytest.raises(UserError, match="has no layers with adapters"):
        trainer(tmp_path, "causal-lm", make_model("causal-lm", 2, seed=2), AdapterOffTeacher())
    prompts = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="no layers with adapters"):
        WithoutAdapters(peft.get_peft_model(make_model("causal-lm", 2, seed=2), prompts))
    student = adapted("causal-lm")
    student.merge_adapter()
    with pytest.raises(UserError, match="merged into its weights"):
        WithoutAdapters(student)(input_ids=torch.tensor([[2, 3]]))
    with pytest.raises(ValueError, match="its targets can be stored, but without the student"):
        CachedTeacher(teacher=AdapterOffTeacher())
    with pytest.raises(UserError, match="not `model_init`"):
        NotingTrainer(args=arguments(tmp_path), model_init=lambda: adapted("causal-lm"), teacher=AdapterOffTeacher())
    with pytest.raises(UserError, match="looks into the teacher"):
        trainer(tmp_path, "causal-lm", adapted("causal-lm"), AdapterOffTeacher(), terms=[InputGradient()])


def test_hidden_states_can_be_compared(tmp_path: Path) -> None:
    """They are outputs of the forward pass without adapters, not of the other one."""
    terms = [Hidden(layers=((2, 2),)), KLDivergence()]
    found = train(trainer(tmp_path, "causal-lm", adapted("causal-lm"), AdapterOffTeacher(), terms=terms))
    base = make_model("causal-lm", 2, seed=2, dropout=0.1, dtype=torch.float32)
    wanted = train(trainer(tmp_path, "causal-lm", adapted("causal-lm"), base, terms=terms))
    assert found.losses == wanted.losses
    assert found.losses[0] > 0


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
@pytest.mark.parametrize("merge", [True, False])
def test_a_run(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, task: str, merge: bool) -> None:
    """In the report the teacher could be the trained student, and a stage after the first learn from another base."""
    model = str(make_model("bert" if task == "text-classification" else "llama-lm", layers=2, seed=3))
    stages = [
        {"objectives": [{"name": "kl", "weight": 0.5}, "labels"]},
        {"objectives": ["kl", {"name": "labels", "weight": 0.2}]},
    ]
    student = {"name": "lora", "model": model, "r": 4, "dropout": 0.1, "merge": merge}
    common = {
        "task": task,
        "student": student,
        "objectives": None,
        "stages": stages,
        "report": {"seeds": 2, "baseline": True},
    }

    def at(name: str, teacher: dict[str, Any]) -> Path:
        return write_recipe(teacher=teacher, training={"output_dir": str(tmp_path / name), "max_steps": 4}, **common)

    path = at("off", {"name": "adapter_off"})
    said = check(load_recipe(path))
    assert "the student with its adapters off: no copy of its own" in said
    found = run(path)
    again = run(path)  # found finished, evaluated anew
    wanted = run(at("beside", {"name": "pretrained", "model": model}))
    files = [
        tmp_path / name / ("model.safetensors" if merge else "adapter_model.safetensors") for name in ("off", "beside")
    ]
    assert same(load_file(files[0]), load_file(files[1]))
    assert found.teacher.metrics == wanted.teacher.metrics == again.teacher.metrics
    assert found.agreement == wanted.agreement == again.agreement
    assert found.student.metrics == wanted.student.metrics == again.student.metrics  # of the last stage
    assert found.teacher.parameters == wanted.teacher.parameters
    assert "before its adapters were trained" in found.settings["teacher_column"]


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"name": "pretrained"}, "the student with its adapters off, and pretrained has none"),
        ({"name": "copy_layers", "layers": 2}, "and copy_layers has none"),
        ({"name": "lora", "model": None}, "made in this run and saved nowhere"),
        ({"name": "lora", "bare": True}, "it has no trained head for the task"),
    ],
)
def test_a_student_without_a_base_is_one_line(
    write_recipe: WriteRecipe, make_model: Any, student: dict[str, Any], words: str
) -> None:
    """The run would learn from itself, or from a head that nobody has trained."""
    kind = "bert-bare" if student.pop("bare", False) else "bert"
    student = {"model": str(make_model(kind, layers=2)), **student}
    path = write_recipe(teacher={"name": "adapter_off"}, student={k: v for k, v in student.items() if v})
    for how in (run, lambda one: check(load_recipe(one))):
        assert words in refused(how, path)[1]
