"""A teacher behind a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.servers import Servers
from hf_distill.teachers.base import FineTune, Teacher, config_of_student

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.models.needs import Gives
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task

Top = Annotated[int, Field(ge=0)] | Literal["all"]
# More than any vocabulary has.
_ALL = 2**31


@component
class ServedTeacher(Teacher):
    """A language model behind a server of vLLM or SGLang, which is sent tokens and gives their log-probabilities.

    The server must have the student's tokenizer. Answers are checked, and stored by what was asked: a run that was
    killed, a second epoch and another seed ask nothing twice.

    Attributes:
        url: Address of the server, such as `http://localhost:8000`, or of several with the same model.
        model: What the server calls the model.
        api: Kind of the server: `vllm` or `sglang`. Servers that only speak the protocol of `openai` score no given
            tokens.
        top: How many of the likeliest tokens are asked for at each place, as `all` or a number. vLLM gives at most 20
            unless it is started with `--max-logprobs`. With 0, only the probability of the text's own tokens.
        key: Name of the environment variable with the server's key, never the key itself. Default: no key.
        concurrency: How many requests are under way at once, in each process.
        timeout: Seconds to wait for an answer.
        path: Directory for the answers. Default: a folder in the cache of `datasets`, shared by all runs.
        local: Directory or Hub id of the same model: a few tokens' log-probabilities are compared with its own before
            the first step. Default: none.
    """

    name: ClassVar[str] = "served"

    url: str | list[str]
    model: str
    api: Literal["vllm", "sglang", "openai"] = "vllm"
    top: Top = 20
    key: str | None = None
    concurrency: Annotated[int, Field(gt=0)] = 16
    timeout: Annotated[float, Field(gt=0)] = 300.0
    path: str | None = None
    local: str | None = None

    def __post_init__(self) -> None:
        """Refuse addresses that cannot be used."""
        try:
            _ = self.servers
        except UserError as error:
            raise ValueError(f"{error.key or 'url'}: {error}") from None

    @property
    def servers(self) -> Servers:
        """The servers."""
        urls = (self.url,) if isinstance(self.url, str) else tuple(self.url)
        return Servers(urls, self.key or "", self.concurrency, self.timeout)

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens are asked for; more than there are for all."""
        return self.top if isinstance(self.top, int) else _ALL

    @property
    def source(self) -> None:
        """Nothing: the model is not here, and its name is the server's own."""
        return

    @property
    def is_without_model(self) -> bool:
        """Always true: its rows are over the student's tokens."""
        return True

    @property
    def writes(self) -> bool:
        """Whether its server goes on with tokens as vLLM's does."""
        return self.api == "vllm"

    @property
    def writes_elsewhere(self) -> bool:
        """Always true: its server writes."""
        return True

    @property
    def has_head(self) -> bool:
        """Always false: there is no checkpoint."""
        return False

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Empty: no model is trained first."""
        return ()

    def config(self) -> PretrainedConfig:
        """Return a default configuration, because there is no checkpoint."""
        from transformers import PretrainedConfig

        return PretrainedConfig()

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the student's checkpoint.

        Raises:
            UserError: The student is to be made from the teacher.
        """
        return config_of_student(student, "the teacher is behind a server")

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        count = len(self.servers.urls)
        where = "a server" if count == 1 else f"{count} servers"
        return f"{self.model} behind {where} of {self.api}"

    def check_task(self, task: Task) -> None:
        """Refuse another task than text generation, servers that cannot score, and a key that is not there."""
        if task.name != "text-generation":
            raise UserError(
                f"a server gives log-probabilities of tokens, for text-generation, but the task is {task.name}. Take a "
                "model as the teacher: {name: pretrained, model: ...}.",
                key="name",
            )
        if self.api == "openai":
            raise UserError(
                "servers that speak the protocol of OpenAI give log-probabilities of tokens that they write, not of "
                "given ones. Let such a model write completions first, and learn from them as data (objectives: "
                "[{name: labels}]); or serve it with vLLM or SGLang (api: vllm).",
                key="api",
            )
        self.servers.check_key()

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse models with different tokens."""
        if pair.left_out or pair.own_tokens:
            raise UserError(
                "the recipe's tokenizer and the student's differ, and the tokens that are sent to the server are those "
                "of both. Leave out tokenizer."
            )

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the server gives to objectives."""
        from hf_distill.rows.inferred import vocabulary
        from hf_distill.teachers.served.source import gives

        return gives(self.likeliest, None if pair is None else vocabulary(pair.student, pair.teacher, pair.tokenizer))

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data, with a line about what it costs to ask for all of it."""
        from hf_distill.teachers.served.cost import cost_in_words

        prepared, stored = super().prepare(task, splits, beside, setup, pair)
        classes = getattr(prepared.layout, "classes", None) or self.likeliest
        line = cost_in_words(prepared, min(self.likeliest, classes), setup.completions)
        return replace(prepared, shown=(*prepared.shown, line)), stored

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return the source that asks the server."""
        from hf_distill.teachers.served.answers import Answers
        from hf_distill.teachers.served.apis import APIS
        from hf_distill.teachers.served.source import ServedRows

        return ServedRows(self.servers, APIS[self.api], self.model, self.likeliest, Answers(self.path), self.local)
