"""Training arguments: Transformers' own, less those that would be ignored or break a promise."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_distill import DistillationArguments
from hf_distill.training_args import check_arguments

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "label smoothing": ({"label_smoothing_factor": 0.1}, "not applied to a distillation loss; leave it at 0"),
    "local counts": ({"average_tokens_across_devices": False}, "depend on the number of processes; leave it on"),
    "batch losses": ({"include_for_metrics": ["inputs", "loss"]}, r"include_for_metrics=\['loss'\].*Remove it"),
    "token": ({"hub_token": "hf_secret"}, "hub_token .* environment variable HF_TOKEN"),
    "every save": ({"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy must be 'end'"),
}


@pytest.mark.parametrize("settings", [pytest.param(case[0], id=name) for name, case in REFUSED.items()])
def test_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """An argument that is accepted and ignored was believed to work; a token in training_args.bin gets published."""
    message = next(text for given, text in REFUSED.values() if given is settings)
    with pytest.raises(ValueError, match=message) as refusal:
        DistillationArguments(output_dir=str(tmp_path), **settings)
    assert "hf_secret" not in str(refusal.value)
    with pytest.raises(ValueError, match=message):
        check_arguments(TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings))


def test_defaults(tmp_path: Path) -> None:
    """Every other default is Transformers': a user's knowledge of them must hold."""
    ours, theirs = DistillationArguments(output_dir=str(tmp_path)), TrainingArguments(output_dir=str(tmp_path))
    check_arguments(theirs)  # its `hub_strategy`, "every_save", does no harm without a push
    different = {name for name, value in ours.to_dict().items() if value != theirs.to_dict().get(name)}
    own = {"compile_loss", "padding_free", "on_nan"}
    known = {"hub_strategy", "use_cpu", "dataloader_pin_memory", "logging_dir", "logging_nan_inf_filter"}
    assert different <= own | known
    assert ours.hub_strategy == "end"
    assert DistillationArguments(output_dir=str(tmp_path), push_to_hub=True).hub_strategy == "end"


def test_former_names(tmp_path: Path) -> None:
    """`packing` is TRL's word for something else: who wrote it for layers without padding must hear the new name. The
    signature stays that of the fields, which editors show."""
    former: dict[str, Any] = {"packing": True}
    with pytest.raises(TypeError, match=r"DistillationArguments: .*'packing' is now 'padding_free'"):
        DistillationArguments(output_dir=str(tmp_path), **former)
    assert {"output_dir", "padding_free"} < set(signature(DistillationArguments).parameters)


def test_compile_loss(tmp_path: Path) -> None:
    """A word that is none of the three would be taken for true."""
    assert DistillationArguments(output_dir=str(tmp_path)).compile_loss == "auto"
    values: tuple[Any, ...] = (True, False, "auto")
    for value in values:
        assert DistillationArguments(output_dir=str(tmp_path), compile_loss=value).compile_loss is value
    wrong: dict[str, Any] = {"compile_loss": "off"}
    with pytest.raises(ValueError, match="compile_loss must be true, false or 'auto', found 'off'"):
        DistillationArguments(output_dir=str(tmp_path), **wrong)


def test_what_is_not_finite_is_neither_ignored_nor_hidden(tmp_path: Path) -> None:
    """Another word would be taken for one of the two; Transformers' filter logs a loss that is NaN as 0."""
    assert DistillationArguments(output_dir=str(tmp_path)).on_nan == "stop"
    wrong: dict[str, Any] = {"on_nan": "ignore"}
    with pytest.raises(ValueError, match=r"on_nan must be .*'rollback', found 'ignore'"):
        DistillationArguments(output_dir=str(tmp_path), **wrong)
    with pytest.raises(ValueError, match="leave it off"):
        DistillationArguments(output_dir=str(tmp_path), logging_nan_inf_filter=True)


def test_a_command_line_made_of_them(tmp_path: Path) -> None:
    """Transformers makes one of the annotations, and a type that it does not know fails before anything is given."""
    parser = HfArgumentParser(DistillationArguments)  # type: ignore[arg-type]
    for given, wanted in (((), "auto"), (("--compile_loss", "True"), True), (("--compile_loss", "auto"), "auto")):
        (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), *given])
        assert args.compile_loss == wanted


def test_a_machine_without_accelerator_uses_its_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `use_cpu` bf16 raises there, and processes of torchrun each take themselves for the only one. With
    an accelerator it must stay off: a run on the CPU by mistake looks like a slow one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = DistillationArguments(output_dir=str(tmp_path), bf16=True)
    assert args.use_cpu
    assert args.device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    assert not DistillationArguments(output_dir=str(tmp_path)).use_cpu
