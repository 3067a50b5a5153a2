"""What the student writes after the same prompts at the start and in the middle of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_distill import parallel
from hf_distill.completions.backends import TransformersBackend
from hf_distill.completions.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

# Key of the texts in an entry of `log_history`, which checkpoints hold: so a resumed training has those from before.
SAMPLES = "samples"
# Longest text that is kept, in characters; a prompt keeps its end.
LONGEST = 1000

Histories = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Sampler:
    """Lets models write after the same few prompts, always with the same draws.

    Attributes:
        prompts: Token ids of each prompt.
        tokenizer: Tokenizer of the models.
        sampling: How tokens are drawn.
        seed: Seed of the draws.
    """

    prompts: Sequence[Sequence[int]]
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    seed: int

    def write(self, model: Any) -> list[str]:
        """Return what a model writes, with special tokens; processes share the work, and all get all texts."""
        own = parallel.share_of(len(self.prompts))
        prompts = [self.prompts[place] for place in own]
        writer = TransformersBackend().open(model, self.tokenizer)
        made = writer.write(prompts, self.sampling, self.seed + parallel.rank()) if prompts else []
        found = dict(chain.from_iterable(parallel.from_all(list(zip(own, made, strict=True)))))
        texts = (self._text(found[place].ids) for place in range(len(self.prompts)))
        return [text if len(text) <= LONGEST else f"{text[:LONGEST]} ..." for text in texts]

    def shown(self) -> list[str]:
        """Return the prompts as text, with special tokens."""
        texts = (self._text(ids) for ids in self.prompts)
        return [text if len(text) <= LONGEST else f"... {text[-LONGEST:]}" for text in texts]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


class SampleTexts(TrainerCallback):
    """Lets the student write before its training and in the middle; the report adds what it writes at the end.

    Args:
        sampler: Has the prompts.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Write before the first step, but not where a training is resumed."""
        if state.global_step == 0:
            self._write(state, others["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Write after half of the steps, before a checkpoint of that step is saved."""
        if state.global_step == state.max_steps // 2:
            self._write(state, others["model"])

    def _write(self, state: TrainerState, model: Any) -> None:
        if not any(SAMPLES in entry and entry["step"] == state.global_step for entry in state.log_history):
            entry: Any = {"step": state.global_step, SAMPLES: self._sampler.write(model)}
            state.log_history.append(entry)


def samples_of(histories: Histories) -> dict[str, list[tuple[int, list[str]]]]:
    """Return training -> step and texts of each time that its student wrote."""
    found = {
        name: [(int(entry["step"]), list(entry[SAMPLES])) for entry in history if SAMPLES in entry]
        for name, history in histories.items()
    }
    return {name: entries for name, entries in found.items() if entries}


def without_samples(histories: Histories) -> dict[str, list[Mapping[str, Any]]]:
    """Return histories without the texts."""
    return {name: [entry for entry in history if SAMPLES not in entry] for name, history in histories.items()}
