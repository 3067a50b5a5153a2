"""The two recurrent models of history compression, as plain Transformers models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class RecurrentConfig(PretrainedConfig):
    """Sizes of a small recurrent network.

    Args:
        vocab_size: Number of symbols.
        hidden_size: Units of its memory.
    """

    model_type = "small_recurrent"

    def __init__(self, vocab_size: int = 32, hidden_size: int = 32, **others: object) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, 1
        super().__init__(**others)


class _Recurrent(PreTrainedModel):
    config_class = RecurrentConfig
    base_model_prefix = "body"

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def _init_weights(self, module: nn.Module) -> None:
        """Leave PyTorch's initial weights."""


class Automatizer(_Recurrent):
    """The lower network: reads every symbol and predicts the next one. It is the student, and all that is kept."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.memory = nn.RNN(config.hidden_size, config.hidden_size, batch_first=True)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> CausalLMOutput:
        """Return logits `(batch, length, symbols)` and, if asked, the states of embeddings and memory."""
        seen = self.embeddings(input_ids)
        states, _ = self.memory(seen)
        return CausalLMOutput(logits=self.head(states), hidden_states=(seen, states) if output_hidden_states else None)


class Chunker(_Recurrent):
    """The upper network: its memory moves only at symbols that the automatizer did not predict.

    Between two of them it stands still, so that events far apart in the sequence are neighbours in its history. Its
    prediction is from its memory and the current symbol, which it forgets at once unless that was a surprise.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.memory = nn.GRUCell(config.hidden_size, config.hidden_size)
        self.head = nn.Sequential(
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Linear(config.hidden_size, config.vocab_size),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, surprising: Tensor, output_hidden_states: bool = False) -> CausalLMOutput:
        """Return logits `(batch, length, symbols)` and, if asked, the states of embeddings and memory.

        Args:
            input_ids: Symbols, `(batch, length)`.
            surprising: 1 where the automatizer did not predict the symbol, `(batch, length)`.
            output_hidden_states: Whether states are wanted.
        """
        seen = self.embeddings(input_ids)
        state = seen.new_zeros(len(input_ids), self.config.hidden_size)
        states = []
        for at in range(input_ids.shape[1]):
            state = torch.where(surprising[:, at, None].bool(), self.memory(seen[:, at], state), state)
            states.append(state)
        kept = torch.stack(states, 1)
        logits = self.head(torch.cat([kept, seen], -1))
        return CausalLMOutput(logits=logits, hidden_states=(seen, kept) if output_hidden_states else None)
