"""Optional packages: is one here, and what does the line say where it is not?"""

from __future__ import annotations

import importlib.util

from hf_distill.errors import UserError

# Module -> what pip is asked for, where that is not the module's name with dashes. The extras are this project's own.
PIP = {
    **dict.fromkeys(("rouge_score", "sacrebleu"), "'hf-distill[text]'"),
    **dict.fromkeys(("torchao", "bitsandbytes"), "'hf-distill[quantization]'"),
    "gguf": "'hf-distill[gguf]'",
    "peft": "'hf-distill[peft]'",
    "azure_ml": "azureml-sdk",
    "flyte": "flytekit",
    "galore_torch": "git+https://github.com/jiaweizzhao/GaLore",
    "apollo_torch": "git+https://github.com/zhuhanqing/APOLLO",
    "torchdistx": "git+https://github.com/pytorch/torchdistx",
}


def is_here(package: str) -> bool:
    """Whether a package is here, in a version that Transformers takes where it asks for one."""
    from transformers import utils

    test = getattr(utils, f"is_{package}_available", None)
    return importlib.util.find_spec(package) is not None if test is None else bool(test())


def missing(package: str, by: str) -> str:
    """Return the line about a package that is not here.

    >>> missing("wandb", "'wandb'")
    "'wandb' needs the package wandb, which is not installed here: pip install wandb"
    """
    name = package.replace("_", "-")
    return f"{by} needs the package {name}, which is not installed here: pip install {PIP.get(package, name)}"


def require(package: str, by: str, key: str = "") -> None:
    """Refuse what needs a package that is not here.

    Args:
        package: Name of its module.
        by: What needs it, as the recipe says it.
        key: Of the recipe.

    Raises:
        UserError: With what to install.
    """
    if not is_here(package):
        raise UserError(missing(package, by), key=key)
