"""What is compared. This table is the list of objectives; `presets.py` has lists that other systems are known for."""

from __future__ import annotations

from hf_distill.objectives.attention import Attention
from hf_distill.objectives.base import Comparison, Objective, RowObjective
from hf_distill.objectives.contrastive import Contrastive
from hf_distill.objectives.hidden import Embeddings, Hidden, Hint, Patient
from hf_distill.objectives.input_gradient import InputGradient
from hf_distill.objectives.logits import Labels, LogitsMSE, Ranking
from hf_distill.objectives.own_vocabulary import NearestTokens, UniversalLogit
from hf_distill.objectives.pairwise import Relational, SimilarityPreserving
from hf_distill.objectives.presets import PRESETS
from hf_distill.objectives.relations import Relations
from hf_distill.objectives.sampled import SampledReverseKL
from hf_distill.objectives.schedule import Schedule
from hf_distill.objectives.sentences import MarginMSE, SentenceEmbedding, SimilarityMatrix
from hf_distill.objectives.soft_targets import (
    AdaptiveKL,
    DecoupledKL,
    JensenShannon,
    KLDivergence,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    SoftCrossEntropy,
    TotalVariation,
)
from hf_distill.objectives.written import Span

OBJECTIVES: dict[str, type[Objective]] = {
    "kl": KLDivergence,
    "reverse_kl": ReverseKL,
    "reverse_kl_sampled": SampledReverseKL,
    "js": JensenShannon,
    "skewed_kl": SkewedKL,
    "skewed_reverse_kl": SkewedReverseKL,
    "adaptive_kl": AdaptiveKL,
    "total_variation": TotalVariation,
    "soft_cross_entropy": SoftCrossEntropy,
    "decoupled_kl": DecoupledKL,
    "uld": UniversalLogit,
    "mined": NearestTokens,
    "ranking": Ranking,
    "logits_mse": LogitsMSE,
    "labels": Labels,
    "span": Span,
    "hidden": Hidden,
    "embeddings": Embeddings,
    "attention": Attention,
    "patient": Patient,
    "hint": Hint,
    "relations": Relations,
    "similarity_preserving": SimilarityPreserving,
    "relational": Relational,
    "input_gradient": InputGradient,
    "contrastive": Contrastive,
    "sentence_embedding": SentenceEmbedding,
    "similarity_matrix": SimilarityMatrix,
    "margin_mse": MarginMSE,
}

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "AdaptiveKL",
    "Attention",
    "Comparison",
    "Contrastive",
    "DecoupledKL",
    "Embeddings",
    "Hidden",
    "Hint",
    "InputGradient",
    "JensenShannon",
    "KLDivergence",
    "Labels",
    "LogitsMSE",
    "MarginMSE",
    "NearestTokens",
    "Objective",
    "Patient",
    "Ranking",
    "Relational",
    "Relations",
    "ReverseKL",
    "RowObjective",
    "SampledReverseKL",
    "Schedule",
    "SentenceEmbedding",
    "SimilarityMatrix",
    "SimilarityPreserving",
    "SkewedKL",
    "SkewedReverseKL",
    "SoftCrossEntropy",
    "Span",
    "TotalVariation",
    "UniversalLogit",
]
