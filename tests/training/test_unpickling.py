"""Checkpoints of a stranger: a pickle in them runs no code, whichever file it is in: `training/unpickling.py`."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants.cases import make_trainer

from hf_distill.errors import UserError
from hf_distill.training.checkpoints import SEAL, seal
from hf_distill.training.unpickling import only_values

SETTINGS: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps"}


class Evil:
    """Unpickling it makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def in_zip(evil: Evil, file: Path) -> None:
    """Write the pickle as torch.save does."""
    torch.save({"state": {}, "evil": evil}, file)


def bare(evil: Evil, file: Path) -> None:
    """Write a plain pickle, which torch.load reads as its old format."""
    file.write_bytes(pickle.dumps(evil))


def put_before(evil: Evil, file: Path) -> None:
    """Leave the file as it is, and let its own pickle begin with the other."""
    content = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(content, "w") as new:
        for one in old.infolist():
            data = old.read(one)
            if one.filename.endswith("data.pkl"):
                data = pickle.dumps(evil, 2)[:-1] + b"0" + data[2:]
            new.writestr(one, data)
    file.write_bytes(content.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after one of two steps."""
    directory = tmp_path_factory.mktemp("trained")
    make_trainer("classification", directory, **SETTINGS).train()
    return directory / "checkpoint-1"


def planted(checkpoint: Path, name: str, how: Callable[[Evil, Path], None], place: Path, key: str) -> Path:
    """Return a copy of a checkpoint with such a pickle in one of its files, and a seal that fits; and nothing run."""
    copy = place / "out" / "checkpoint-1"
    shutil.copytree(checkpoint, copy)
    how(Evil(place / "touched"), copy / name)
    seal(copy, key, 1)
    return copy


@pytest.mark.parametrize("how", [in_zip, bare, put_before])
def test_every_file_of_a_checkpoint(trained: Path, how: Callable[[Evil, Path], None], tmp_path: Path) -> None:
    """A checkpoint that somebody shared ran their code with the user's rights, on the command that resumes it."""
    names = sorted(path.name for path in trained.iterdir() if path.suffix in (".pt", ".pth", ".bin"))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} <= {*names}
    for index, name in enumerate([*names, "pytorch_model.bin"]):
        place = tmp_path / str(index)
        if how is put_before and not (trained / name).exists():
            continue
        trainer = make_trainer("classification", place / "out", **SETTINGS)
        copy = planted(trained, name, how, place, trainer.key)
        if name == "pytorch_model.bin":
            (copy / "model.safetensors").unlink()
            (copy / SEAL).unlink()
            seal(copy, trainer.key, 1)
        if name == "training_args.bin":  # which nothing reads
            trainer.train(resume_from_checkpoint=str(copy))
        else:
            with pytest.raises(UserError, match="could run any code"):
                trainer.train(resume_from_checkpoint=str(copy))
        assert not (place / "touched").exists(), name
    assert pickle.load.__module__ == "_pickle"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def shards(place: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a sharded checkpoint, as FSDP writes it, and what it holds."""
    import torch.distributed.checkpoint as saved

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved.save(content, storage_writer=saved.FileSystemWriter(place), no_dist=True)
    return place, content


def loaded(folder: Path, content: dict[str, Any]) -> None:
    import torch.distributed.checkpoint as saved

    with only_values(folder):
        saved.load(content, storage_reader=saved.FileSystemReader(folder), no_dist=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_sharded_checkpoints(tmp_path: Path) -> None:
    """PyTorch unpickles their table of contents, and each value that is no tensor, without asking what it is."""
    folder, content = shards(tmp_path / "good")
    empty = {"model": torch.nn.Linear(2, 2).state_dict(), "optimizer": content["optimizer"]}
    loaded(folder, empty)
    assert torch.equal(empty["model"]["weight"], content["model"]["weight"])
    mark = tmp_path / "touched"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="could run any code"):
        loaded(folder, content)
    other, content = shards(tmp_path / "values")
    (file,) = other.glob("*.distcp")
    file.write_bytes(_with_evil_values(file.read_bytes(), mark))
    with pytest.raises(UserError, match="could run any code"):
        loaded(other, content)
    assert not mark.exists()


def _with_evil_values(raw: bytes, mark: Path) -> bytes:
    """Return a file of shards in which the first value is a plain pickle."""
    evil = pickle.dumps(Evil(mark), 2)
    start = raw.index(b"PK\x03\x04")
    end = raw.index(b"PK\x05\x06", start) + 22
    assert len(evil) <= end - start
    return raw[:start] + evil + bytes(end - start - len(evil)) + raw[end:]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "pickle.loads"),
        ("torch", "load"),
        ("torch", "_utils._rebuild_tensor"),
        ("builtins", "getattr"),
        ("pathlib", "os.mkdir"),
    ],
)
def test_names_that_only_look_known(module: str, name: str, tmp_path: Path) -> None:
    """A module of the list imports others, and a name with dots leads through it to any function."""
    file = tmp_path / "x"
    file.write_bytes(b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)])
                     + name.encode() + b"\x93.")  # fmt: skip
    with pytest.raises(UserError, match="it names"), only_values(tmp_path), file.open("rb") as stream:
        pickle.load(stream)
