"""Presets: what other systems minimise when nothing is set. `preset: NAME` in a recipe stands for the list.

What a preset cannot say is how a system reduces rows to a number. Here it is always the mean over the rows (labels) of
the optimiser step; `docs/loss.md` has what others divide by, and `tests/test_conformance.py` the numbers they report.
"""

from __future__ import annotations

from hf_distill.objectives.base import Objective
from hf_distill.objectives.logits import Labels
from hf_distill.objectives.softened import (
    AdaptiveKL,
    DecoupledKL,
    JensenShannon,
    KLDivergence,
    SkewedReverseKL,
    SoftCrossEntropy,
)

PRESETS: dict[str, tuple[Objective, ...]] = {
    # AKL.py of Wu et al. 2024, arXiv 2404.02657.
    "akl": (AdaptiveKL(head_mass=0.5),),
    # run_distillation.py: 0.8 CE + kl_weight KL.
    "distil_whisper": (KLDivergence(temperature=2.0), Labels(weight=0.8)),
    # The published run: alpha_ce 5, alpha_mlm 2, T 2. Its third term, alpha_cos 1, compares hidden states, not logits.
    "distilbert": (KLDivergence(weight=5.0, temperature=2.0), Labels(weight=2.0)),
    # Its default loss_functions.
    "distillkit": (KLDivergence(weight=0.5), Labels(weight=0.5)),
    # Its scripts: --type adaptive-srkl --skew-alpha 0.1 --kd-ratio 1.0; here on the data, not on the student's texts.
    "distillm": (SkewedReverseKL(skew=0.1),),
    # mdistiller's defaults; there the second term is warmed up over the first 20 epochs.
    "dkd": (Labels(), DecoupledKL(temperature=4.0, target_weight=1.0, non_target_weight=8.0)),
    # Agarwal et al. 2024 as in TRL's GKDTrainer, beta 0.5, whose temperature is for sampling only; here on the data.
    "gkd": (JensenShannon(teacher_share=0.5),),
    # kd_loss_fn kl, kd_ratio 0.5, kd_temperature 1; it would not be squared.
    "kdflow": (KLDivergence(weight=0.5, temperature_squared=False), Labels(weight=0.5)),
    # LogitsDistillationLoss() as its KDTrainer for Transformers uses it.
    "modelopt": (KLDivergence(),),
    # Its modifier's defaults: hardness 0.5, T 2.
    "sparseml": (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)),
    # DistillationConfig: kd_loss_type ce, T 4, hard_label_weight 0.
    "textbrewer": (SoftCrossEntropy(temperature=4.0, temperature_squared=False),),
    # ForwardKLLoss, kd_ratio 0.5; it has no temperature, and leaves the teacher's entropy in.
    "torchtune": (SoftCrossEntropy(weight=0.5), Labels(weight=0.5)),
    # LogitStrategy's defaults.
    "tunix": (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)),
}
