"""Presets: what other systems minimise when nothing is set. `preset: NAME` in a recipe stands for the list.

What a preset cannot say is how a system reduces rows to a number. Here it is always the mean over the rows (labels) of
the optimiser step; `docs/loss.md` has what others divide by, `tests/objectives/test_conformance.py` their numbers.
Terms on layers are means over pairs of layers and over the entries of a state, where some of the systems sum.
"""

from __future__ import annotations

from hf_distill.objectives.attention import Attention
from hf_distill.objectives.base import Objective
from hf_distill.objectives.hidden import Embeddings, Hidden, Patient
from hf_distill.objectives.logits import Labels
from hf_distill.objectives.relations import Relations
from hf_distill.objectives.sampled import SampledReverseKL
from hf_distill.objectives.soft_targets import (
    AdaptiveKL,
    DecoupledKL,
    JensenShannon,
    KLDivergence,
    ReverseKL,
    SkewedReverseKL,
    SoftCrossEntropy,
)

PRESETS: dict[str, tuple[Objective, ...]] = {
    # AKL.py of Wu et al. 2024, arXiv 2404.02657.
    "akl": (AdaptiveKL(head_mass=0.5),),
    # run_distillation.py: 0.8 CE + kl_weight KL.
    "distil_whisper": (KLDivergence(temperature=2.0), Labels(weight=0.8)),
    # The published run: alpha_ce 5, alpha_mlm 2, alpha_cos 1, T 2; the script's own defaults are others.
    "distilbert": (
        KLDivergence(weight=5.0, temperature=2.0),
        Labels(weight=2.0),
        Hidden(layers="last", loss="cosine"),
    ),
    # Its default loss_functions.
    "distillkit": (KLDivergence(weight=0.5), Labels(weight=0.5)),
    # Most of its scripts: --type adaptive-srkl --kd-ratio 1.0, and 0.1 as the default skew; some take adaptive-sfkl.
    # Here on the data, not on the student's texts, and without their second term, labels on another corpus.
    "distillm": (SkewedReverseKL(skew=0.1),),
    # mdistiller's defaults; there the second term is warmed up over the first 20 epochs.
    "dkd": (Labels(), DecoupledKL(temperature=4.0, target_weight=1.0, non_target_weight=8.0)),
    # Agarwal et al. 2024 as in TRL's GKDTrainer, beta 0.5, whose temperature is for sampling only. There the student
    # writes half of the texts (lmbda 0.5); here all are those of the data unless `completions` says otherwise.
    "gkd": (JensenShannon(teacher_share=0.5),),
    # kd_loss_fn kl, kd_ratio 0.5, kd_temperature 1; it would not be squared.
    "kdflow": (KLDivergence(weight=0.5, temperature_squared=False), Labels(weight=0.5)),
    # Its one-step term, the reverse KL on texts that student and teacher write; not the policy gradient over whole
    # texts beside it, and not its second term, labels on another corpus.
    "minillm": (ReverseKL(),),
    # Wang et al. 2020, arXiv 2002.10957: the last layer's attention and values, as many heads in both models. Not
    # checked against code, of which there is none.
    "minilm": (Relations(of=("attention", "values")),),
    # Wang et al. 2021, arXiv 2012.15828, for a teacher of BERT-base's size; as in bloomberg/minilmv2.bb, which is not
    # the authors'. Larger teachers: 64 relation heads (not checked) and another layer, see Relations.
    "minilmv2": (Relations(relation_heads=48),),
    # LMLogitsLoss(), the form of LogitsDistillationLoss that its KDTrainer for Transformers takes the token mean of.
    "modelopt": (KLDivergence(),),
    # The reverse KL on texts that the student writes, over the whole vocabulary.
    "on_policy_distillation": (ReverseKL(),),
    # Its predefined kd.cls: alpha 0.7, T 10, and beta 500 on the mean over 768 entries of what is a sum here.
    "pkd": (KLDivergence(weight=0.7, temperature=10.0), Labels(weight=0.3), Patient(weight=0.65, layers="skip")),
    # Its modifier's defaults: hardness 0.5, T 2.
    "sparseml": (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)),
    # DistillationConfig: kd_loss_type ce, T 4, hard_label_weight 0.
    "textbrewer": (SoftCrossEntropy(temperature=4.0, temperature_squared=False),),
    # train_on_policy.py of tinker-cookbook: advantage log p - log q of each token that the student drew.
    "thinking_machines": (SampledReverseKL(),),
    # Jiao et al. 2020: terms on layers and on predictions, all with weight 1; there in two stages, as sums over layers,
    # on scores of attention rather than probabilities, and with one projection, with a bias, for all layers.
    "tinybert": (
        Embeddings(),
        Hidden(projection="always"),
        Attention(),
        SoftCrossEntropy(),
    ),
    # ForwardKLLoss, kd_ratio 0.5; it has no temperature, and leaves the teacher's entropy in.
    "torchtune": (SoftCrossEntropy(weight=0.5), Labels(weight=0.5)),
    # LogitStrategy's defaults.
    "tunix": (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)),
}

# What the systems of some presets are is that the student writes: on texts of the data they are refused.
ON_OWN_TEXTS: dict[str, str] = {
    "minillm": "{by: mixture}",
    "on_policy_distillation": "{by: student}",
    "thinking_machines": "{by: student}",
}
