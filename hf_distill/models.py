"""Finding and opening models: Hub ids, local paths, `package:NAME/PATH`; a user's mistake is one line."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "package:"


@dataclass(frozen=True)
class Head:
    """What the task wants of a model: the Auto class that loads it and the settings of its head.

    Attributes:
        auto_class: Name of a `transformers` Auto class, e.g. `"AutoModelForSequenceClassification"`.
        settings: Configuration overrides: `num_labels`, `id2label`, `problem_type`, `pad_token_id`, ...
    """

    auto_class: str
    settings: dict[str, Any] = field(default_factory=dict)


def resolve(location: str, key: str = "model") -> str:
    """Return what `from_pretrained` and `load_dataset` understand.

    `package:NAME/PATH` becomes the path inside the installed package (the package is located, not imported);
    a local path must exist; anything else is taken as a Hub id.

    Raises:
        UserError: The package is not installed, or the path is not there.
    """
    if location.startswith(PACKAGE):
        package, _, inside = location.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"no Python package '{package}' is installed here. Install it with pip.", key=key)
        path = Path(spec.submodule_search_locations[0]) / inside
        if not path.exists():
            raise UserError(f"the package '{package}' has no '{inside}' inside (looked for {path}).", key=key)
        return str(path)
    path = Path(location).expanduser()
    if path.exists():
        return str(path)
    if _looks_like_path(location):
        raise UserError(f"no such file or directory: {location} (looked from {Path.cwd()}).", key=key)
    return location


def _looks_like_path(location: str) -> bool:
    # A Hub id is `name` or `user/name`; everything else can only have been meant as a path.
    return location.startswith((".", "/", "~")) or location.count("/") > 1 or "\\" in location


def open_config(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return a model's configuration.

    Raises:
        UserError: It is not there, not reachable, or not a Transformers model.
    """
    from transformers import AutoConfig

    where = resolve(model)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open '{model}': {_first_line(error)}", key="model") from error
    return config


def has_head(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether a checkpoint was saved with the head that `auto_class` gives (`...ForSequenceClassification`)."""
    ending = auto_class.removeprefix("AutoModel")
    return any(name.endswith(ending) for name in config.architectures or [])


def open_tokenizer(model: str, *, key: str = "tokenizer", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer.

    Raises:
        UserError: The model has none, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    where = resolve(model, key)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open the tokenizer of '{model}': {_first_line(error)}", key=key) from error
    return tokenizer


def load_model(
    model: str,
    head: Head,
    *,
    own_head: bool = False,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with the task's head.

    Args:
        model: Hub id, local path or `package:NAME/PATH`.
        head: The task's Auto class and head settings.
        own_head: Keep the checkpoint's own label settings instead of the task's.
        dtype: Of the weights. The default is float32, not the checkpoint's: a student trained in pure bfloat16
            loses most of its small updates.
        revision: Git revision on the Hub.
        trust_remote_code: Run model code from the checkpoint.

    Returns:
        The model in eval mode, and the names of weights that the checkpoint did not hold (a new head, usually).

    Raises:
        UserError: It is not there, not reachable, or holds no safetensors.
    """
    import transformers

    auto_class = getattr(transformers, head.auto_class)
    labels = ("num_labels", "id2label", "label2id", "problem_type") if own_head else ()
    settings = {key: value for key, value in head.settings.items() if key not in labels}
    where = resolve(model)
    try:
        loaded, info = auto_class.from_pretrained(
            where,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load '{model}' with {head.auto_class}: {_first_line(error)}", key="model") from error
    return loaded.eval(), sorted(info["missing_keys"])


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
