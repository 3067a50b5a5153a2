"""Teachers with quantized weights, and all that is done about them without torchao and bitsandbytes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.cache.shards import check_identity
from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.loading import Head, load_model
from hf_distill.models.quantization import check_installed, evaluable, is_placed, kept_whole, method_of, ready, size
from hf_distill.models.quantization import weights as weights_of
from hf_distill.run.dry_run import check
from hf_distill.teachers import FinetunedTeacher, PretrainedTeacher

CLASSIFIER = Head("AutoModelForSequenceClassification")
FROM_CONFIG = {"name": "from_config", "overrides": {"num_hidden_layers": 1}}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages, as far as anybody asks before something is loaded."""
    for package in ("torchao", "bitsandbytes"):
        monkeypatch.setattr(f"transformers.utils.is_{package}_available", lambda: True)


def quantized(make_model: Any, quantization: str = "int8", kind: str = "bert", **settings: Any) -> dict[str, Any]:
    model = str(make_model(kind, layers=4, seed=1))
    return {"name": "pretrained", "model": model, "quantization": quantization, **settings}


def mistakes(path: Path) -> list[str]:
    """Return the lines of `--check`, without the place; a run has the same."""
    with pytest.raises(UserError) as caught:
        check(load_recipe(path))
    with pytest.raises(UserError) as of_run:
        run(path)
    assert of_run.value.mistakes[0] in caught.value.mistakes
    assert not any("\n" in line for line in caught.value.mistakes)
    return [line.partition("recipe.yaml:")[2].partition(": ")[2] for line in caught.value.mistakes]


# ---- Before anything is loaded ---------------------------------------------------------------------------------------


def test_what_a_recipe_may_say(write_recipe: WriteRecipe, make_model: Any) -> None:
    """A word of another system that is passed over would leave the teacher at four times its memory."""
    teacher = load_recipe(write_recipe(teacher=quantized(make_model, "nf4", dtype="bfloat16"))).teacher
    assert (teacher.quantization, teacher.dtype, teacher.is_quantized) == ("nf4", "bfloat16", True)  # type: ignore[attr-defined]
    for entry, words in (
        ({"quantization": "8bit"}, "Did you mean 'int8'?"),
        ({"quantization": "int4"}, "Did you mean 'nf4'?"),
        ({"quantization": 8}, "wanted 'int8' or 'nf4'"),
        ({"load_in_4bit": True}, "It is called 'quantization' here"),
    ):
        with pytest.raises(UserError, match="teacher") as caught:
            load_recipe(write_recipe(teacher={"name": "pretrained", "model": "x", **entry}))
        assert words in str(caught.value)


@pytest.mark.parametrize(("quantization", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_package_that_is_not_there(
    quantization: Any, package: str, write_recipe: WriteRecipe, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is the first thing a run loads, after minutes of data; `--check` opens no model of the Hub."""
    monkeypatch.setattr(f"transformers.utils.is_{package}_available", lambda: False)
    teacher = quantized(make_model, quantization)
    line = f"'{quantization}' needs the package {package}, which is not installed here: pip install "
    for entry, key in (
        (teacher, "teacher.quantization"),
        ({**teacher, "name": "finetuned"}, "teacher.quantization"),
        ({"name": "cached", "teacher": teacher}, "teacher.teacher.quantization"),
    ):
        path = write_recipe(teacher=entry, student=FROM_CONFIG)
        assert mistakes(path) == [f"{key}: {line}'hf-distill[quantization]'"]
    path = write_recipe(
        teacher={**teacher, "model": "user/model"}, student={"name": "pretrained", "model": "user/other"}
    )
    with pytest.raises(UserError, match=line[:40]):
        check(load_recipe(path))
    with pytest.raises(UserError, match=package):
        check_installed(quantization)


@pytest.mark.usefixtures("installed")
def test_a_checkpoint_that_is_quantized_already(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Transformers takes the checkpoint's quantization with a warning in the middle of others: another teacher."""
    path = Path(shutil.copytree(make_model("bert"), tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": GPTQ}))
    teacher = {"name": "pretrained", "model": str(path), "quantization": "int8"}
    line = f"the weights of '{path}' are quantized already (gptq), and are loaded as they are. Leave this out."
    assert mistakes(write_recipe(teacher=teacher, student=FROM_CONFIG)) == [f"teacher.quantization: {line}"]
    with pytest.raises(UserError, match="quantized already"):
        load_model(str(path), CLASSIFIER, quantization="int8")
    # Without the key: not to be copied from, which would be found out after it is loaded.
    del teacher["quantization"]
    (found,) = mistakes(write_recipe(teacher=teacher))
    assert found.startswith("student.model: the weights of the teacher are quantized (gptq) and cannot be copied")


@pytest.mark.usefixtures("installed")
def test_a_gguf_file_is_quantized_already(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Transformers fails on the pair once the data is read."""
    from gguf_files import llama, write_gguf

    write_gguf(tmp_path / "tiny.gguf", llama(make_model), make_model("gpt2-lm"))
    teacher = {"name": "pretrained", "model": str(tmp_path / "tiny.gguf"), "quantization": "nf4"}
    (line,) = mistakes(write_recipe(task="text-generation", teacher=teacher, student=FROM_CONFIG))
    assert "is a GGUF file: its weights are quantized already" in line


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("cached", [False, True])
def test_a_student_does_not_copy_quantized_weights(cached: bool, write_recipe: WriteRecipe, make_model: Any) -> None:
    """Told before an hour of loading, with the model to name; and what it says to do passes."""
    teacher: dict[str, Any] = quantized(make_model)
    source = teacher["model"]
    teacher = {"name": "cached", "teacher": teacher} if cached else teacher
    path = write_recipe(teacher=teacher)
    (line,) = mistakes(path)
    assert line.startswith("student: its weights would be copied from the teacher, whose weights are quantized")
    assert line.endswith(f"model: {source}")
    check(load_recipe(path, [f"student.model={source}"]))


@pytest.mark.usefixtures("installed")
def test_full_eval_in_half_precision_is_refused(write_recipe: WriteRecipe, make_model: Any) -> None:
    """It converts the model that is evaluated, and bitsandbytes raises after the training."""
    settings = {"student": FROM_CONFIG, "training": {"bf16_full_eval": True}}
    (line,) = mistakes(write_recipe(teacher=quantized(make_model), **settings))
    assert line.startswith("training.bf16_full_eval: would convert all weights of the teacher")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (None, None),
        (GPTQ, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "llm_int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "int8"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}, "torchao"),
    ],
)
def test_what_a_configuration_says(settings: Any, name: str | None) -> None:
    """The name is in refusals and in the report; `None` lets a quantized model pass for a whole one."""
    from transformers import BertConfig

    config = BertConfig()
    if settings is not None:
        config.quantization_config = settings
    assert method_of(config) == name


# Kind of tiny model: its Auto class, and the linear layers that belong to its head.
HEADS = {
    "bert": ("ForSequenceClassification", {"classifier"}),
    "llama": ("ForSequenceClassification", {"score"}),
    "llama-lm": ("ForCausalLM", {"lm_head"}),
    "bert-mlm": ("ForMaskedLM", {"cls.predictions.decoder", "cls.predictions.transform.dense"}),
    "bert-qa": ("ForQuestionAnswering", {"qa_outputs"}),
    "t5": ("ForSeq2SeqLM", {"lm_head"}),
    "bart": ("ForSeq2SeqLM", {"lm_head"}),
    "bert-bare": ("", set()),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("tied", [False, True])
def test_heads_stay_whole(kind: str, tied: bool, make_model: Any) -> None:
    """A quantized head cannot be taken apart: all logits would be made at once. And one tied to the embeddings takes
    them with it."""
    import transformers
    from transformers.quantizers.quantizers_utils import should_convert_module

    auto, heads = HEADS[kind]
    config = transformers.AutoConfig.from_pretrained(make_model(kind))
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        model = getattr(transformers, f"AutoModel{auto}").from_config(config)
    kept = kept_whole(model)
    assert kept == sorted(kept)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    whole = {name for name in linear if not should_convert_module(name, kept)}
    assert whole == heads
    assert linear - whole


# ---- A model that only pretends --------------------------------------------------------------------------------------


def pretending(make_model: Any, **settings: Any) -> Any:
    """Return a classifier that says it is quantized, its weights in tensors that consist of two others."""
    from torch.testing._internal.two_tensor import TwoTensor

    model, _ = load_model(str(make_model("bert", layers=1)), CLASSIFIER, own_head=True)
    for module in model.bert.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(TwoTensor(module.weight.data, module.weight.data.clone()))
    model.is_quantized = True
    model.config.quantization_config = GPTQ | settings
    return model


def test_the_tensors_inside_count(make_model: Any) -> None:
    """A wrapper says it has 4 bytes a weight and gives no values to hash: any two quantized teachers would be one."""
    model = pretending(make_model)
    plain, _ = load_model(str(make_model("bert", layers=1)), CLASSIFIER, own_head=True)
    count, held = size(plain)
    linear = sum(one.weight.nbytes for one in plain.bert.modules() if isinstance(one, torch.nn.Linear))
    persistent = sum(tensor.nbytes for tensor in plain.state_dict().values()) - held
    assert size(model) == (count, held + linear + persistent)
    first = model_fingerprint(model)
    assert model_fingerprint(model) == first != model_fingerprint(plain)
    inner: Any = model.bert.encoder.layer[0].output.dense.weight
    inner.b[0, 0] += 1
    assert model_fingerprint(model) != first
    inner.b[0, 0] -= 1
    assert model_fingerprint(model) == first
    assert model_fingerprint(pretending(make_model, bits=8)) != first
    assert weights_of(model) == {"dtype": "float32", "quantization": "gptq"}


def test_ready_says_what_is_wrong(make_model: Any) -> None:
    """A kernel that fails, or overflows, would fail in the middle of the first epoch, or teach NaN."""

    def line(model: Any, key: str = "quantization") -> str:
        with pytest.raises(UserError) as caught:
            ready(model, "some/model", key)
        (found,) = caught.value.mistakes
        assert caught.value.key == key
        return found

    model = pretending(make_model)
    ready(model, "some/model", "quantization")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.classifier.bias[0] = torch.inf
    assert (
        line(model, "model")
        == "'some/model' in gptq does not run on this cpu: its outputs are NaN or infinite. Choose another type."
    )

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("\nno kernel\nat all")

    model.forward = fails
    assert "does not run on this cpu: no kernel. Choose" in line(model)
    plain, _ = load_model(str(make_model("bert", layers=1)), CLASSIFIER, own_head=True)
    plain.config.quantization_config = GPTQ
    assert line(plain).startswith("there is nothing to quantize in 'some/model': BertForSequenceClassification has no")


def test_a_frozen_model_is_evaluated(make_model: Any, tmp_path: Path) -> None:
    """`Trainer` refuses quantized models, and with it the report, at the end of a run; one to be trained it must."""
    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import Labels

    model = pretending(make_model)
    args = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])

    def make() -> DistillationTrainer:
        return DistillationTrainer(model, args, objectives=[Labels()])

    with pytest.raises(ValueError, match="fine-tuning on purely quantized models"):
        make()
    assert model.is_quantized
    model.requires_grad_(False)
    make()
    assert model.is_quantized
    with pytest.raises(RuntimeError, match="x"), evaluable(model):
        raise RuntimeError("x")
    assert model.is_quantized


def test_where_a_teacher_is_left(make_model: Any) -> None:
    """Quantized on another device than the training's it must move, and one spread over several must not."""
    model = pretending(make_model)
    assert is_placed(model, torch.device("cpu"))
    assert not is_placed(model, torch.device("meta"))
    model.is_quantized = False
    assert not is_placed(model, torch.device("cpu"))
    model.hf_device_map = {"bert": 0, "classifier": 1}
    assert is_placed(model, torch.device("meta"))


# ---- Other weights are another teacher, and said ---------------------------------------------------------------------


def test_a_cache_of_other_weights_says_so(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The teacher's name is the same: without the reason nobody knows what is different."""
    cache = {"name": "cached", "path": str(tmp_path / "cache")}
    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1))}
    run(write_recipe(teacher={**cache, "teacher": teacher}))
    half = {**cache, "teacher": {**teacher, "dtype": "bfloat16"}}
    with pytest.raises(UserError, match=r"of another teacher \(dtype float32 there and bfloat16 here\)\. Choose"):
        run(write_recipe(teacher=half, training={"output_dir": str(tmp_path / "half")}))
    one, other = ({"teacher": "a", "weights": {"dtype": "float32", "quantization": "none"}} for _ in range(2))
    check_identity(tmp_path, one, other)
    for there, words in (
        ({"dtype": "float32", "quantization": "int8"}, r" \(quantization int8 there and none here\)\."),
        ({"dtype": "float32", "quantization": "none"}, r"another teacher\. Choose"),
    ):
        with pytest.raises(UserError, match=words):
            check_identity(tmp_path, {"teacher": "b", "weights": there}, one)
    with pytest.raises(UserError, match=r"another teacher\. Choose"):  # of an earlier version
        check_identity(tmp_path, {"teacher": "b"}, one)


@pytest.mark.usefixtures("brief_latency")
def test_the_report_says_what_was_measured(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A student in float32 beside a teacher in something else: speed and size are of both, and so is what they mean."""
    from hf_distill.report.report import Report

    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1)), "dtype": "bfloat16"}
    report = run(write_recipe(teacher=teacher, report={"latency": True}))
    assert (report.teacher.weights, report.student.weights) == ("bfloat16", "float32")
    again = Report.load(tmp_path / "out")
    assert again.teacher == report.teacher
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| weights | bfloat16 | float32 |" in card
    assert "The teacher was measured in bfloat16, the student in float32." in card
    assert "One forward pass, bfloat16 and float32, on" in card
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    del content["teacher"]["weights"]  # of an earlier version
    (tmp_path / "out" / "report.json").write_text(json.dumps(content))
    assert Report.load(tmp_path / "out").teacher.weights == "float32"


def test_a_fine_tuned_teacher_in_half_precision(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """It is trained in float32 whatever it teaches in, and found again: another `dtype` must not train it anew."""
    teacher = {
        "name": "finetuned",
        "model": str(make_model("bert-bare", layers=2)),
        "output_dir": str(tmp_path / "kept"),
    }
    sections = {"student": FROM_CONFIG, "objectives": [{"name": "kl"}]}
    whole = run(write_recipe(teacher=teacher, **sections))
    (kept,) = (tmp_path / "kept").iterdir()
    half = run(
        write_recipe(
            teacher={**teacher, "dtype": "bfloat16"}, training={"output_dir": str(tmp_path / "half")}, **sections
        )
    )
    assert (whole.teacher.weights, half.teacher.weights) == ("float32", "bfloat16")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [kept.name]
    assert half.teacher.bytes * 2 == whole.teacher.bytes
    assert half.history["teacher"] == whole.history["teacher"]


def test_no_half_precision_of_its_own_for_a_fine_tuned_teacher() -> None:
    """`auto` is what a checkpoint was saved in, and this one the run itself saves."""
    with pytest.raises(ValueError, match="dtype"):
        FinetunedTeacher(model="x", dtype="auto")  # type: ignore[arg-type]
    assert not PretrainedTeacher(model="x").is_quantized
    copy.copy(FinetunedTeacher(model="x", quantization="int8"))
