"""Writing and fingerprints: `hf_distill/files/atomic.py` and the fingerprints."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Value, concatenate_datasets
from transformers import AutoModel, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_distill.data.fingerprints import BATCH_ROWS, dataset_fingerprint
from hf_distill.errors import UserError
from hf_distill.files.atomic import check_writable, write_atomic
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.fingerprint import model_fingerprint

# --- write_atomic -------------------------------------------------------------------------------------------------


def test_text_and_bytes_arrive_unchanged(tmp_path):
    """A report with CRLF line ends or an accent in it would otherwise differ from what was written, on some systems."""
    write_atomic(tmp_path / "a", "é\r\nü\n")
    write_atomic(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == "é\r\nü\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    """A full disk would otherwise replace yesterday's report by half of today's."""
    file = tmp_path / "report.json"
    write_atomic(file, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*report\.json"):
        write_atomic(file, "new" * 1000)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_file_on_a_disk_that_is_really_full(tmp_path):
    """The same with a real 64 KiB disk: buffered bytes reach it only at `flush`, which must not be skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        write_atomic(disk / "report.json", "old")
        with pytest.raises(OSError, match="No space left"):
            write_atomic(disk / "report.json", "x" * 200_000)
        assert os.listdir(disk) == ["report.json"]
        assert (disk / "report.json").read_text() == "old"
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(UserError, match="its disk is full"):
            check_writable(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_has_ordinary_rights(tmp_path):
    """A temporary file made by `tempfile` is private (0600): colleagues could not read the report."""
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_link_stays_a_link(tmp_path):
    """Renaming over a link would cut the report off from the place the user wanted it in."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_killed_writer_leaves_nothing_that_is_published(tmp_path):
    """After `kill -9` the temporary file stays; `Trainer.push_to_hub` uploads all but `_*` and `checkpoint-*`."""
    script = (
        "import os, signal, sys\n"
        "from hf_distill.files.atomic import write_atomic\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomic(sys.argv[1], 'new')\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "report.json")], check=False)
    assert result.returncode == -9
    assert [name[0] for name in os.listdir(tmp_path)] == ["_"]


# --- check_writable -----------------------------------------------------------------------------------------------


def test_directory_is_created_and_left_empty(tmp_path):
    """The probe must not stay behind: everything in `output_dir` is published."""
    check_writable(tmp_path / "a" / "b", need_bytes=1)
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_file_in_place_of_the_directory(tmp_path, inside):
    """`output_dir` naming a file would otherwise fail at the first checkpoint, hours later."""
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="there is a file in its place"):
        check_writable(tmp_path / "out" / inside)


@pytest.mark.parametrize(("number", "says"), [(errno.EACCES, "give this user"), (errno.EROFS, "read-only")])
def test_directory_without_the_right_to_write(tmp_path, monkeypatch, number, says):
    """Tests run as root, whom permissions do not stop: the system's answer is imitated."""

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(UserError, match=says):
        check_writable(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux")
def test_file_system_that_takes_no_files():
    """A real refusal, from a place where even root cannot create a directory."""
    with pytest.raises(UserError, match="choose another directory"):
        check_writable("/proc/hf_distill")


def test_too_little_space_is_found_before_training(tmp_path, monkeypatch):
    """Otherwise the disk fills up at the first checkpoint."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**30))
    check_writable(tmp_path, need_bytes=2**30)
    with pytest.raises(UserError, match=r"needs 2\.0 GiB and its disk has 1\.0 GiB free"):
        check_writable(tmp_path, need_bytes=2**31)


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_fingerprint_of_parts():
    """Parts that run together, or 1 taken for "1", would let one recipe resume another's run."""
    values = [fingerprint("ab"), fingerprint("a", "b"), fingerprint(["a", "b"]), fingerprint(1), fingerprint("1")]
    assert len(set(values)) == len(values)
    assert fingerprint("ab") == hashlib.blake2b(b'["ab"]', digest_size=16).hexdigest()


ROWS = {
    "text": ["a", None, "", "δ", "e", "f"],
    "input_ids": [[1, 2], [], None, [3], [4, 5, 6], [7]],
    "score": [0.5, None, float("nan"), -0.0, 1.0, 2.0],
    "flag": [True, False, None, True, True, False],
    "nested": [{"a": [i, None], "b": str(i)} for i in range(6)],
}


def test_dataset_fingerprint_sees_rows_not_storage(tmp_path):
    """A teacher's cache would be recomputed (or refused) after a restart, though the rows are the same."""
    whole = Dataset.from_dict(ROWS)
    expected = dataset_fingerprint(whole)
    pieces = concatenate_datasets([whole.select([0]), whole.select([1, 2, 3]), whole.select(range(4, 6))])
    whole.save_to_disk(tmp_path / "set", num_shards=3)
    for same in (
        pieces,
        pieces.flatten_indices(),
        Dataset.load_from_disk(str(tmp_path / "set")),
        whole.select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0]),
        whole.with_format("torch", columns=["input_ids"]),
        whole.select_columns(list(reversed(list(ROWS)))),
        whole.cast_column("text", Value("large_string")),
    ):
        assert dataset_fingerprint(same) == expected


def test_dataset_fingerprint_of_no_columns():
    """A run asks for the fingerprint of some columns; where there are none it ended in a traceback after its report."""
    chosen = Dataset.from_dict({"n": [*range(16)]}).filter(lambda row: row["n"] % 2 == 0)
    nothing = dataset_fingerprint(chosen.select_columns([]))
    assert nothing == dataset_fingerprint(chosen.select_columns([]))
    assert nothing != dataset_fingerprint(chosen)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows | {"text": ["a", "", None, *rows["text"][3:]]},
        lambda rows: rows | {"input_ids": [[1], [2], *rows["input_ids"][2:]]},
        lambda rows: rows | {"input_ids": [[1, 2], None, [], *rows["input_ids"][3:]]},
        lambda rows: rows | {"score": [0.5, None, float("nan"), 0.0, 1.0, 2.0]},
        lambda rows: rows | {"flag": [True, None, False, True, True, False]},
        lambda rows: rows | {"nested": [*rows["nested"][:5], {"a": [5, None], "b": None}]},
        lambda rows: {("body" if name == "text" else name): values for name, values in rows.items()},
        lambda rows: {name: list(reversed(values)) for name, values in rows.items()},
        lambda rows: {name: values[:5] for name, values in rows.items()},
    ],
)
def test_dataset_fingerprint_sees_every_change(change):
    """Cached teacher targets would otherwise be paired with rows that they were not computed for."""
    assert dataset_fingerprint(Dataset.from_dict(change(ROWS))) != dataset_fingerprint(Dataset.from_dict(ROWS))


def test_dataset_fingerprint_follows_indices():
    """Hashing the table under a `shuffle` would miss the order, and a `select` would hash rows that are not there."""
    whole = Dataset.from_dict({"x": list(range(2 * BATCH_ROWS + 1))})
    order = whole.shuffle(seed=0)
    assert dataset_fingerprint(order) != dataset_fingerprint(whole)
    assert dataset_fingerprint(order) == dataset_fingerprint(Dataset.from_dict({"x": order["x"][:]}))
    assert dataset_fingerprint(whole.select([3, 1])) == dataset_fingerprint(Dataset.from_dict({"x": [3, 1]}))


def test_dataset_fingerprint_of_an_extension_type():
    """Fixed-size arrays are stored as an arrow extension type."""
    features = Features({"pixels": Array2D((2, 2), "float32")})
    make = [Dataset.from_dict({"pixels": np.full((3, 2, 2), fill)}, features=features) for fill in (0, 1, 1)]
    assert dataset_fingerprint(make[0]) != dataset_fingerprint(make[1]) == dataset_fingerprint(make[2])


def _bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **sizes))


@pytest.mark.parametrize("make", [_bert, _llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_fingerprint_survives_saving(tmp_path, make, dtype):
    """A teacher loaded again would otherwise never match its own cache."""
    model = make().to(dtype)
    expected = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=dtype)
    again.config.use_cache = False  # as Trainer sets it
    assert model_fingerprint(again) == expected
    assert model_fingerprint(AutoModel.from_pretrained(tmp_path, dtype=dtype)) != expected


def test_model_fingerprint_sees_every_change(monkeypatch):
    """Targets of an older teacher would otherwise be taken for those of a newer one."""
    model = _bert()
    expected = model_fingerprint(model)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[3] += 1e-6
    assert model_fingerprint(model) != expected
    model = _bert()
    model.config.hidden_act = "relu"
    assert model_fingerprint(model) != expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_big_tensors_are_hashed_by_sums_and_samples(monkeypatch, dtype):
    """The short cut for big tensors must still see one changed value and two exchanged rows."""
    monkeypatch.setattr("hf_distill.models.fingerprint.WHOLE_BYTES", 1000)
    monkeypatch.setattr("hf_distill.models.fingerprint.SAMPLES", 500)
    layer = torch.nn.Module()
    layer.register_buffer("weight", (torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) * 200).to(dtype))
    expected = model_fingerprint(layer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert model_fingerprint(layer) == expected
    torch.set_num_threads(threads)
    layer.weight[[3, 40]] = layer.weight[[40, 3]]
    assert model_fingerprint(layer) != expected
    layer.weight[[3, 40]] = layer.weight[[40, 3]]
    assert model_fingerprint(layer) == expected
    layer.weight[63, 254] += 1
    assert model_fingerprint(layer) != expected
