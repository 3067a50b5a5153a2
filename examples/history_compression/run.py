"""History compression (Schmidhuber 1992, Neural Computation 4(2)): a chunker teaches an automatizer to remember.

    python examples/history_compression/run.py

A sequence begins with one of two symbols, drawn at random. Then come the same symbols every time, as many as `LAG`, and
at the end the first one again. To predict the end, a network has to carry one bit over the whole sequence.

1. The automatizer learns to predict the next symbol. It learns all of the middle, and guesses the end.
2. What it still fails to predict, the first and the last symbol, is all that the chunker sees: in its history they are
   neighbours, and it learns at once that the last is the first. The automatizer learns to predict the symbols as before
   and, at every step, the chunker's memory. So it has to carry the bit itself, step by step.
3. Now it predicts the end. Nothing is left for the chunker but the first symbol, which nobody can predict: it is not
   needed any more.

The twin of the automatizer, which trains on symbols alone for as many steps, still guesses.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.objectives import Hidden, Labels
from hf_distill.rows import TokenRows
from hf_distill.teachers.mutual import Mutual

sys.path.insert(0, str(Path(__file__).parent))
from models import Automatizer, Chunker, RecurrentConfig

LAG = 40
ROWS = 512
# Probability below which a symbol is a surprise.
SURE = 0.9


def sequences(seed: int, rows: int = ROWS, lag: int = LAG) -> Dataset:
    """Return sequences: one of the symbols 0 and 1, then 2, 3, 4, ... in order, then the first again."""
    first = np.random.default_rng(seed).integers(0, 2, (rows, 1))
    middle = np.broadcast_to(np.arange(2, 2 + lag), (rows, lag))
    symbols = np.concatenate([first, middle, first], 1)
    return Dataset.from_dict({"input_ids": symbols.tolist(), "labels": symbols.tolist()})


@torch.no_grad()
def predictions(model: Automatizer, data: Dataset) -> Tensor:
    """Return the probability of each symbol before it comes, `(rows, length - 1, symbols)`; none for the first."""
    return model.eval()(torch.tensor(data["input_ids"])).logits[:, :-1].softmax(-1)


def with_surprises(model: Automatizer, data: Dataset) -> Dataset:
    """Return the sequences with the symbols of which the model was not sure, 1 in the column `surprising`."""
    symbols = torch.tensor(data["input_ids"])
    given = predictions(model, data).gather(-1, symbols[:, 1:, None])[..., 0]
    surprising = torch.ones_like(symbols)  # nothing comes before the first
    surprising[:, 1:] = given < SURE
    return data.add_column("surprising", surprising.tolist())


def train(model: Automatizer, data: Dataset, directory: Path, steps: int, chunker: Chunker | None = None) -> None:
    """Train an automatizer: on the symbols and, if there is a chunker that learns meanwhile, on its memory."""
    args = DistillationArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        seed=1,
    )
    hidden = Hidden(weight=10.0, layers=((1, 1),), projection="always")
    trainer = DistillationTrainer(
        model=model,
        args=args,
        teacher=None if chunker is None else Mutual([chunker], online=True),
        objectives=[Labels()] if chunker is None else [Labels(), hidden],
        layout=TokenRows(shift=True),  # as in any causal language model: position i predicts symbol i + 1
        train_dataset=data,
        data_collator=lambda rows: {key: torch.tensor([row[key] for row in rows]) for key in rows[0]},
    )
    trainer.train()


def at_the_end(model: Automatizer, data: Dataset) -> float:
    """Return in how many of the sequences the model predicts the last symbol, as a share."""
    last = torch.tensor(data["input_ids"])[:, -1]
    return float((predictions(model, data)[:, -1].argmax(-1) == last).float().mean())


def run(directory: Path, *, lag: int = LAG, steps: int = 400, seed: int = 1) -> Iterator[tuple[str, float]]:
    """Yield what was trained, and how often it predicts the last symbol of new sequences."""
    set_seed(seed)
    config = RecurrentConfig(vocab_size=lag + 2)
    data, held_out = sequences(1, lag=lag), sequences(2, lag=lag)
    automatizer = Automatizer(config)
    train(automatizer, data, directory, steps)
    yield "automatizer alone", at_the_end(automatizer, held_out)
    twin = copy.deepcopy(automatizer)
    train(twin, data, directory, steps)
    yield "automatizer alone, twice as long", at_the_end(twin, held_out)
    seen = with_surprises(automatizer, data)
    yield "symbols that the chunker sees in a sequence", np.sum(seen["surprising"], 1).mean()
    train(automatizer, seen, directory, steps, Chunker(config))
    yield "automatizer taught by the chunker", at_the_end(automatizer, held_out)
    left = with_surprises(automatizer, held_out)
    yield "symbols left for the chunker", np.sum(left["surprising"], 1).mean()


def main() -> int:
    """Run it and print the results."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, value in run(Path(scratch)):
            print(f"{name:<45} {value:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
