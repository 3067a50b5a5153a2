"""Settings of a model's own `generation_config`, which do not change what it writes here."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from hf_distill.formatting import readable

if TYPE_CHECKING:
    from torch import nn

# What does not change the distribution of the tokens.
_HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens"),
    *("do_sample", "use_cache", "cache_implementation", "cache_config", "transformers_version", "compile_config"),
    *("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}


def ignored(model: nn.Module) -> dict[str, Any]:
    """Return those settings of a model's `generation_config` that would change what it writes, by name."""
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return {}
    found = {name: value for name, value in config.to_diff_dict().items() if not name.startswith("_")}
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return {
        name: value
        for name, value in found.items()
        if name not in _HARMLESS and value is not None and value != plain.get(name)
    }


def warn_ignored(model: nn.Module) -> None:
    """Warn in one line which settings of a model's `generation_config` are not used, if there are any."""
    if found := ignored(model):
        listed = ", ".join(f"{name}: {value}" for name, value in found.items())
        warnings.warn(
            readable(
                f"generation_config.json of the model that writes the completions is not used, but for its ends of "
                f"text ({listed}): tokens are drawn from the model's own distribution, as `completions` says."
            ),
            stacklevel=2,
        )
