"""The table of augmentations: a recipe's name -> the class that makes further train rows."""

from __future__ import annotations

from hf_distill.augmentations.tinybert import TinyBertAugmentation
from hf_distill.data.augmentation import Augmentation

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "tinybert": TinyBertAugmentation,
}

__all__ = ["AUGMENTATIONS", "Augmentation", "TinyBertAugmentation"]
