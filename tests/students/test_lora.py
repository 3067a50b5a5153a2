"""Students of which only adapters are trained: what is trained, stored, merged or pushed, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import refused
from runs import WriteRecipe, run, same, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_distill import DistillationTrainer, load_recipe
from hf_distill.models.loading import Head, load_model
from hf_distill.models.lora import Lora
from hf_distill.run.dry_run import check

ADAPTERS = "adapter_model.safetensors"
IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "report.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["bert-bare", "distilbert-bare", "gpt2", "llama-lm", "t5"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_what_is_said_to_be_trained_is_trained(make_model: Any, kind: str, use_dora: bool) -> None:
    """`--check` and report count without weights; another count would promise other memory and other files."""
    language = {"llama-lm": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}
    head = Head(language.get(kind, "AutoModelForSequenceClassification"), {} if kind in language else {"num_labels": 3})
    model, _ = load_model(str(make_model(kind, layers=2)), head)
    lora = Lora(r=3, use_dora=use_dora)
    counted = lora.trained(model)
    wrapped = lora.wrap(model)
    assert counted == sum(one.numel() for one in wrapped.parameters() if one.requires_grad)
    assert f"{counted:,} of" in lora.trained_in_words(wrapped)


@pytest.mark.parametrize(
    "student",
    [
        {"name": "lora", "r": 4},
        {"name": "lora", "r": 4, "use_dora": True, "target_modules": ["query", "dense"]},
        {"name": "lora", "r": 4, "student": {"name": "copy_layers", "layers": 2}},
        {"name": "lora", "r": 4, "student": {"name": "from_config", "overrides": {"num_hidden_layers": 1}}},
    ],
)
def test_checkpoints_hold_adapters_and_the_student_is_plain(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: dict[str, Any]
) -> None:
    """A checkpoint could hold the base, the merge lose the adapters, or the baseline train all weights."""
    from transformers import AutoModelForSequenceClassification

    from hf_distill.models import lora
    from hf_distill.trainer import DistillationTrainer

    checkpoints: list[dict[str, Any]] = []
    sizes: list[int] = []
    outputs: list[tuple[Any, Any]] = []
    save, create, merge = DistillationTrainer._save_checkpoint, DistillationTrainer.create_optimizer, lora.merged

    def saved(self: Any, *given: Any) -> None:
        save(self, *given)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (only,) = folder.glob("[!_]*.safetensors")  # beside the state of the training itself
        checkpoints.append({"name": only.name, "bytes": only.stat().st_size, "tensors": load_file(only)})

    def created(self: Any, *given: Any) -> Any:
        made = create(self, *given)
        sizes.append(sum(one.numel() for group in self.optimizer.param_groups for one in group["params"]))
        return made

    def merging(model: Any) -> Any:
        with torch.no_grad():
            before = model(input_ids=IDS)["logits"]
            plain = merge(model)
            outputs.append((before, plain(input_ids=IDS)["logits"]))
        return plain

    monkeypatch.setattr(DistillationTrainer, "_save_checkpoint", saved)
    monkeypatch.setattr(DistillationTrainer, "create_optimizer", created)
    monkeypatch.setattr(lora, "merged", merging)
    report = {"baseline": True, "latency": False}
    path = write_recipe(student=student, training={"save_steps": 4, "max_steps": 8}, report=report)
    assert "checkpoints hold" in check(load_recipe(path))
    run(path)
    trained = sum(one.numel() for one in checkpoints[0]["tensors"].values())
    assert {one["name"] for one in checkpoints} == {ADAPTERS}
    assert sizes == [trained, trained]  # the student's and the baseline's
    assert max(one["bytes"] for one in checkpoints) < 4 * trained + 8192
    assert all("lora_" in name or "classifier" in name or "pooler" in name for name in checkpoints[0]["tensors"])
    for before, after in outputs:
        assert torch.allclose(before, after, atol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=IDS).logits, outputs[0][0], atol=1e-5)
    assert not any("lora" in name for name in weights(tmp_path / "out"))
    said = read(tmp_path / "out")["settings"]["student"]["DoRA" if "use_dora" in student else "LoRA"]
    assert said["trained parameters"].startswith(f"{trained:,} of {plain.num_parameters():,} (")


def test_adapters_alone_are_saved_and_load_in_every_way(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """The base could be saved beside them, the head be lost on loading, or a finished run be trained again."""
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = make_model("bert-bare", layers=2)
    path = write_recipe(student={"name": "lora", "model": str(base), "r": 4, "merge": False})
    first = run(path)
    out = tmp_path / "out"
    assert {one.name for one in out.glob("*.safetensors")} == {ADAPTERS}
    assert not (out / "config.json").exists()  # with it, Transformers would look for whole weights here
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert AutoTokenizer.from_pretrained(out).vocab_size > 0
    stored = load_file(out / ADAPTERS)
    assert (out / ADAPTERS).stat().st_size < 4 * sum(one.numel() for one in stored.values()) + 4096
    ways = [
        AutoModelForSequenceClassification.from_pretrained(out),
        peft.AutoPeftModelForSequenceClassification.from_pretrained(out),
        peft.PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), out),
        load_model(str(out), Head("AutoModelForSequenceClassification", {"num_labels": 2}))[0],
    ]
    with torch.no_grad():
        logits = [one.eval()(input_ids=IDS)["logits"] for one in ways]
    for one in logits[1:]:
        assert torch.allclose(one, logits[0], atol=1e-5)
    size = read(out)["student"]["parameters"]
    plain = AutoModelForSequenceClassification.from_pretrained(base).num_parameters()
    adapters = sum(one.numel() for name, one in stored.items() if "lora_" in name)
    assert size == plain + adapters  # the head once
    before = (out / ADAPTERS).read_bytes()
    again = run(path)
    assert again.student.metrics == first.student.metrics
    assert (out / ADAPTERS).read_bytes() == before
    assert read(out)["settings"]["student"]["LoRA"]["saved"].startswith("the adapters alone, ")
    card = (out / "README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained(" in card
    assert '"negative"' in card  # which its files do not say
    assert str(tmp_path) not in card


@pytest.mark.parametrize("merge", [True, False])
def test_one_adapter_goes_on_through_the_stages_and_after_a_kill(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    """A second stage could start from new adapters, save a base, or a resumed run end elsewhere."""
    from hf_distill.trainer import DistillationTrainer

    def recipe(directory: str) -> Path:
        stages = [
            {"objectives": ["kl"]},
            {
                "objectives": ["labels"],
                "training": {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps"},
            },
        ]
        student = {"name": "lora", "model": str(make_model("bert-bare", layers=2)), "dropout": 0.1, "merge": merge}
        steps = {"eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
        training = {"output_dir": str(tmp_path / directory), **steps}
        return write_recipe(student=student, objectives=None, stages=stages, training=training)

    starts: list[dict[str, Any]] = []
    begin = DistillationTrainer.train

    def train(self: Any, *given: Any, **named: Any) -> Any:
        starts.append({name: one.clone() for name, one in self.model.named_parameters() if "lora_" in name})
        return begin(self, *given, **named)

    monkeypatch.setattr(DistillationTrainer, "train", train)
    run(recipe("whole"))
    whole = tmp_path / "whole"
    between = load_file(whole / "_runs" / "student-stage-1" / ADAPTERS)
    assert {name.replace(".default", ""): one for name, one in starts[1].items()}.keys() <= between.keys()
    assert all(torch.equal(one, between[name.replace(".default", "")]) for name, one in starts[1].items())
    final = "model.safetensors" if merge else ADAPTERS

    path, steps = recipe("cut"), DistillationTrainer._save_checkpoint
    for stop_at in (1, 4):  # in the first stage, then in the second

        def killed(self: Any, *given: Any, count: list[int] = [stop_at]) -> None:  # noqa: B006
            steps(self, *given)
            count[0] -= 1
            if not count[0]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(DistillationTrainer, "_save_checkpoint", killed)
            with pytest.raises(KeyboardInterrupt):
                run(path)
    run(path)
    assert same(load_file(tmp_path / "cut" / final), load_file(whole / final))


def test_the_teacher_is_the_same_after_the_merge(
    write_recipe: WriteRecipe, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student and teacher hold frozen weights once: a merge into them would give the teacher the student's weights."""
    from hf_distill.models.fingerprint import model_fingerprint
    from hf_distill.run.fit import Fitter

    seen: list[str] = []
    held: list[int] = []
    fit = Fitter.fit

    def fitted(self: Any, model: Any, **options: Any) -> Any:
        teacher = options["teacher"]
        seen.append(model_fingerprint(teacher.model))
        made = fit(self, model, **options)
        seen.append(model_fingerprint(teacher.model))
        ours = {one.data_ptr(): one.requires_grad for one in made.model.parameters()}
        both = [one.data_ptr() for one in teacher.model.parameters() if one.data_ptr() in ours]
        assert not any(ours[place] for place in both)
        assert len({*both}) == len(both)
        held.append(len(both))
        return made

    monkeypatch.setattr(Fitter, "fit", fitted)
    teacher = str(make_model("bert", layers=2))
    for change in ({}, {"use_dora": True}, {"model": teacher, "merge": False}):
        student = {"name": "lora", "target_modules": ["query", "dense"], **change}
        run(write_recipe(teacher={"name": "pretrained", "model": teacher}, student=student), restart=True)
    assert len(set(seen)) == 1
    assert held[0] == held[1] == 0
    assert held[2] > 30  # all but the adapters, the trained head and pooler


def test_a_prompt_is_distilled_into_adapters_of_the_same_model(
    write_recipe: WriteRecipe, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies of a language model, where one was promised, do not fit on the device that one fits on."""
    held: list[tuple[int, int]] = []
    train = DistillationTrainer.train

    def trained(self: Any, *args: Any, **options: Any) -> Any:
        ours = {one.data_ptr(): one.numel() for one in self.model.parameters() if not one.requires_grad}
        theirs = {one.data_ptr(): one.numel() for one in self.source.model.parameters()}
        held.append((sum(theirs[place] for place in theirs.keys() & ours), sum(theirs.values())))
        assert not {*theirs} & {one.data_ptr() for one in self.model.parameters() if one.requires_grad}
        return train(self, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "train", trained)
    model = str(make_model("llama-lm", layers=2, seed=3))
    prompted = {"name": "prompted", "model": model, "prompt": "the film is {{ sentence }} and the story is"}
    prompted["verbalizers"] = {"positive": " great", "negative": " dull"}
    found = run(write_recipe(teacher=prompted, student={"name": "lora", "model": model, "r": 4}))
    assert 0 <= found.student.metrics["accuracy"] <= 1
    ((once, whole),) = held
    head = 0 if once == whole else AutoModelForCausalLM.from_pretrained(model).lm_head.weight.numel()
    assert once == whole - head  # a classifier has no head of the language model


@pytest.mark.parametrize(
    ("student", "key", "words"),
    [
        ({"r": 33}, "student.r", "33 is larger than a matrix that it adapts: bert.encoder.layer.0"),
        ({"target_modules": ["q_proj"]}, "student.target_modules", "no linear layer is called q_proj"),
        ({"merge": False}, "student.merge", "saved nowhere"),
        ({"student": {"name": "copy_layers", "layers": 9}}, "student.student.layers", "not between 1 and 4"),
        ({"freeze": ["head"]}, "student", "freeze: adapters leave"),
        ({"student": {"name": "copy_layers", "layers": 2, "freeze": ["head"]}}, "student.student", "freeze"),
        ({"student": {"name": "copy_layers", "layers": 2}, "model": "x"}, "student", "Leave one of the two out"),
        ({"use_dora": True, "merge": False, "model": "x"}, "student", "without their lengths"),
        ({"student": {"name": "optimal_brain_damage", "ratio": 0.5}}, "student.student", "lost inside another"),
        ({"target_modules": "(query"}, "student.target_modules", "not a regular expression"),
        ({"target_modules": []}, "student.target_modules", "no layer"),
        ({"name": "optimal_brain_damage", "ratio": 0.5, "student": {"name": "lora"}}, "student.student", "lost inside"),
        ({"rank": 8}, "student.rank", "unknown key"),
    ],
)
def test_what_cannot_be_adapted_is_one_line(
    write_recipe: WriteRecipe, student: dict[str, Any], key: str, words: str
) -> None:
    """peft takes a rank beyond the matrix, and adapters for a base that nobody has; the run would end in nothing."""
    path = write_recipe(student={"name": "lora", **student})
    for how in (run, lambda one: check(load_recipe(one))):
        _, line = refused(how, path)
        assert f"{key}: " in line
        assert words in line


def test_adapters_with_a_base_that_is_only_here_are_not_pushed(write_recipe: WriteRecipe, make_model: Any) -> None:
    """The repository would hold adapters for a path of this machine."""
    base = str(make_model("bert-bare", layers=2))
    path = write_recipe(student={"name": "lora", "model": base, "merge": False}, hub={"push": True, "repo_id": "me/it"})
    for how in (run, lambda one: check(load_recipe(one))):
        assert "hub.push: adapters alone are loaded with their base" in refused(how, path)[1]


def test_adapters_alone_of_a_sentence_encoder_are_refused(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """How it pools would be lost, and the vectors be others wherever that is not the mean."""
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,score\n" + "the film is great,the plot is dull,0.5\n" * 8)
    data = {"path": {"train": str(pairs), "validation": str(pairs)}}
    data["columns"] = {"text": "a", "text_pair": "b", "label": "score"}
    model = str(make_model("bert-bare", layers=2))
    path = write_recipe(
        task="sentence-similarity",
        data=data,
        teacher={"name": "pretrained", "model": model},
        student={"name": "lora", "model": model, "merge": False},
        objectives=["sentence_embedding"],
    )
    for how in (run, lambda one: check(load_recipe(one))):
        assert "student.merge: a sentence encoder is saved with how it pools" in refused(how, path)[1]
