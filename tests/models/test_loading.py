"""Finding and opening models: what is taken for what, one line for all that can be wrong with a checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import refused as mistake

from hf_distill.locations import resolve
from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer
from hf_distill.models.outline import has_head

AUTO = "AutoModelForSequenceClassification"
TWO = Head(AUTO, {"num_labels": 2})


@pytest.fixture
def bert(make_model: Any, tmp_path: Path) -> Path:
    """Return a copy of a tiny model that a test may break."""
    return Path(shutil.copytree(make_model("bert", layers=2), tmp_path / "bert"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- Locations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location", ["bert-base-uncased", "user/model", "meta-llama/Llama-3.2-1B", "user_1/m.x-v1.5", "_x/y"]
)
def test_hub_ids_stay_hub_ids(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot or a digit in a Hub id is no file ending; refusing it would close the Hub to half its models."""
    monkeypatch.chdir(tmp_path)
    assert resolve(location) == location


@pytest.mark.parametrize(
    "location",
    [
        *("./model", "../model", "/models/bert", "~/bert", "a/b/c", "models/", "my model", ""),
        *("C:\\models\\bert", "C:/models", "models\\bert", "train.csv", "data/train.jsonl", "data/train.CSV.gz"),
        *("x/model.safetensors", "https://example.com/x.csv", "~no-such-user/x", ".hidden"),
    ],
)
def test_paths_that_are_not_there_are_not_looked_for_on_the_hub(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped path sent to the Hub fails with "401", or worse, finds somebody else's model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    key, line = mistake(lambda: resolve(location, "path"))
    assert key == "path"
    assert line.startswith(f"no such file or directory: '{location}' (looked from {tmp_path}).")


def test_what_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local directory goes first, as everywhere in Transformers, and `~` is the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "user" / "model").mkdir(parents=True)
    assert resolve("user/model") == "user/model"
    assert resolve("~/user") == str(tmp_path / "user")
    assert "Did you mean './user'?" in mistake(lambda: resolve("./usr"))[1]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        *(("nope.jsonl", None), ("dev.jsonl", "qa_dev.jsonl"), ("trian.jsonl", "train.jsonl")),
        *(("train.json", "train.jsonl"), ("Train.jsonl.gz", "train.jsonl"), ("qa_test.csv", "qa_test.jsonl")),
    ],
)
def test_only_a_name_that_is_alike_is_suggested(wrong: str, meant: str | None, tmp_path: Path) -> None:
    """Files of one kind all end alike: by the whole name any of them would be "meant"."""
    for name in ("qa_dev.jsonl", "qa_test.jsonl", "train.jsonl", "labels.csv"):
        (tmp_path / name).touch()
    said = mistake(lambda: resolve(str(tmp_path / wrong)))[1].partition(" Did you mean ")[2]
    assert said == (f"'{tmp_path / meant}'?" if meant else "")


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package is located, never imported: its code has no business in a distillation."""
    (tmp_path / "my_models" / "bert").mkdir(parents=True)
    (tmp_path / "my_models" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "single.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("package:my_models/bert") == str(tmp_path / "my_models" / "bert")
    assert "has no 'brt' inside" in mistake(lambda: resolve("package:my_models/brt"))[1]
    assert "In Python its name may be 'my_models'" in mistake(lambda: resolve("package:my-models/bert"))[1]
    (tmp_path / "secret").touch()
    for wrong in (
        "package:my_models/../secret",
        f"package:my_models/{tmp_path}/secret",
        "package:my_models/bert/../..",
    ):
        assert "leads out of the package" in mistake(lambda wrong=wrong: resolve(wrong))[1]
    for wrong in ("package:single/x", "package:", "package:no.such/x", "package:no_such/x"):
        assert mistake(lambda wrong=wrong: resolve(wrong))[1].startswith("no Python package")


# ---- Configurations --------------------------------------------------------------------------------------------------


def test_a_directory_that_is_no_model(bert: Path, tmp_path: Path) -> None:
    """Transformers asks for a `model_type` key in a file that is not there; the line says what the directory is."""
    assert open_config(str(bert)).num_hidden_layers == 2
    (bert / "config.json").rename(bert / "adapter_config.json")
    assert "does not name its base" in mistake(lambda: open_config(str(bert)))[1]
    (bert / "adapter_config.json").unlink()
    key, line = mistake(lambda: open_config(str(bert)))
    assert (key, line) == (
        "model",
        f"'{bert}' is not a Transformers model: it has no config.json. "
        "Wanted the directory that save_pretrained wrote.",
    )
    (tmp_path / "bert" / "checkpoint-8").mkdir()
    (tmp_path / "bert" / "checkpoint-8" / "config.json").write_text("{}")
    assert f"Did you mean '{bert / 'checkpoint-8'}'?" in mistake(lambda: open_config(str(bert)))[1]


def test_configurations_that_do_not_open(bert: Path) -> None:
    """Each of these is a different exception inside Transformers, some with a page of advice."""
    assert "is a file. Wanted the directory" in mistake(lambda: open_config(str(bert / "config.json")))[1]
    edit_config(bert, model_type="no-such-type")
    assert "model type `no-such-type`" in mistake(lambda: open_config(str(bert)))[1]
    edit_config(bert, model_type="bert", num_hidden_layers="two")
    assert mistake(lambda: open_config(str(bert)))[1].startswith(f"cannot open '{bert}'")
    (bert / "config.json").write_text("{")
    assert "not a valid JSON file" in mistake(lambda: open_config(str(bert)))[1]


def test_a_model_that_is_neither_here_nor_on_the_hub() -> None:
    """Offline, the line must say that no directory of that name is here: it is usually a typo in a path."""
    key, line = mistake(lambda: open_config("no-such-model"))
    assert key == "model"
    assert line.startswith("'no-such-model' is not a directory here and cannot be loaded from the Hub: ")


def test_remote_code_needs_to_be_allowed(bert: Path) -> None:
    """Code from a checkpoint never runs unless the recipe says so, and Transformers' own prompt would hang a job."""
    edit_config(bert, model_type="mine", auto_map={"AutoConfig": "code.Mine", AUTO: "code.Model"})
    (bert / "code.py").write_text(
        "from transformers import BertConfig\nclass Mine(BertConfig):\n    model_type = 'mine'\n"
    )
    assert "Read it, then set trust_remote_code: true." in mistake(lambda: open_config(str(bert)))[1]
    config = open_config(str(bert), trust_remote_code=True)
    assert type(config).__name__ == "Mine"
    assert has_head(config, AUTO)


def test_which_checkpoints_have_the_head(make_model: Any) -> None:
    """A head of another kind may fit by its shapes alone; what the checkpoint was saved as tells them apart."""
    heads = {kind: has_head(open_config(str(make_model(kind))), AUTO) for kind in ("bert", "bert-bare", "bert-tokens")}
    assert heads == {"bert": True, "bert-bare": False, "bert-tokens": False}


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_model_without_tokenizer_files(kind: str, make_model: Any, tmp_path: Path) -> None:
    """Transformers 5 makes up a tokenizer of nothing but special tokens: every word would be unknown, in silence."""
    directory = shutil.copytree(make_model(kind), tmp_path / kind)
    assert open_tokenizer(str(directory)).tokenize("great film")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    key, line = mistake(lambda: open_tokenizer(str(directory), key="teacher.model"))
    assert key == "teacher.model"
    assert "tokenizer" in line
    assert str(directory) in line


def test_a_broken_tokenizer_file(bert: Path) -> None:
    """A download that was cut off must name the model, not a column of a JSON file."""
    (bert / "tokenizer.json").write_text('{"version": ')
    key, line = mistake(lambda: open_tokenizer(str(bert)))
    assert key == "tokenizer"
    assert line.startswith(f"cannot open the tokenizer of '{bert}'")


# ---- Weights ---------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_with_the_task_s_head(make_model: Any) -> None:
    """A bfloat16 checkpoint must not become a bfloat16 student; label settings are the task's, not the checkpoint's."""
    settings = {"num_labels": 2, "id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model, new = load_model(str(make_model("bert-bare", dtype="bfloat16")), Head(AUTO, settings))
    assert new == ["classifier.bias", "classifier.weight"]
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_own_head_keeps_the_checkpoint_s_labels(make_model: Any) -> None:
    """A teacher whose `id2label` is overwritten with the student's would have its columns permuted twice."""
    path = str(make_model("bert", labels=("positive", "negative")))
    settings = {"num_labels": 2, "id2label": {0: "negative", 1: "positive"}, "pad_token_id": 0}
    model, new = load_model(path, Head(AUTO, settings), own_head=True, dtype="bfloat16")
    assert new == []
    assert model.config.id2label == {0: "positive", 1: "negative"}
    assert model.dtype == torch.bfloat16
    assert load_model(path, TWO, own_head=True, dtype="auto")[0].dtype == torch.float32


def test_a_head_of_another_size_is_made_new(make_model: Any) -> None:
    """A checkpoint fine-tuned on two classes is a fine start for three; its new head must hold numbers, not memory."""
    torch.manual_seed(0)
    model, new = load_model(str(make_model("bert")), Head(AUTO, {"num_labels": 3}))
    assert new == ["classifier.bias", "classifier.weight"]
    assert model.classifier.weight.shape == (3, 32)
    assert model.classifier.weight.std().item() == pytest.approx(0.2, rel=0.3)  # initializer_range
    assert model.classifier.bias.tolist() == [0, 0, 0]


def test_weights_that_are_not_the_configuration_s(bert: Path, make_model: Any) -> None:
    """Whatever does not fit is random after loading; a student of random layers trains, only badly."""
    edit_config(bert, num_hidden_layers=3)
    assert "tensors of BertForSequenceClassification are missing" in mistake(lambda: load_model(str(bert), TWO))[1]
    edit_config(bert, num_hidden_layers=2, intermediate_size=48)
    assert "of another size" in mistake(lambda: load_model(str(bert), TWO))[1]
    other = shutil.copytree(make_model("distilbert"), bert.parent / "other")
    shutil.copy(bert / "model.safetensors", other / "model.safetensors")
    assert "do not fit its config.json" in mistake(lambda: load_model(str(other), TWO))[1]


def test_a_missing_pooler_is_no_damage(make_model: Any) -> None:
    """Language models are saved without a pooler; refusing them would refuse most of what students start from."""
    model, new = load_model(str(make_model("bert-tokens")), TWO)
    assert new == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert torch.isfinite(model.bert.pooler.dense.weight).all()


def test_pickled_weights_are_refused(bert: Path) -> None:
    """Loading a pickle runs whatever its author wrote into it."""
    (bert / "model.safetensors").unlink()
    assert mistake(lambda: load_model(str(bert), TWO))[1] == f"cannot load '{bert}': it has no model.safetensors."
    torch.save({}, bert / "pytorch_model.bin")
    key, line = mistake(lambda: load_model(str(bert), TWO))
    assert key == "model"
    assert "its weights are pickled (.bin)" in line
    assert "write it with save_pretrained" in line


def test_damaged_weights(bert: Path) -> None:
    """safetensors' own exception is no ValueError and names no file."""
    weights = bert / "model.safetensors"
    whole = weights.read_bytes()
    for part in (whole[: len(whole) // 2], b"\x00", b"not weights at all"):
        weights.write_bytes(part)
        assert "damaged or cut off" in mistake(lambda: load_model(str(bert), TWO))[1]
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    assert "is a Git LFS pointer, not the weights" in mistake(lambda: load_model(str(bert), TWO))[1]


def test_a_model_without_such_a_head(bert: Path) -> None:
    """An architecture that has no class for the task is told as such."""
    key, line = mistake(lambda: load_model(str(bert), Head("AutoModelForSeq2SeqLM")))
    assert key == "model"
    assert "BertConfig" in line


def test_nothing_is_said_about_what_is_fine(make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A warning for every load teaches users to read past warnings."""
    with caplog.at_level(logging.WARNING):
        load_model(str(make_model("bert")), TWO, own_head=True)
    assert not caplog.records
