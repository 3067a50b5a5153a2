"""What a format is: it writes a finished student into a directory, and opens that again without PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer
from hf_distill.models.tokenizers import Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.export.options import ExportOptions

    # Name of an input or output -> its values.
    Arrays = Mapping[str, NDArray[Any]]

# Auto class of models that go on with a text.
WRITER = "AutoModelForCausalLM"


@dataclass(frozen=True)
class FinishedStudent:
    """A finished student, as it was saved.

    Attributes:
        directory: Its directory. Adapters are merged into their base when it is loaded.
        head: How to load it for its task.
        rows: Returns a number of tokenised train rows of all lengths, fewer if there are not as many; None without
            data.
        trust_remote_code: Whether its own Python code may run.
        reading: How it read long texts where it was trained and evaluated.
    """

    directory: Path
    head: Head
    rows: Callable[[int], Sequence[Mapping[str, Sequence[int]]]] | None = None
    trust_remote_code: bool = False
    reading: Reading = field(default_factory=Reading)

    @property
    def writes(self) -> bool:
        """Whether it goes on with a text."""
        return self.head.auto_class == WRITER

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its configuration; of adapters, that of the model they are merged into."""
        return open_config(str(self.directory), trust_remote_code=self.trust_remote_code)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model on the CPU, in float32 and eval mode."""
        known = not self.head.settings  # else they are those of its own data
        loaded, _ = load_model(str(self.directory), self.head, own_head=known, trust_remote_code=self.trust_remote_code)
        loaded.requires_grad_(False)
        return loaded

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the model computes."""
        return model_fingerprint(self.model)

    @cached_property
    def scratch(self) -> Path:
        """A directory for what several formats are made from; it is deleted with this object."""
        object.__setattr__(self, "_held", made := TemporaryDirectory(prefix="hf_distill-"))
        return Path(made.name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return open_tokenizer(str(self.directory), key="", trust_remote_code=self.trust_remote_code)


class Session(ABC):
    """An exported student, opened. It imports neither PyTorch nor Transformers.

    Attributes:
        inputs: Names of the inputs that it reads.
    """

    inputs: tuple[str, ...]

    @abstractmethod
    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Return the outputs by name: `logits`, `sentence_embedding`, or `start_logits` and `end_logits`, ...

        Args:
            batch: `input_ids`, `attention_mask`, ...: int64 `(batch, tokens)`. What it does not read is ignored.
        """

    def alone(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Return what the script beside it returns for a text.

        Args:
            batch: As when called.
        """
        return self(batch)


class Format(ABC):
    """A way to store a student so that it runs without PyTorch.

    Attributes:
        name: As in a recipe, and of the folder beside the student.
        needs: Modules that writing and opening need, beside those that are always installed.
        exact: Whether the outputs are those of PyTorch but for rounding. If they differ more, that is an error.
        weights: What the weights are, for the report.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[bool] = False
    weights: ClassVar[str] = "float32"

    @abstractmethod
    def refuses(self, auto_class: str, config: PretrainedConfig) -> str | None:
        """Return why such a student cannot be written, and what works instead; None if it can. Loads no weights.

        Args:
            auto_class: Name of the Auto class of the student's task.
            config: The student's configuration.
        """

    def settings(self, options: ExportOptions) -> dict[str, Any]:
        """Return those of the options on which the files depend."""
        return {}

    def reads(self, options: ExportOptions) -> int:
        """Return how many train rows are read to write it; 0 for none."""
        return 0

    @abstractmethod
    def write(self, student: FinishedStudent, into: Path, options: ExportOptions) -> None:
        """Write the files of a student into an empty directory, also those that it needs there to be run.

        Args:
            student: The finished student.
            into: The directory.
            options: Section `export` of the recipe.

        Raises:
            UserError: It cannot be written; one line says why.
        """

    @abstractmethod
    def open(self, directory: Path, threads: int | None = None) -> Session:
        """Return what was written, ready to run.

        Args:
            directory: Where it was written.
            threads: Number of CPU threads; None for the library's default.
        """
