"""Trained teachers on disk that vote one after the other; their distributions are stored beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.cache.example_hashes import NOT_READ
from hf_distill.cache.format import Kept
from hf_distill.cache.recorder import Recorder
from hf_distill.data.example_columns import without_examples
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.errors import NotFinite
from hf_distill.files.atomic import write_atomic
from hf_distill.models.loading import Head, load_model
from hf_distill.models.needs import Gives
from hf_distill.models.outline import outline
from hf_distill.models.target_model import RunModel, Targets, TargetSource

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

    from hf_distill.tasks import Prepared

Array = NDArray[Any]

# What the answers give to objectives: distributions, which any temperature softens.
GIVES = Gives("a noisy teacher", exact_logits=False)
# Folder in a teacher's own, for what it said about which rows: as private as the teacher.
SAID = "_distributions"


class PrivateTeachers(TargetSource):
    """Trained teachers on disk. They are opened one by one to vote, and no student sees their weights.

    Args:
        folders: Directory of each teacher.
        head: How to load a model for the task.
        config: Configuration of the first teacher.
        trust_remote_code: Run model code from the checkpoints.
    """

    def __init__(
        self, folders: Sequence[str], head: Head, config: PretrainedConfig, *, trust_remote_code: bool
    ) -> None:
        super().__init__()
        self.folders, self.head, self.config = tuple(folders), head, config
        self._trusts = trust_remote_code
        self.privacy: dict[str, Any] = {}
        self._keys: dict[str, str] = {}

    @property
    def takes(self) -> frozenset[str]:
        """Empty: it never runs beside a student."""
        return frozenset()

    @property
    def copied(self) -> Any:
        """A model without weights, for students that take sizes from the teacher's configuration."""
        return outline(self.head.auto_class, self.config, trust_remote_code=self._trusts)

    def gives(self) -> Gives:
        """Return what the answers give to objectives."""
        return GIVES

    def facts(self) -> Mapping[str, Any]:
        """Return epsilon, delta, and what they are for."""
        left_out = () if self.privacy.get("earlier answers") else ("of these answers", "earlier answers")
        told = {name: value for name, value in self.privacy.items() if name not in left_out}
        return {"privacy": told} if told else {}

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is."""
        number = len(self.folders)
        return f"The teacher here is the mean of {number} teachers on private rows, computed without noise."

    def distributions(
        self, index: int, splits: Mapping[str, Dataset], data: Prepared, args: TrainingArguments
    ) -> dict[str, Array]:
        """Return what a teacher says about the rows of some splits, float64 `(rows, classes)`.

        It is computed once: runs with other budgets, and a run that was interrupted, find it in the teacher's folder.

        Args:
            index: Which teacher.
            splits: Tokenised rows.
            data: The data they are from.
            args: Device, precision and batch size.

        Raises:
            NotFinite: A prediction is NaN or infinite.
        """
        said = Path(self.folders[index]) / SAID
        precision = "bf16" if args.bf16 else "fp32"
        files = {name: said / f"{self._key(split)}-{precision}.npy" for name, split in splits.items()}
        found = {name: known for name, file in files.items() if (known := _read(file)) is not None}
        if len(found) < len(splits):
            model = load_model(self.folders[index], self.head, own_head=True, trust_remote_code=self._trusts)[0]
            said.mkdir(exist_ok=True)
            for name in splits.keys() - found.keys():
                found[name] = _distributions(model, splits[name], data, args)
                content = io.BytesIO()
                np.save(content, found[name])
                write_atomic(files[name], content.getvalue())
        return found

    def _key(self, split: Dataset) -> str:
        name = str(split._fingerprint)  # of this object: each teacher is asked about the same one
        if name not in self._keys:
            self._keys[name] = dataset_fingerprint(without_examples(split))
        return self._keys[name]

    @property
    def runs_in_training(self) -> bool:
        """Always false."""
        return False

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Raise: students learn from the stored answers."""
        raise AssertionError("private teachers are asked once, not in training")


def _read(file: Path) -> Array | None:
    """Return a stored array; None if there is none, or a damaged one."""
    try:
        found: Array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found


def _distributions(model: PreTrainedModel, split: Dataset, data: Prepared, args: TrainingArguments) -> Array:
    """Return the distributions of a teacher, float64 `(rows, classes)`.

    Raises:
        NotFinite: A prediction is NaN or infinite.
    """
    from scipy.special import softmax

    opened: Any = model
    opened.eval().requires_grad_(False).to(args.device)
    recorder = Recorder(model, data.layout, Kept(outputs=("logits",)), bf16=args.bf16)
    collate = recorder.padding.collating(data.collator)
    order = np.argsort(split["length"], kind="stable")  # less padding
    found: list[Array] = [np.zeros(0)] * len(split)
    size = args.per_device_eval_batch_size
    for places in (order[first : first + size] for first in range(0, len(order), size)):
        examples = [{key: value for key, value in split[int(at)].items() if key not in NOT_READ} for at in places]
        batch = {key: value.to(args.device) for key, value in collate(examples).items()}
        for at, logits in zip(places, recorder(batch)["logits"], strict=True):
            found[at] = logits
    logits = np.array(found, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise NotFinite(
            f"the teacher in {model.name_or_path} predicts NaN or infinite logits. Train it at a lower rate."
        )
    return np.asarray(softmax(logits, axis=1))
