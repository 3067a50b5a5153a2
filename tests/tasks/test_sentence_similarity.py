"""Sentence similarity: from texts to vectors, similarities, objectives, a run, and what others can open."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, NEUTRAL, POSITIVE
from prepared import batch, dataset
from runs import run, weights
from sentence_models import copied, describe
from versions import CHECKPOINTING

from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.models.match import match
from hf_distill.models.needs import Gives
from hf_distill.models.pooling import Encoding, Prompts
from hf_distill.models.sentence_encoder import encoding_of, sentence_encoder
from hf_distill.models.sentence_files import read_encoding
from hf_distill.objectives import Labels, LogitsMSE, MarginMSE, SentenceEmbedding, SimilarityMatrix
from hf_distill.objectives.base import Comparison
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.tasks import Prepared, SentenceSimilarity, Setup, TextClassification

Array = np.ndarray[Any, Any]
TEXTS = ["the film is great", "a dull story with a very boring cast and a bad plot .", "fresh"]
PAIRS = ["a wonderful film", "the plot was stale", "clever , funny and moving !"]
OTHERS = ["awful", "this scene is charming", "the cast"]


def prepare(model: Path, train: Any, eval: Any = None, *, max_length: int | None = 64, **task: Any) -> Prepared:
    return SentenceSimilarity(**task).prepare(
        {"train": train, "eval": train if eval is None else eval},
        Setup(tokenizer=open_tokenizer(str(model)), teacher=open_config(str(model)), max_length=max_length),
    )


def alone(directory: Path, text: str, pooling: str = "mean", normalize: bool = False, limit: int = 64) -> Array:
    """Return the vector of one text by AutoModel and NumPy: no batch, no padding, none of our code."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        states = model(**tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")).last_hidden_state[0]
    exact = states.double().numpy()
    vector: Array = exact.mean(0) if pooling == "mean" else exact[0 if pooling == "cls" else -1]
    return vector / np.linalg.norm(vector) if normalize else vector


def cosine(one: Array, other: Array) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.fixture(scope="module")
def bert(make_model: Any) -> Path:
    path: Path = make_model("bert-bare", layers=2)
    return path


# ---- The encoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize(("kind", "side"), [("bert-bare", "right"), ("llama", "right"), ("llama", "left")])
def test_vectors_are_those_of_each_text_alone(
    kind: str, side: str, pooling: Any, normalize: bool, make_model: Any
) -> None:
    """Padding in the mean, a first token that is padding, or texts put back in the wrong places: all train."""
    path = make_model(kind, layers=2)
    tokenizer = open_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = side
    from hf_distill.tasks.sentence_similarity import PadTexts

    names = tokenizer(["a"]).keys()
    rows = [
        {name: [tokenizer(text)[name] for text in texts] for name in names}
        for texts in zip(TEXTS, PAIRS, OTHERS, strict=True)
    ]
    from transformers import AutoModel

    model = sentence_encoder(AutoModel.from_pretrained(path).eval(), Encoding(pooling, normalize))
    inputs = {key: value for key, value in PadTexts(tokenizer)(rows).items() if key != "token_type_ids"}
    assert inputs["input_ids"].shape[:2] == (3, 3)
    with torch.no_grad():
        found = model(**inputs).sentence_embedding.numpy()
        single = model(input_ids=inputs["input_ids"][:, 1], attention_mask=inputs["attention_mask"][:, 1])
    np.testing.assert_allclose(single.sentence_embedding.numpy(), found[:, 1], atol=1e-5)
    for texts, vectors in zip((TEXTS, PAIRS, OTHERS), found.transpose(1, 0, 2), strict=True):
        wanted = [alone(path, text, pooling, normalize) for text in texts]
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_hidden_states_are_in_the_order_of_fold(bert: Path) -> None:
    """Objectives on layers sum their sequences by example: with another order each gets its neighbour's."""
    model, _ = load_model(str(bert), prepare(bert, dataset(text=TEXTS, text_pair=PAIRS)).head)
    prepared = prepare(bert, dataset(text=TEXTS, text_pair=PAIRS))
    inputs = batch(prepared)
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    mask = SimilarityRows().tokens(inputs)
    means = (outputs.last_hidden_state * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    wanted = torch.cat((outputs.sentence_embedding[:, 0], outputs.sentence_embedding[:, 1]))
    torch.testing.assert_close(means, wanted)
    lengths = [len(one) + len(other) for one, other in prepared.train["input_ids"]]
    assert SimilarityRows().units(inputs)["token"].tolist() == lengths


def test_what_is_saved_is_the_plain_backbone(bert: Path, tmp_path: Path) -> None:
    """One key more, or another name in config.json, and the student is a model that nobody else can load."""
    from transformers import AutoModel

    plain = AutoModel.from_pretrained(bert)
    encoding = Encoding("cls", True, 24)
    model = sentence_encoder(AutoModel.from_pretrained(bert), encoding)
    model.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path / "plain")
    config, wanted = (json.loads((place / "config.json").read_text()) for place in (tmp_path, tmp_path / "plain"))
    assert config == wanted
    assert config["architectures"] == ["BertModel"]
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(plain)
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in again.state_dict().items())
    assert read_encoding(again.config) == encoding
    ours = type(model).from_pretrained(tmp_path)
    assert encoding_of(ours) == encoding
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert all(torch.equal(value, plain.state_dict()[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("encoding", [Encoding("mean", False, 64), Encoding("cls", True, 6)])
def test_sentence_transformers_opens_it(encoding: Encoding, bert: Path, tmp_path: Path) -> None:
    """The files beside the weights are for that package: it must find the same vectors, cut at the same length."""
    import sentence_transformers as package
    from transformers import AutoModel

    sentence_encoder(AutoModel.from_pretrained(bert), encoding).save_pretrained(tmp_path)
    open_tokenizer(str(bert)).save_pretrained(tmp_path)
    found = package.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    limit = encoding.max_length or 64
    wanted = [alone(bert, text, encoding.pooling, encoding.normalize, limit) for text in TEXTS]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_another_pooling_is_another_model(bert: Path) -> None:
    """A fine-tuned teacher is found again by its fingerprint: one that pools in another way is not the one."""
    from transformers import AutoModel

    made = [
        sentence_encoder(AutoModel.from_pretrained(bert), Encoding(pooling, normalize))
        for pooling, normalize in (("mean", False), ("cls", False), ("mean", True))
    ]
    assert len({model_fingerprint(model) for model in [*made, AutoModel.from_pretrained(bert)]}) == 4


# ---- What sentence-transformers says ---------------------------------------------------------------------------------

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.pooling."


READ: dict[str, tuple[list[str], dict[str, Any], dict[str, Any], Encoding]] = {
    "before 6": (
        [f"{OLD}Transformer", f"{OLD}Pooling"],
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {},
        Encoding("cls"),
    ),
    "normalised": (
        [f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Normalize"],
        {"pooling_mode_mean_tokens": True},
        {"sentence_bert_config": {"max_seq_length": 128, "do_lower_case": False}},
        Encoding("mean", True, 128),
    ),
    "from 6 on": (
        ["sentence_transformers.base.modules.transformer.Transformer", f"{NEW}Pooling"],
        {"pooling_mode": "cls"},
        {"config_sentence_transformers": {"prompts": {"query": "", "document": "d: "}, "default_prompt_name": None}},
        Encoding("cls", prompts=Prompts((("query", ""), ("document", "d: ")))),
    ),
}


@pytest.mark.parametrize(("modules", "pooling", "files", "wanted"), READ.values(), ids=READ)
def test_its_settings_are_read(
    modules: list[str], pooling: dict[str, Any], files: dict[str, Any], wanted: Encoding, bert: Path, tmp_path: Path
) -> None:
    """A teacher pooled otherwise than it was trained gives other vectors, and not a word."""
    path = describe(copied(bert, tmp_path / "model"), *modules, pooling=pooling, **files)
    assert read_encoding(open_config(str(path))) == wanted


@pytest.mark.parametrize(
    ("modules", "pooling", "files", "says"),
    [
        (["m.Transformer", "m.Pooling", "m.CNN"], None, {}, "it is made of Transformer, Pooling, CNN"),
        (["m.WordEmbeddings", "m.Pooling", "m.LSTM"], None, {}, "it is made of WordEmbeddings, Pooling, LSTM"),
        (["m.BoW", "m.Dense"], None, {}, "it is made of BoW, Dense"),
        (["m.Transformer", "m.Pooling", "m.Normalize", "m.Dense"], None, {}, "Pooling, Normalize, Dense"),
        (["m.Transformer", "own_code.Pooling"], None, {}, "Transformer, own_code.Pooling"),
        (["m.Transformer", "m.Pooling"], {"pooling_mode": ["mean", "min"]}, {}, "it pools by mean and min"),
        (["m.Transformer", "m.Pooling"], {"pooling_mode_first": True}, {}, "it pools by pooling_mode_first"),
        (
            ["m.Transformer", "m.Pooling"], None,
            {"config_sentence_transformers": {"prompts": {"q": "query: "}, "default_prompt_name": "p"}},
            "default prompt 'p' is not among its prompts (q)",
        ),
        (["m.Transformer", "m.Pooling"], None, {"sentence_bert_config": {"do_lower_case": True}}, "it lower-cases"),
    ],
)  # fmt: skip
def test_what_is_not_reproduced_is_refused(
    modules: list[str], pooling: Any, files: dict[str, Any], says: str, bert: Path, tmp_path: Path
) -> None:
    """A teacher without its last layer is another teacher."""
    path = describe(copied(bert, tmp_path / "model"), *modules, pooling=pooling, **files)
    with pytest.raises(UserError, match="is not supported") as caught:
        SentenceSimilarity().check_model(open_config(str(path)))
    assert says in caught.value.mistakes[0]
    assert caught.value.key == "model"


def test_a_broken_file_is_one_line(bert: Path, tmp_path: Path) -> None:
    """Half a download would be pooled by the default."""
    path = describe(copied(bert, tmp_path / "model"), "m.Transformer", "m.Pooling")
    (path / "modules.json").write_text("[{", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot tell how .* its modules.json cannot be read"):
        read_encoding(open_config(str(path)))


def test_models_that_cannot_be_pooled_are_refused() -> None:
    """The first state of a decoder, or a picture's, is no vector of a text."""
    from transformers import CLIPConfig, T5Config

    for config, says in ((T5Config(), "an encoder and a decoder"), (CLIPConfig(), "more than one input")):
        with pytest.raises(UserError, match=says):
            SentenceSimilarity().check_model(config)


def test_each_model_keeps_its_own_pooling(bert: Path, make_model: Any, tmp_path: Path) -> None:
    """A student with files of its own must not be pooled like its teacher; one without is, or as the recipe says."""
    teacher = describe(
        copied(bert, tmp_path / "teacher"), "m.Transformer", "m.Pooling", "m.Normalize",
        pooling={"pooling_mode": "cls"}, sentence_bert_config={"max_seq_length": 7},
    )  # fmt: skip
    own = describe(copied(make_model("bert-bare", layers=1), tmp_path / "own"), "m.Transformer", "m.Pooling")
    for task, plain in (({}, Encoding("cls", True, 7)), ({"pooling": "mean"}, Encoding("mean", True, 7))):
        prepared = prepare(teacher, dataset(text=TEXTS), **task)
        assert max(prepared.train["length"]) == 7
        found = {path: load_model(str(path), prepared.head)[0] for path in (teacher, own, bert)}
        assert encoding_of(found[teacher]) == Encoding("cls", True, 7)
        assert encoding_of(found[own]) == Encoding("mean", False, 7)
        assert encoding_of(found[bert]) == plain


def test_a_backbone_without_its_weights_is_refused(make_model: Any, tmp_path: Path) -> None:
    """Layers that the checkpoint lacks would start from random weights, in a teacher as well."""
    from safetensors.torch import load_file, save_file

    path = copied(make_model("bert-bare", layers=2), tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "layer.1." not in key}, path / "model.safetensors")
    with pytest.raises(UserError, match="are missing or of another size"):
        load_model(str(path), prepare(path, dataset(text=TEXTS)).head)


# ---- Rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_rows_are_the_pairs(texts: int) -> None:
    """The loss is divided by counts made from the batch alone: they must be those of the rows."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, texts, 5, generator=generator, dtype=torch.float64)
    inputs = {"input_ids": torch.ones(4, texts, 6), "labels": torch.tensor([0.5, math.nan, 1.0, -1.0])}
    layout = SimilarityRows()
    logits = layout.logits({"sentence_embedding": vectors})
    rows = layout.select(logits, logits * 2, inputs)
    counts = layout.units(inputs)
    paired = texts > 1
    assert counts["row"].tolist() == [float(paired)] * 4
    assert counts["label"].tolist() == [float(paired), 0, float(paired), float(paired)]
    assert counts["example"].tolist() == [1.0] * 4
    assert counts["token"].tolist() == [6.0 * texts] * 4
    assert counts["triple"].tolist() == [float(texts == 3)] * 4
    assert rows.examples == 4
    assert len(rows.student) == len(rows.labels) == len(rows.example) == 4 * paired
    if paired:
        wanted = [cosine(*example[:2]) for example in vectors.numpy()]
        np.testing.assert_allclose(rows.student[:, 0], wanted)
        assert rows.teacher is not None
        np.testing.assert_allclose(rows.teacher[:, 0], [2 * one for one in wanted])
        np.testing.assert_array_equal(rows.labels, inputs["labels"].double())
    else:
        assert logits.shape == (4, 1)
        assert logits.isnan().all()


# ---- Objectives ------------------------------------------------------------------------------------------------------


def compare(student: Array, teacher: Array) -> Comparison:
    ours, theirs = ({"sentence_embedding": torch.from_numpy(one)} for one in (student, teacher))
    inputs = {"input_ids": torch.ones(*student.shape[:2], 3, dtype=torch.long)}
    layout = SimilarityRows()
    rows = layout.select(layout.logits(ours), layout.logits(theirs), inputs)
    return Comparison(rows=rows, student=ours, teacher=theirs, inputs=inputs, tokens=layout.tokens(inputs))


def vectors(texts: int, width: int, seed: int) -> Array:
    found: Array = np.random.default_rng(seed).normal(size=(4, texts, width))
    return found


def models(bert: Path, make_model: Any, width: int = 32) -> tuple[Any, Any]:
    from transformers import AutoModel

    student = make_model("bert-bare", layers=1, hidden_size=width)
    return tuple(sentence_encoder(AutoModel.from_pretrained(path)) for path in (student, bert))  # type: ignore[return-value]


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize(("loss", "width"), [("mse", 32), ("cosine", 32), ("mse", 16), ("cosine", 16)])
def test_sentence_embedding_against_numpy(loss: Any, width: int, texts: int, bert: Path, make_model: Any) -> None:
    """A sum over dimensions, or over texts, is the published loss times a number that nobody asked for."""
    student, teacher = vectors(texts, width, 0), vectors(texts, 32, 1)
    term = SentenceEmbedding(loss=loss).prepare(*models(bert, make_model, width)).double()
    assert ("projection.weight" in term.state_dict()) == (width != 32)
    mapped = student if width == 32 else student @ term.state_dict()["projection.weight"].numpy().T
    if loss == "mse":
        wanted = ((mapped - teacher) ** 2).mean((1, 2))
    else:
        lengths = np.linalg.norm(mapped, axis=-1) * np.linalg.norm(teacher, axis=-1)
        wanted = (1 - (mapped * teacher).sum(-1) / lengths).mean(1)
    np.testing.assert_allclose(term(compare(student, teacher)).detach().numpy(), wanted)


def test_projection_is_asked_for_or_needed(bert: Path, make_model: Any) -> None:
    """A projection between equal widths lets the student's own vectors drift: only where it was asked for."""
    equal, narrow = models(bert, make_model), models(bert, make_model, 16)
    assert not SentenceEmbedding().prepare(*equal).state_dict()
    assert SentenceEmbedding(projection="always").prepare(*equal).state_dict()
    assert SentenceEmbedding().prepare(*narrow).state_dict()["projection.weight"].shape == (32, 16)


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_similarity_matrix_against_numpy(texts: int) -> None:
    """With a text's similarity to itself in the softmax, 1 for both models, the others hardly count."""
    from scipy.special import rel_entr, softmax

    student, teacher = vectors(texts, 6, 0), vectors(texts, 9, 1)

    def neighbours(one: Array) -> Array:
        unit = one.reshape(-1, one.shape[-1]) / np.linalg.norm(one.reshape(-1, one.shape[-1]), axis=-1, keepdims=True)
        rows: Array = np.stack([np.delete(row, at) for at, row in enumerate(unit @ unit.T)])
        return np.asarray(softmax(rows / 0.2, axis=1))

    wanted = rel_entr(neighbours(teacher), neighbours(student)).sum(1).reshape(4, texts).mean(1)
    objective = SimilarityMatrix(temperature=0.2)
    np.testing.assert_allclose(objective.per_example(compare(student, teacher)).numpy(), wanted)
    assert objective.within_batch
    same = objective.per_example(compare(teacher, teacher * 3))
    np.testing.assert_allclose(same, 0, atol=1e-12)
    alone = objective.per_example(compare(student[:1, :1], teacher[:1, :1]))
    assert alone.tolist() == [0.0]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_margin_mse_against_numpy(similarity: Any) -> None:
    """The margin is of the same text to two others; a negative taken for the text gives a number all the same."""
    student, teacher = vectors(3, 6, 0), vectors(3, 9, 1)

    def margin(one: Array) -> Array:
        if similarity == "dot":
            return np.asarray([text @ fitting - text @ other for text, fitting, other in one])
        return np.asarray([cosine(text, fitting) - cosine(text, other) for text, fitting, other in one])

    objective = MarginMSE(similarity=similarity)
    found = objective.per_example(compare(student, teacher))
    np.testing.assert_allclose(found.numpy(), (margin(student) - margin(teacher)) ** 2)
    assert objective.per_example(compare(student[:, :2], teacher[:, :2])).tolist() == [0.0] * 4


def test_half_precision_is_compared_in_float32() -> None:
    """A cosine in bfloat16 has two digits: most differences between two models are gone."""
    student, teacher = (torch.randn(4, 3, 64).bfloat16() for _ in range(2))
    outputs = {"sentence_embedding": student}, {"sentence_embedding": teacher}
    inputs = {"input_ids": torch.ones(4, 3, 2)}
    layout = SimilarityRows()
    rows = layout.select(layout.logits(outputs[0]), layout.logits(outputs[1]), inputs)
    assert rows.student.dtype == torch.float32
    comparison = Comparison(rows=rows, student=outputs[0], teacher=outputs[1], inputs=inputs, tokens=torch.ones(12, 2))
    exact = compare(student.double().numpy(), teacher.double().numpy())
    for objective in (SimilarityMatrix(), MarginMSE()):
        found = objective.per_example(comparison)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), objective.per_example(exact), rtol=1e-4, atol=1e-4)


def test_models_without_vectors_are_refused(bert: Path) -> None:
    """`None` compared with `None` must not be a loss of zero."""
    with pytest.raises(ValueError, match="compares sentence embeddings, and a model has none"):
        SimilarityMatrix().per_example(
            Comparison(rows=None, student={}, teacher={}, inputs={}, tokens=torch.ones(1, 1))
        )  # type: ignore[arg-type]


# ---- Data ------------------------------------------------------------------------------------------------------------


def test_texts_become_lists_of_tokens(bert: Path) -> None:
    """Texts joined to one input, as a pair of a classifier is, would have one vector for both."""
    prepared = prepare(
        bert, dataset(text=TEXTS, text_pair=PAIRS, negative=OTHERS, label=[0.0, 5.0, None]), score_range=[0, 5]
    )
    tokenizer = open_tokenizer(str(bert))
    row = prepared.train[0]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in row["input_ids"]] == [
        TEXTS[0], PAIRS[0], OTHERS[0],
    ]  # fmt: skip
    assert row["length"] == max(len(ids) for ids in row["input_ids"])
    inputs = batch(prepared)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["input_ids"].shape[:2] == (3, 3)
    np.testing.assert_array_equal(inputs["labels"], [0.0, 1.0, math.nan])
    assert prepared.evaluator.names == ("spearman", "pearson")
    assert prepared.labelled


def test_scores_are_mapped_to_those_of_a_cosine(bert: Path) -> None:
    """`labels` is the squared distance of cosine and score: from 0 to 5, no cosine would ever be near one."""
    scores = [1, 3, 5]
    prepared = prepare(bert, dataset(text=TEXTS, text_pair=PAIRS, label=scores), score_range=[1, 5])
    assert batch(prepared)["labels"].tolist() == [0.0, 0.5, 1.0]
    kept = prepare(bert, dataset(text=TEXTS, text_pair=PAIRS, label=[-1.0, 0.25, 1.0]))
    assert batch(kept)["labels"].tolist() == [-1.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("columns", "task", "key", "says"),
    [
        ({"text_pair": PAIRS, "label": [0.0, 2.5, 5.0]}, {}, "columns.label", "score_range: [lowest, highest]"),
        ({"text_pair": PAIRS, "label": [0.0, 2.5, 6.0]}, {"score_range": [0, 5]}, "columns.label", "go from 0 to 6"),
        ({"text_pair": PAIRS, "label": ["a", "b", "c"]}, {}, "columns.label", "numbers"),
        ({"text_pair": PAIRS, "label": [[0.5, 1.0]] * 3}, {}, "columns.label", "wanted one for each pair"),
        ({"label": [0.0, 0.5, 1.0]}, {}, "columns.text_pair", "a score, but no second text"),
        ({"negative": OTHERS}, {}, "columns.text_pair", "a negative, but no second text"),
        ({"text_pair": ["a", None, "a"]}, {}, "columns.text_pair", "1 of 3 entries"),
        ({"text_pair": [1, 2, 3]}, {}, "columns.text_pair", "wanted text"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit(columns: dict[str, Any], task: dict[str, Any], key: str, says: str, bert: Path) -> None:
    """A user's mistake is one line, with the column at fault."""
    with pytest.raises(UserError) as caught:
        prepare(bert, dataset(text=TEXTS, **columns), **task)
    (line,) = caught.value.mistakes
    assert caught.value.key == key
    assert says in line


def test_objectives_that_need_more_texts_are_refused(bert: Path) -> None:
    """Without a second text there is no row: the loss would be zero from the first step on, and look like success."""
    single, pairs = (prepare(bert, dataset(text=TEXTS, **more)) for more in ({}, {"text_pair": PAIRS}))
    task = SentenceSimilarity()
    task.check((SentenceEmbedding(), SimilarityMatrix()), single)
    task.check((LogitsMSE(),), pairs)
    for objective, prepared, role in ((LogitsMSE(), single, "text_pair"), (MarginMSE(), pairs, "negative")):
        with pytest.raises(UserError, match=f"there is no '{role}'") as caught:
            task.check((SentenceEmbedding(), objective), prepared)
        assert caught.value.key == "objectives[1]"
    with pytest.raises(UserError, match="needs labels"):
        task.check((Labels(),), pairs)
    for objective in (SentenceEmbedding(), SimilarityMatrix(), MarginMSE()):
        with pytest.raises(UserError, match="is for sentence-similarity"):
            match(objective.needs(), Gives.everything(), TextClassification().facts())


# ---- Training --------------------------------------------------------------------------------------------------------


def test_a_pooler_without_gradient_is_looked_for(bert: Path, tmp_path: Path) -> None:
    """No vector passes a backbone's pooler, whatever the objective: with activation checkpointing DDP, told not to look
    for unused parameters, fails in the second step."""
    from transformers import AutoModel

    from hf_distill import DistillationArguments, DistillationTrainer

    student, teacher = (sentence_encoder(AutoModel.from_pretrained(bert)) for _ in range(2))
    args = DistillationArguments(output_dir=str(tmp_path), report_to="none", **CHECKPOINTING)
    trainer = DistillationTrainer(student, args, teacher=teacher, objectives=[LogitsMSE()])
    (handler,) = trainer._build_accelerator_args()["kwargs_handlers"]
    assert handler.find_unused_parameters


def test_figures_are_those_of_the_formulas(bert: Path, make_model: Any, tmp_path: Path) -> None:
    """All splits of a step could agree on a wrong number: a wrong divisor, a text of another example, padding counted.

    The reference runs every text alone and takes the formulas in NumPy.
    """
    from hf_distill import DistillationArguments, DistillationTrainer

    student_path = make_model("bert-bare", layers=1)
    texts = [[*TEXTS, "a film", "the bad plot ."], [*PAIRS, "scene", "very dull , and stale"], [*OTHERS, "it", "great"]]
    scores = [0.5, None, 0.0, 1.0, 0.25]
    prepared = prepare(bert, dataset(text=texts[0], text_pair=texts[1], negative=texts[2], label=scores))
    (student, _), (teacher, _) = (load_model(str(path), prepared.head) for path in (student_path, bert))
    objectives = (SentenceEmbedding(weight=2.0), LogitsMSE(), Labels(weight=0.5), MarginMSE(weight=0.1))
    arguments = DistillationArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=1,
        per_device_eval_batch_size=2, logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    student.config.hidden_dropout_prob = student.config.attention_probs_dropout_prob = 0.0
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = DistillationTrainer(
        student, arguments, teacher=teacher, objectives=objectives, train_dataset=prepared.train,
        eval_dataset=prepared.eval, data_collator=prepared.collator,
    )  # fmt: skip
    assert trainer.layout == SimilarityRows()
    evaluated = trainer.evaluate()
    trainer.train()

    ours, theirs = (
        np.asarray([[alone(path, text) for text in column] for column in texts]).transpose(1, 0, 2)
        for path in (student_path, bert)
    )
    cosines, wanted = (np.asarray([cosine(*example[:2]) for example in one]) for one in (ours, theirs))
    margins = [[text @ fitting - text @ other for text, fitting, other in one] for one in (ours, theirs)]
    known = [at for at, score in enumerate(scores) if score is not None]
    figures = {
        "sentence_embedding": ((ours - theirs) ** 2).mean(),
        "logits_mse": ((cosines - wanted) ** 2).mean(),
        "labels": np.mean([(cosines[at] - float(scores[at] or 0)) ** 2 for at in known]),
        "margin_mse": ((np.asarray(margins[0]) - np.asarray(margins[1])) ** 2).mean(),
    }
    loss = sum(objective.weight * figures[objective.name] for objective in objectives)  # type: ignore[operator]
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for prefix, found in (("eval_", evaluated), ("", log)):
        for name, value in figures.items():
            assert found[f"{prefix}objective/{name}"] == pytest.approx(value, rel=1e-4)
        assert found[f"{prefix}loss"] == pytest.approx(loss, rel=1e-4)
        assert f"{prefix}agreement" not in found


# ---- A whole run -----------------------------------------------------------------------------------------------------


def sentence(chance: random.Random, mood: Sequence[str]) -> str:
    words = [*(chance.choice(NEUTRAL) for _ in range(chance.randint(1, 6))), chance.choice(mood), chance.choice(mood)]
    chance.shuffle(words)
    return " ".join(words)


def write_recipe(
    directory: Path, teacher: Path, *, paired: bool = True, negative: bool = False, **sections: Any
) -> Path:
    chance = random.Random(0)
    for name, count in (("train", 32), ("validation", 14)):
        lines = []
        for index in range(count):
            one = (POSITIVE, NEGATIVE)[index % 2]
            other = (POSITIVE, NEGATIVE)[index // 2 % 2]
            row: dict[str, Any] = {"sentence1": sentence(chance, one)}
            if paired or name == "validation":
                row |= {"sentence2": sentence(chance, other), "score": round(4.0 * (one is other) + chance.random(), 2)}
            if negative and name == "train":
                row["other"] = sentence(chance, NEGATIVE)
            lines.append(json.dumps(row))
        (directory / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = {"text": "sentence1"} | ({"text_pair": "sentence2", "label": "score"})
    recipe = {
        "task": {"name": "sentence-similarity", "score_range": [0, 5]},
        "data": {
            "path": {name: str(directory / f"{name}.jsonl") for name in ("train", "validation")},
            "columns": columns | ({"negative": "other"} if negative else {}),
        },
        "teacher": {"name": "pretrained", "model": str(teacher)},
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": [{"name": "sentence_embedding"}, {"name": "similarity_matrix", "weight": 0.2}],
        "training": {
            "output_dir": str(directory / "out"), "per_device_train_batch_size": 8, "per_device_eval_batch_size": 5,
            "num_train_epochs": 2, "learning_rate": 1e-3, "disable_tqdm": True, "report_to": "none",
        },
        "report": {"latency": False},
    } | sections  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def spearman(directory: Path, data: Path, **encoding: Any) -> float:
    from scipy.stats import spearmanr

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    cosines = [
        cosine(alone(directory, row["sentence1"], **encoding), alone(directory, row["sentence2"], **encoding))
        for row in rows
    ]
    return float(spearmanr(cosines, [row["score"] for row in rows]).statistic)


def test_a_run_from_pairs_to_report(bert: Path, tmp_path: Path) -> None:
    """The reported figures must be those of the saved student, opened by others; and the student must have learned."""
    teacher = describe(
        copied(bert, tmp_path / "teacher"), "m.Transformer", "m.Pooling", pooling={"pooling_mode": "cls"}
    )
    objectives = [
        {"name": "sentence_embedding"}, {"name": "logits_mse"}, {"name": "labels", "weight": 0.1},
        {"name": "similarity_matrix", "weight": 0.1}, {"name": "hidden", "weight": 0.1},
    ]  # fmt: skip
    report = run(write_recipe(tmp_path, teacher, objectives=objectives, report={"baseline": True, "latency": False}))
    assert report.metric == "spearman"
    assert report.agreement is None
    assert report.baseline is not None
    assert report.eval_rows == 14
    assert report.chance is not None
    for name, place in (("teacher", teacher), ("student", tmp_path / "out")):
        wanted = spearman(place, tmp_path / "validation.jsonl", pooling="cls")
        assert report.models[name].metrics["spearman"] == pytest.approx(wanted, abs=1e-4)
    config = open_config(str(tmp_path / "out"))
    assert config.architectures == ["BertModel"]
    assert config.num_hidden_layers == 1
    assert read_encoding(config) == Encoding("cls", False, 64)
    logs = [log for log in report.history["student"] if "eval_objective/sentence_embedding" in log]
    assert logs[-1]["eval_objective/sentence_embedding"] < logs[0]["eval_objective/sentence_embedding"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card
    assert 'SentenceTransformer("out")' in card
    assert "pipeline(" not in card  # Transformers has none for this task
    again = run(tmp_path / "recipe.yaml")  # found finished, loaded from the directory, judged alike
    assert again.student.metrics == report.student.metrics


def test_single_texts_are_learned_and_pairs_judged(bert: Path, tmp_path: Path) -> None:
    """Any text teaches; a train split without pairs must not have to look like the eval split."""
    report = run(write_recipe(tmp_path, bert, paired=False))
    wanted = spearman(tmp_path / "out", tmp_path / "validation.jsonl")
    assert report.student.metrics["spearman"] == pytest.approx(wanted, abs=1e-4)


def test_a_narrow_student_of_triples(bert: Path, tmp_path: Path) -> None:
    """What is learned besides the student stays out of it, and an objective without triples has no eval figure."""
    from safetensors.torch import load_file

    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    objectives = [{"name": "sentence_embedding", "loss": "cosine"}, {"name": "margin_mse", "similarity": "cosine"}]
    report = run(
        write_recipe(
            tmp_path, bert, negative=True, objectives=objectives, student={"name": "from_config", "overrides": narrow}
        )
    )
    weights = load_file(tmp_path / "out" / "model.safetensors")
    from transformers import AutoModel

    assert weights.keys() == AutoModel.from_config(open_config(str(tmp_path / "out"))).state_dict().keys()
    assert all(value.shape[-1] != 24 for value in weights.values())
    history = report.history["student"]
    assert any("objective/margin_mse" in log for log in history)
    evaluated = [log for log in history if "eval_loss" in log]
    assert evaluated
    assert all("eval_objective/margin_mse" not in log for log in evaluated)
    assert all(math.isfinite(log["eval_loss"]) for log in evaluated)
    wanted = spearman(tmp_path / "out", tmp_path / "validation.jsonl")
    assert report.student.metrics["spearman"] == pytest.approx(wanted, abs=1e-4)


def test_each_model_reads_its_own_tokens(bert: Path, make_model: Any, tmp_path: Path) -> None:
    """Vectors are compared by text: a student with another tokenizer learns as well, if each gets its own tokens."""
    other = make_model("roberta", layers=1)
    report = run(write_recipe(tmp_path, bert, student={"name": "pretrained", "model": str(other)}))
    for name, place in (("teacher", bert), ("student", tmp_path / "out")):
        wanted = spearman(place, tmp_path / "validation.jsonl")
        assert report.models[name].metrics["spearman"] == pytest.approx(wanted, abs=1e-4)


def test_a_teacher_is_fine_tuned_on_scores(bert: Path, tmp_path: Path) -> None:
    """Cosines trained to the scores: on those it has seen, the teacher is better than what it was made from."""
    teacher = {"name": "finetuned", "model": str(bert), "training": {"num_train_epochs": 8, "learning_rate": 2e-3}}
    recipe = json.loads(write_recipe(tmp_path, bert).read_text(encoding="utf-8"))
    data = {**recipe["data"], "splits": {"train": "train", "eval": "train"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "teacher": teacher, "data": data}), encoding="utf-8")
    assert run(path).teacher.metrics["spearman"] > spearman(bert, tmp_path / "train.jsonl") + 0.3


def test_mistakes_come_before_weights(bert: Path, make_model: Any, tmp_path: Path) -> None:
    """A teacher that cannot be reproduced must not cost a download first."""
    dense = describe(copied(bert, tmp_path / "dense"), "m.Transformer", "m.Pooling", "m.CNN")
    (dense / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"teacher\.model: its modules\.json describes"):
        run(write_recipe(tmp_path, dense))
    objectives = [{"name": "margin_mse"}]
    with pytest.raises(UserError, match=r"objectives\[0\]: 'margin_mse' compares three texts"):
        run(write_recipe(tmp_path, bert, objectives=objectives))


# ---- Margins that are given, and translations ------------------------------------------------------------------------


def test_given_margins_stand_in_for_the_teachers(bert: Path) -> None:
    """A cross-encoder's margins in the column of scores were read as similarities, and the teacher taught its own."""
    mine, theirs = vectors(3, 6, 1), vectors(3, 6, 2)
    comparison = compare(mine, theirs)
    given = np.array([2.5, -7.25, 0.0, 11.0, 1.0])[: len(mine)]
    inputs = {**comparison.inputs, "margin": torch.tensor(given)}
    found = MarginMSE().per_example(dataclasses.replace(comparison, inputs=inputs)).numpy()
    wanted = (mine[:, 0] * (mine[:, 1] - mine[:, 2])).sum(-1) - given
    np.testing.assert_allclose(found, wanted**2, rtol=1e-6)
    prepared = prepare(bert, dataset(text=TEXTS, text_pair=PAIRS, negative=OTHERS, margin=[3, -8, 1]))
    assert batch(prepared)["margin"].tolist() == [3.0, -8.0, 1.0]
    assert "margin" in prepared.layout.columns


@pytest.mark.parametrize(
    ("columns", "key", "says"),
    [
        ({"text_pair": PAIRS, "margin": [1.0, 2.0, 3.0]}, "columns.negative", "no negative"),
        ({"text_pair": PAIRS, "negative": OTHERS, "margin": [1.0, math.nan, 3.0]}, "columns.margin", "row 1"),
        ({"text_pair": PAIRS, "negative": OTHERS, "margin": ["a", "b", "c"]}, "columns.margin", "wanted numbers"),
        ({"text_pair": PAIRS, "negative": OTHERS, "label": [2.5, 0.1, 7.0]}, "columns.label", "margin: ..."),
        ({"translation": PAIRS, "label": [0.1, 0.2, 0.3]}, "columns.label", "a single text"),
        ({"translation": [None, *PAIRS[1:]]}, "columns.translation", "missing"),
    ],
)
def test_margins_and_translations_that_do_not_fit(columns: dict[str, Any], key: str, says: str, bert: Path) -> None:
    """Each of them would be trained on, or left out, in silence."""
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        prepare(bert, dataset(text=TEXTS, **columns))
    assert caught.value.key == key


def test_a_translation_is_read_by_the_student_alone(bert: Path, make_model: Any, tmp_path: Path) -> None:
    """As a second text it was read by the teacher too, which does not know the language: the student learned that."""
    from invariants.cases import arguments

    from hf_distill import DistillationTrainer

    student, teacher = models(bert, make_model)
    prepared = prepare(bert, dataset(text=TEXTS, translation=PAIRS))
    trainer = DistillationTrainer(
        student,
        arguments(tmp_path),
        teacher=teacher,
        objectives=[SentenceEmbedding()],
        layout=prepared.layout,
        eval_dataset=prepared.eval,
        data_collator=prepared.collator,
    )
    figures = trainer.evaluate()
    tokenizer = open_tokenizer(str(bert))

    def vector(model: Any, text: str) -> Array:
        with torch.no_grad():
            found: Array = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0).numpy()
        return found

    wanted = np.mean(
        [
            np.mean([(vector(student, one) - vector(teacher, text)) ** 2 for one in (text, other)])
            for text, other in zip(TEXTS, PAIRS, strict=True)
        ]
    )
    assert figures["eval_objective/sentence_embedding"] == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(UserError, match="does not go with translations"):
        SentenceSimilarity().check((SimilarityMatrix(),), prepared)


# Adam turns the rounding of a gradient that is nearly 0 into a whole step.
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "bf16": False}


def test_a_cached_teacher_reads_single_texts_and_pairs(bert: Path, tmp_path: Path) -> None:
    """Texts to learn from, pairs to evaluate on: a batch of both ended in an IndexError while targets were stored.

    With bf16, accelerate took the pooling off with its autocast: the report of every such run ended in a traceback.
    """
    train, pairs = tmp_path / "train.jsonl", tmp_path / "pairs.jsonl"
    train.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    scored = enumerate(zip(TEXTS, reversed(TEXTS), strict=True))
    rows = [{"text": one, "text_pair": other, "label": n / len(TEXTS)} for n, (one, other) in scored]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    live = {"name": "pretrained", "model": str(bert)}
    figures = []
    for entry in (live, {"name": "cached", "teacher": live, "path": str(tmp_path / "targets")}):
        out = tmp_path / str(entry["name"])
        recipe = {
            "task": "sentence-similarity",
            "data": {"path": {"train": str(train), "validation": str(pairs)}},
            "teacher": entry,
            "student": {"name": "copy_layers", "layers": 1},
            "objectives": [{"name": "sentence_embedding"}],
            "training": {"output_dir": str(out), "max_steps": 2, "disable_tqdm": True, **SGD, "bf16": True},
            "report": {"latency": False},
        }
        path = tmp_path / f"{out.name}.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        models = run(path).models
        figures.append([models[name].metrics["spearman"] for name in ("teacher", "student")])
    assert figures[1] == pytest.approx(figures[0], abs=0.05)


@pytest.mark.parametrize("teacher", ["pretrained", "cached"])
def test_a_run_on_translations(teacher: str, bert: Path, tmp_path: Path) -> None:
    """Both roads to the teacher's vectors give the same student."""
    rows = [{"english": one, "german": other} for one, other in zip(TEXTS * 3, PAIRS * 3, strict=True)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = []
    for name in dict.fromkeys(("pretrained", teacher)):
        entry: dict[str, Any] = {"name": "pretrained", "model": str(bert)}
        if name == "cached":
            entry = {"name": "cached", "teacher": entry, "precision": "float32"}
        recipe = {
            "task": "sentence-similarity",
            "data": {
                "path": {"train": str(data), "validation": str(data)},
                "columns": {"text": "english", "translation": "german"},
            },
            "teacher": entry,
            "student": {"name": "copy_layers", "layers": 1},
            "objectives": [{"name": "sentence_embedding"}],
            "training": {"output_dir": str(tmp_path / name), "max_steps": 2, "disable_tqdm": True, **SGD},
            "report": {"latency": False},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        run(path)
        found.append(weights(tmp_path / name))
    for key, value in found[0].items():
        torch.testing.assert_close(found[-1][key], value, rtol=1e-4, atol=1e-5)
