"""Configurations with other sizes: what follows from a change, and which sizes go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError, did_you_mean
from hf_distill.models.inspection import OFFSET_POSITIONS, positions_of
from hf_distill.students.base import is_per_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Sizes of configurations that a cost changes together: numbers of layers, of heads, and widths.
DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers")
HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
WIDTHS = ("hidden_size", "intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "n_inner")

# Sizes that a configuration from the library's defaults takes from the teacher's, if both have them.
SHARED_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# Names of the width between a layer's two linear maps.
INNER = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "encoder_ffn_dim", "d_ff")


def default_config(model_type: str) -> PretrainedConfig:
    """Return the library's default configuration of an architecture.

    Raises:
        UserError: Transformers has no such architecture.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(model_type, sorted(CONFIG_MAPPING.keys()))
        raise UserError(f"Transformers has no architecture '{model_type}'.{hint}", key="model_type")
    config: PretrainedConfig = CONFIG_MAPPING[model_type]()
    return config


def like_teacher(base: PretrainedConfig, teacher: PretrainedConfig, given: dict[str, Any]) -> PretrainedConfig:
    """Return a default configuration with the sizes that the teacher has too.

    Args:
        base: The default configuration.
        teacher: The teacher's.
        given: Values that a recipe gives; they go before the teacher's.

    Raises:
        UserError: Such a model is not possible.
    """
    sizes = {**_sizes_of(teacher, base), **given}
    derived = outdated_keys(base, sizes) - given.keys()
    sizes = {key: value for key, value in sizes.items() if key not in derived}
    values = {key: value for key, value in base.to_dict().items() if key not in derived}
    try:
        return type(base).from_dict({**values, **sizes})
    except Exception as error:
        raise UserError(
            f"a {base.model_type} cannot have the teacher's sizes: {reason(error)} Give its own sizes here.",
            key="overrides",
        ) from error


def _sizes_of(teacher: PretrainedConfig, base: PretrainedConfig) -> dict[str, int]:
    """Return the teacher's sizes under the names that another configuration stores them by, if it has them."""

    def has(config: PretrainedConfig, key: str) -> bool:
        return isinstance(getattr(config, key, None), int)

    sizes: dict[str, int] = {key: getattr(teacher, key) for key in SHARED_SIZES if has(base, key) and has(teacher, key)}
    name = next((key for key in INNER if key in vars(base)), None)
    if name is not None and has(teacher, "hidden_size"):
        # Without the key it is four times the width, as in GPT-2.
        sizes[name] = next((getattr(teacher, key) for key in INNER if has(teacher, key)), 4 * teacher.hidden_size)
    if has(base, "head_dim") and has(teacher, "num_attention_heads"):
        sizes["head_dim"] = getattr(teacher, "head_dim", None) or teacher.hidden_size // teacher.num_attention_heads
    positions = positions_of(teacher)
    if positions is not None and has(base, "max_position_embeddings"):
        first = (teacher.pad_token_id or 0) + 1 if base.model_type in OFFSET_POSITIONS else 0
        sizes["max_position_embeddings"] = positions + first
    return {base.attribute_map.get(key, key): value for key, value in sizes.items()}


def proportional(base: PretrainedConfig) -> Iterator[dict[str, Any]]:
    """Yield layers and widths in the proportions of a configuration, the smallest first and the whole one last.

    The width of a head stays, and no shape has fewer keys and values than a narrower one. Where there are no heads,
    widths go in sixteenths.
    """
    heads, size = getattr(base, "num_attention_heads", None), getattr(base, "hidden_size", None)
    if not isinstance(size, int):
        raise UserError(
            f"{type(base).__name__} has no hidden_size to be scaled. Give overrides in place of a cost.",
            key="overrides",
        )
    steps = heads if isinstance(heads, int) and heads > 1 and size % heads == 0 else 16
    groups, fewest = getattr(base, "num_key_value_heads", None), 1
    for step in range(1, steps + 1):
        if size * step % steps:
            continue

        def part(whole: int, step: int = step) -> int:
            return max(1, round(whole * step / steps))

        sizes = {key: part(value) for key in DEPTHS if isinstance(value := getattr(base, key, None), int)}
        sizes |= {key: part(value) for key in WIDTHS if isinstance(value := getattr(base, key, None), int)}
        if steps == heads:
            sizes |= {key: step for key in HEADS if isinstance(getattr(base, key, None), int)}
            if isinstance(groups, int) and groups != heads:
                shared = max(one for one in range(1, part(groups) + 1) if step % one == 0)
                if shared < fewest:  # 31 heads can only share one key: this may cost less than a narrower shape
                    continue
                sizes["num_key_value_heads"] = fewest = shared
        # One name for each value, as the class stores it.
        yield {base.attribute_map.get(key, key): value for key, value in sizes.items()}


def vocabulary_of(theirs: PretrainedConfig, base: PretrainedConfig) -> dict[str, Any]:
    """Return the teacher's values for the keys that depend on the tokenizer: sizes and special tokens."""
    keys = [key for key in vars(base) if key.endswith("_token_id") or key in ("vocab_size", "type_vocab_size")]
    # The configuration of a teacher without segments (DistilBERT) has no number of them.
    return {key: getattr(theirs, key, None) for key in keys if hasattr(theirs, key) or key.endswith("_token_id")}


def outdated_keys(base: PretrainedConfig, given: dict[str, Any]) -> set[str]:
    """Return the keys that the configuration class must set again: about weights, and patterns over layers."""
    outdated = {"quantization_config", "dtype", "_name_or_path"} | _computed(base, given)
    layers = getattr(base, "num_hidden_layers", None)
    if given.get(base.attribute_map.get("num_hidden_layers", "num_hidden_layers"), layers) != layers:
        outdated |= {key for key, value in vars(base).items() if is_per_layer(key, value, layers)}
    return outdated


def _computed(base: PretrainedConfig, given: dict[str, Any]) -> set[str]:
    """Return the keys that the class computes from the given ones, unless a recipe gives them (Mamba's inner width)."""
    plain = type(base)()
    try:
        changed = type(base)(**given)
    except Exception:  # the values do not fit the defaults; whether they fit `base` shows later
        return set()
    differ = {
        key
        for key, value in vars(plain).items()
        if key not in given and not key.startswith("_") and getattr(changed, key, None) != value
    }
    values = base.to_dict()
    found: set[str] = set()
    for key in differ & values.keys():
        again = type(base).from_dict({name: value for name, value in values.items() if name != key})
        if getattr(again, key, None) == getattr(base, key, None):
            found.add(key)
    return found


def consequences(base: PretrainedConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return new values for keys that depend on the overridden ones."""

    def new(name: str) -> Any:
        stored = base.attribute_map.get(name, name)
        return given.get(stored, getattr(base, stored, None))

    follows: dict[str, Any] = {}
    heads, size = getattr(base, "num_attention_heads", None), getattr(base, "hidden_size", None)
    if isinstance(new("num_attention_heads"), int) and isinstance(new("hidden_size"), int) and heads and size:
        if getattr(base, "num_key_value_heads", None) == heads:
            follows["num_key_value_heads"] = new("num_attention_heads")
        if isinstance(getattr(base, "head_dim", None), int) and base.head_dim * heads == size:
            follows["head_dim"] = new("hidden_size") // max(new("num_attention_heads"), 1)
    return {key: value for key, value in follows.items() if key in vars(base)}


def check_heads(config: PretrainedConfig) -> None:
    """Refuse sizes with which a model can be built but cannot run, or that make no sense."""
    layers, size = getattr(config, "num_hidden_layers", 1), getattr(config, "hidden_size", None)
    heads, groups = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if isinstance(layers, int) and layers < 1:
        raise UserError(f"num_hidden_layers is {layers}; want at least 1.", key="overrides")
    if not isinstance(heads, int) or not isinstance(size, int):
        return
    if heads < 1 or (size % heads and not getattr(config, "head_dim", None)):
        raise UserError(f"hidden_size {size} cannot be divided by num_attention_heads {heads}.", key="overrides")
    if isinstance(groups, int) and (groups < 1 or heads % groups):
        raise UserError(
            f"num_attention_heads {heads} cannot be divided by num_key_value_heads {groups}.", key="overrides"
        )


def check_start(config: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse a decoder beside an encoder that does not know its first token, which a teacher without one cannot say."""
    known = getattr(config, "decoder_start_token_id", None) is not None
    if config.is_encoder_decoder and not teacher.is_encoder_decoder and not known:
        raise UserError(
            f"the decoder of a {config.model_type} has to know with which token it starts, and the teacher has none "
            "for that. Choose another architecture.",
            key="name",
        )


def reason(error: Exception) -> str:
    """Return the message of a configuration class in one line."""
    # huggingface_hub's strict dataclasses put the cause on a separate line.
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
