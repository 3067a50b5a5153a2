"""Sentence encoders as people have them: poolings, Dense layers, prompts; the numbers of sentence-transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import run, weights
from sentence_models import Array, copied, describe, layer, pooled, states

from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.models.pooling import MODES, Encoding
from hf_distill.models.sentence_encoder import encoding_of, sentence_encoder, vector_width
from hf_distill.models.sentence_files import read_encoding
from hf_distill.objectives import Hidden, SentenceEmbedding
from hf_distill.tasks import SentenceSimilarity, Setup

TEXTS = [
    "the film is great", "a dull story with a very boring cast and a bad plot .", "fresh", "a wonderful film",
    "the plot was stale", "clever , funny and moving !", "awful", "this scene is charming",
]  # fmt: skip
PLAIN = ("m.Transformer", "m.Pooling")
IDENTITY, GELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"


@pytest.fixture(scope="module")
def bert(make_model: Any) -> Path:
    path: Path = make_model("bert-bare", layers=2)
    return path


def padded(model: Path, side: str) -> Any:
    tokenizer = open_tokenizer(str(model))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = side
    return tokenizer


def prepare(teacher: Path, student: Path | None = None, tokenizer: Any = None, **columns: Sequence[Any]) -> Any:
    from datasets import Dataset

    split = Dataset.from_dict({"text": TEXTS, **columns})
    setup = Setup(
        tokenizer=tokenizer or open_tokenizer(str(teacher)),
        teacher=open_config(str(teacher)),
        student=None if student is None else open_config(str(student)),
        max_length=64,
    )
    return SentenceSimilarity().prepare({"train": split, "eval": split}, setup)


def encode(path: Path, side: str = "right", batch: int = 8) -> Array:
    """Return the vectors of all texts, on the road of a run: task, tokens, loaded model."""
    prepared = prepare(path, tokenizer=padded(path, side))
    model, _ = load_model(str(path), prepared.head)
    rows = [{key: value for key, value in row.items() if key != "length"} for row in prepared.train]
    found = []
    for start in range(0, len(rows), batch):
        inputs = prepared.collator(rows[start : start + batch])
        with torch.no_grad():
            found.append(
                model(**{key: inputs[key] for key in ("input_ids", "attention_mask")}).sentence_embedding[:, 0]
            )
    vectors: Array = torch.cat(found).numpy()
    return vectors


def unit(vectors: Array) -> Array:
    normal: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return normal


# ---- Poolings --------------------------------------------------------------------------------------------------------

SIDES = [("bert-bare", "right"), ("llama", "right"), ("llama", "left")]
POOLINGS: list[Sequence[str]] = [*((mode,) for mode in MODES), ("cls", "mean"), ("max", "weightedmean", "cls"), MODES]


@pytest.mark.parametrize("modes", POOLINGS, ids="+".join)
@pytest.mark.parametrize(("kind", "side"), SIDES)
def test_poolings_are_those_by_hand(
    kind: str, side: str, modes: Sequence[str], make_model: Any, tmp_path: Path
) -> None:
    """Padding in a maximum, positions counted from the padding, vectors in another order: all train."""
    path = describe(copied(make_model(kind, layers=2), tmp_path / "m"), *PLAIN, pooling={"pooling_mode": list(modes)})
    wanted = [pooled(states(path, text), modes) for text in TEXTS]
    for batch in (1, 8):
        np.testing.assert_allclose(encode(path, side, batch), wanted, atol=1e-5)


def test_old_keys_say_the_order_of_the_package(bert: Path, tmp_path: Path) -> None:
    """Files of older versions name true keys; which comes first in the file does not matter to the package."""
    keys = {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}
    path = describe(copied(bert, tmp_path / "m"), *PLAIN, pooling={**keys, "pooling_mode_cls_token": False})
    found = read_encoding(open_config(str(path)))
    assert found is not None
    assert found.pooling == ("max", "mean", "lasttoken")
    assert found.width(32) == 96
    nothing = describe(copied(bert, tmp_path / "none"), *PLAIN, pooling={"pooling_mode_mean_tokens": False})
    assert read_encoding(open_config(str(nothing))) == Encoding("mean")


@pytest.mark.parametrize("modes", [("max", "mean"), ("mean", "max")], ids="+".join)
def test_what_is_written_is_what_was_read(modes: Any, bert: Path, tmp_path: Path) -> None:
    """An order that the old keys cannot say would come back as another model."""
    from transformers import AutoModel

    encoding = Encoding(modes, True, 9)
    sentence_encoder(AutoModel.from_pretrained(bert), encoding).save_pretrained(tmp_path)
    assert read_encoding(open_config(str(tmp_path))) == encoding


# ---- Dense -----------------------------------------------------------------------------------------------------------


def with_dense(bert: Path, directory: Path, *, normalize: bool = True, out: int = 20) -> Path:
    """Return a model whose texts pass two layers."""
    modules = (*PLAIN, "m.Dense", "m.Dense", *["m.Normalize"] * normalize)
    dense = [layer(width_of(bert), 24, seed=1), layer(24, out, IDENTITY, bias=False, seed=2)]
    return describe(copied(bert, directory), *modules, dense=dense)


def width_of(model: Path) -> int:
    width: int = open_config(str(model)).hidden_size
    return width


def by_hand(path: Path, text: str, modes: Sequence[str] = ("mean",), skipped: int = 0) -> Array:
    """Return the vector of a text as the files of `with_dense` say, in float64."""
    from safetensors.numpy import load_file

    vector = pooled(states(path, text), modes, skipped)
    for name, function in (("2_Dense", np.tanh), ("3_Dense", np.asarray)):
        tensors = {key: value.astype(np.float64) for key, value in load_file(path / name / "model.safetensors").items()}
        vector = function(tensors["linear.weight"] @ vector + tensors.get("linear.bias", 0.0))
    return unit(vector) if (path / "modules.json").read_text().count("Normalize") else vector


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
def test_dense_layers_are_those_by_hand(normalize: bool, bert: Path, tmp_path: Path) -> None:
    """A teacher without its last layers is another teacher."""
    path = with_dense(bert, tmp_path / "m", normalize=normalize)
    np.testing.assert_allclose(encode(path), [by_hand(path, text) for text in TEXTS], atol=1e-5)


def test_a_residual_connection_is_added(bert: Path, tmp_path: Path) -> None:
    """It has a matrix of its own where widths differ."""
    config, tensors = layer(width_of(bert), 10, GELU)
    tensors["residual.weight"] = np.random.default_rng(3).normal(size=(10, width_of(bert))).astype(np.float32)
    path = describe(
        copied(bert, tmp_path / "m"), *PLAIN, "m.Dense", dense=[({**config, "use_residual": True}, tensors)]
    )
    from scipy.special import erf

    vectors = np.array([pooled(states(path, text), ["mean"]) for text in TEXTS])
    inner = vectors @ tensors["linear.weight"].T + tensors["linear.bias"]
    wanted = 0.5 * inner * (1 + erf(inner / np.sqrt(2))) + vectors @ tensors["residual.weight"].T
    np.testing.assert_allclose(encode(path), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation_function": "own_code.Tanh"}, "activation own_code.Tanh"),
        ({"activation_function": "os.system"}, "activation os.system"),
        ({"activation_function": "torch.nn.functional.relu"}, "activation torch.nn.functional.relu"),
        ({"activation_function": "torch.nn.modules.activation.PReLU"}, "PReLU is not an activation"),
        ({"activation_function": "torch.nn.modules.linear.Linear"}, "Linear is not an activation"),
        ({"activation_function": "torch.nn.Module"}, "Module is not an activation"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is token_embeddings"),
        ({"in_features": None}, "does not say how wide"),
        ({"in_features": 7}, "reads vectors of width 7"),
    ],
)
def test_a_dense_that_is_not_done_is_refused(change: Mapping[str, Any], says: str, bert: Path, tmp_path: Path) -> None:
    """The package falls back to Tanh where it does not trust an activation; and nothing of a file's choice is run."""
    config, tensors = layer(width_of(bert), 10)
    path = describe(copied(bert, tmp_path / "m"), *PLAIN, "m.Dense", dense=[({**config, **change}, tensors)])
    with pytest.raises(UserError, match=says) as caught:
        SentenceSimilarity().check_model(open_config(str(path)))
    assert caught.value.key == "model"


def test_weights_of_a_dense_are_checked(bert: Path, tmp_path: Path) -> None:
    """Pickled, missing or another model's weights are one line, not random ones."""
    path = with_dense(bert, tmp_path / "m")
    (path / "2_Dense" / "model.safetensors").rename(path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        read_encoding(open_config(str(path)))
    (path / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"2_Dense/model.safetensors is missing"):
        read_encoding(open_config(str(path)))
    (path / "2_Dense" / "model.safetensors").write_bytes((path / "3_Dense" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="do not fit its config"):
        encode(path)
    (path / "2_Dense" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        encode(path)


def test_a_part_of_an_encoder_is_refused(bert: Path, tmp_path: Path) -> None:
    """The first versions kept the backbone in a folder: pointed at that, it would be pooled by the default."""
    inside = copied(bert, tmp_path / "0_Transformer")
    describe(tmp_path, *PLAIN)
    assert read_encoding(open_config(str(inside))) is None  # modules.json does not name it
    modules = (tmp_path / "modules.json").read_text().replace('"path": ""', '"path": "0_Transformer"')
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(UserError, match="is a part of it"):
        read_encoding(open_config(str(inside)))


# ---- Training --------------------------------------------------------------------------------------------------------


def write_recipe(directory: Path, teacher: Path, *, cached: bool = False, **sections: Any) -> Path:
    rows = [
        {"a": one, "b": other, "score": at % 5}
        for at, (one, other) in enumerate(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
    ]
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {"name": "pretrained", "model": str(teacher)}
    recipe = {
        "task": {"name": "sentence-similarity", "score_range": [0, 5]},
        "data": {
            "path": {name: str(directory / "data.jsonl") for name in ("train", "validation")},
            "columns": {"text": "a", "text_pair": "b", "label": "score"},
        },
        "teacher": {"name": "cached", "teacher": entry, "precision": "float32"} if cached else entry,
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": [{"name": "sentence_embedding"}],
        "training": {
            "output_dir": str(directory / "out"), "max_steps": 4, "per_device_train_batch_size": 4,
            "learning_rate": 1e-2, "bf16": False, "disable_tqdm": True,
        },
        "report": {"latency": False},
    } | sections  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def spearman(path: Path, vector: Any) -> float:
    from scipy.stats import spearmanr

    one = unit(np.array([vector(path, text) for text in TEXTS]))
    return float(spearmanr((one * np.roll(one, -1, 0)).sum(-1), [at % 5 for at in range(len(TEXTS))]).statistic)


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_a_students_dense_trains_and_is_exported(best: bool, bert: Path, tmp_path: Path) -> None:
    """Frozen, or left at the teacher's or at random values, it would spoil every vector and stand in no file."""
    teacher = with_dense(bert, tmp_path / "teacher")
    recipe = write_recipe(tmp_path, teacher)
    extra = ["training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.eval_steps=1",
             "training.save_steps=1", "training.save_strategy=steps"] if best else []  # fmt: skip
    report = run(recipe, *extra)
    out = tmp_path / "out"
    config = open_config(str(out))
    found, theirs = read_encoding(config), read_encoding(open_config(str(teacher)))
    assert found is not None
    assert theirs is not None
    assert found.dense == theirs.dense
    assert (found.pooling, found.normalize) == ("mean", True)
    before, after = (weights(place / "2_Dense")["linear.weight"] for place in (teacher, out))
    assert not torch.equal(before, after)
    from transformers import AutoModel

    assert weights(out).keys() == AutoModel.from_config(config).state_dict().keys()
    for name, place in (("teacher", teacher), ("student", out)):
        assert report.models[name].metrics["spearman"] == pytest.approx(spearman(place, by_hand), abs=1e-4)
    again = run(recipe, *extra)  # found finished, loaded from the directory
    assert again.student.metrics == report.student.metrics


def test_a_resumed_training_goes_on_with_its_dense(bert: Path, tmp_path: Path) -> None:
    """Not in the checkpoint's model.safetensors, the layers would start over in the middle of a training."""
    import shutil

    from invariants.cases import arguments

    from hf_distill import DistillationTrainer

    path = with_dense(bert, tmp_path / "m")
    prepared = prepare(path)

    def train(checkpoint: str | None = None) -> Any:
        torch.manual_seed(0)
        student, _ = load_model(str(path), prepared.head)
        teacher, _ = load_model(str(path), prepared.head)
        with torch.no_grad():
            for one in student.parameters():
                one.mul_(0.5)
        trainer = DistillationTrainer(
            student,
            arguments(
                tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=2, per_device_train_batch_size=4
            ),
            teacher=teacher,
            objectives=[SentenceEmbedding()],
            train_dataset=prepared.train,
            data_collator=prepared.collator,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return {name: value.clone() for name, value in student.state_dict().items()}

    whole = train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = train(str(tmp_path / "run" / "checkpoint-2"))
    assert any("sentence_dense" in name for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cached", [False, True], ids=["asked", "cached"])
def test_a_student_without_dense_learns_a_projection(cached: bool, bert: Path, tmp_path: Path) -> None:
    """Its vectors are as wide as its states, which the width of the teacher's Dense need not be."""
    teacher = with_dense(bert, tmp_path / "teacher", out=40)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, student in (("pretrained", {"model": str(bert)}), ("from_config", {"overrides": small})):
        (tmp_path / name).mkdir()
        run(write_recipe(tmp_path / name, teacher, cached=cached, student={"name": name, **student}))
        found = read_encoding(open_config(str(tmp_path / name / "out")))
        assert found is not None
        assert found.dense == ()
        assert found.normalize
        model = sentence_encoder(load_model(str(tmp_path / name / "out"), prepare(bert).head)[0])
        assert vector_width(model) == model.config.hidden_size


ROADS: dict[str, dict[str, Any]] = {
    "a fine-tuned teacher": {"teacher": {"name": "finetuned", "model": "DENSE", "training": {"max_steps": 2}}},
    "layers of another model": {
        "teacher": {"name": "pretrained", "model": "PLAIN"},
        "student": {"name": "copy_layers", "layers": 1, "model": "DENSE"},
    },
    "contrastive": {"objectives": [{"name": "contrastive", "of": "embedding", "memory": 8}]},
    "two stages": {
        "objectives": [],
        "stages": [
            {"objectives": [{"name": "sentence_embedding"}]},
            {"objectives": [{"name": "similarity_matrix"}, {"name": "labels"}]},
        ],
    },
    "a baseline": {"report": {"latency": False, "baseline": True}},
}


@pytest.mark.parametrize("sections", ROADS.values(), ids=ROADS)
def test_dense_layers_take_every_road(sections: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    """On each of them a model is saved, loaded, copied or measured, and the layers could be lost or made anew."""
    teacher = with_dense(bert, tmp_path / "teacher")
    text = json.dumps(sections).replace("DENSE", str(teacher)).replace("PLAIN", str(bert))
    recipe = json.loads(write_recipe(tmp_path, teacher).read_text()) | json.loads(text)
    (tmp_path / "recipe.yaml").write_text(json.dumps({key: value for key, value in recipe.items() if value != []}))
    report = run(tmp_path / "recipe.yaml")
    assert report.student.metrics["spearman"] == pytest.approx(spearman(tmp_path / "out", by_hand), abs=1e-4)


def test_layers_that_nobody_described_start_new(bert: Path, tmp_path: Path) -> None:
    """In Python a student may be given a Dense; saved, loaded and copied it is the same model."""
    import copy
    import pickle

    from transformers import AutoModel

    from hf_distill.models.dense import Dense

    model = sentence_encoder(AutoModel.from_pretrained(bert), Encoding(dense=(Dense(width_of(bert), 8),)))
    model.save_pretrained(tmp_path / "m")
    open_tokenizer(str(bert)).save_pretrained(tmp_path / "m")
    wanted = model.state_dict()
    for other in (type(model).from_pretrained(tmp_path / "m"), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert encoding_of(other) == encoding_of(model)
        assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())
    with pytest.raises(UserError, match="0 Dense modules"):
        type(model).from_pretrained(bert)


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def prompted(bert: Path, directory: Path, prompt: str | None, *, pooled: bool = True, mode: str = "mean") -> Path:
    named = {"prompts": {"query": "this is a ", "own": prompt or ""}, "default_prompt_name": prompt and "own"}
    pooling = {"pooling_mode": mode, "include_prompt": pooled}
    return describe(copied(bert, directory), *PLAIN, pooling=pooling, config_sentence_transformers=named)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("counted", [True, False], ids=["counted", "left out"])
@pytest.mark.parametrize(("kind", "side"), SIDES)
def test_a_default_prompt_stands_before_every_text(
    kind: str, side: str, counted: bool, mode: str, make_model: Any, tmp_path: Path
) -> None:
    """Without it a model sees texts as it never saw them in its training."""
    path = prompted(make_model(kind, layers=2), tmp_path / "m", "the cast", pooled=counted, mode=mode)
    ids = open_tokenizer(str(path))("the cast")["input_ids"]
    assert len(ids) > 1
    skipped = 0 if counted else len(ids) - (kind == "bert-bare")
    wanted = [pooled(states(path, f"the cast{text}"), [mode], skipped) for text in TEXTS]
    np.testing.assert_allclose(encode(path, side), wanted, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True], ids=["asked", "cached"])
def test_each_model_reads_its_own_prompt(cached: bool, bert: Path, tmp_path: Path) -> None:
    """With the teacher's prompt before its texts, the student would be another model than the one that is used."""
    teacher, student = prompted(bert, tmp_path / "t", "the film : "), prompted(bert, tmp_path / "s", None)
    report = run(write_recipe(tmp_path, teacher, cached=cached, student={"name": "pretrained", "model": str(student)}))
    for name, place, prompt in (("teacher", teacher, "the film : "), ("student", tmp_path / "out", "")):
        wanted = spearman(place, lambda path, text, prompt=prompt: pooled(states(path, prompt + text), ["mean"]))
        assert report.models[name].metrics["spearman"] == pytest.approx(wanted, abs=1e-4)
    written = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert written["prompts"] == {"query": "this is a ", "own": ""}
    assert written["default_prompt_name"] is None


def test_a_student_takes_the_teachers_prompt_where_it_says_nothing(bert: Path, tmp_path: Path) -> None:
    """Trained on texts behind a prompt, it must be used with it: the export says so."""
    teacher = prompted(bert, tmp_path / "t", "the film : ")
    report = run(write_recipe(tmp_path, teacher))
    written = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert written["default_prompt_name"] == "own"
    wanted = spearman(tmp_path / "out", lambda path, text: pooled(states(path, "the film : " + text), ["mean"]))
    assert report.student.metrics["spearman"] == pytest.approx(wanted, abs=1e-4)


def test_prompts_that_do_not_go_together(bert: Path, tmp_path: Path, caplog: Any) -> None:
    """Tokens of different texts compared one by one, a prompt without a text, and prompts that nobody chose."""
    one, other, none = (
        prompted(bert, tmp_path / name, prompt) for name, prompt in (("t", "the film : "), ("s", "a "), ("n", None))
    )
    prepared = prepare(one, other)
    with pytest.raises(UserError, match="token by token") as caught:
        SentenceSimilarity().check((SentenceEmbedding(), Hidden()), prepared)
    assert caught.value.key == "objectives[1]"
    SentenceSimilarity().check((SentenceEmbedding(),), prepared)
    with pytest.raises(UserError, match="it puts 'a ' before every text"):
        load_model(str(other), prepare(one).head)
    long = prompted(bert, tmp_path / "long", "the film is great " * 30)
    with pytest.raises(UserError, match="no text is left") as caught:
        prepare(long)
    assert caught.value.key == "max_length"
    with caplog.at_level(logging.WARNING):
        prepare(none)
    assert "query" in caplog.text
    assert "default_prompt_name" in caplog.text


# ---- The package itself ----------------------------------------------------------------------------------------------


def open_with(path: Path, side: str) -> Any:
    import sentence_transformers as package

    model = package.SentenceTransformer(str(path), device="cpu")
    model.tokenizer.pad_token = model.tokenizer.pad_token or model.tokenizer.eos_token
    model.tokenizer.padding_side = side
    return model


@pytest.mark.parametrize(("kind", "side"), SIDES)
@pytest.mark.parametrize("modes", POOLINGS, ids="+".join)
def test_the_package_pools_alike(kind: str, side: str, modes: Sequence[str], make_model: Any, tmp_path: Path) -> None:
    """Arithmetic by hand may repeat a misreading of the package."""
    for name, prompt in (("plain", None), ("prompt", "the cast")):
        path = prompted(make_model(kind, layers=2), tmp_path / name, prompt, pooled=False)
        (path / "1_Pooling" / "config.json").write_text(
            json.dumps(
                {"word_embedding_dimension": width_of(path), "pooling_mode": list(modes), "include_prompt": False}
            )
        )
        theirs = open_with(path, side)
        for batch in (1, 8):
            np.testing.assert_allclose(encode(path, side, batch), theirs.encode(TEXTS, batch_size=batch), atol=1e-5)


EXPORTED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "mean": (PLAIN, {}),
    "last": (PLAIN, {"pooling": {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}}),
    "max": (PLAIN, {"pooling": {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}}),
    "mean, then max": (PLAIN, {"pooling": {"pooling_mode": ["mean", "max"]}}),
    "dense": ((*PLAIN, "m.Dense", "m.Normalize"), {"dense": [layer(32, 20)]}),
    "two": ((*PLAIN, "m.Dense", "m.Dense"), {"dense": [layer(32, 20, GELU), layer(20, 8, IDENTITY, bias=False)]}),
    "prompt": (PLAIN, {"config_sentence_transformers": {"prompts": {"own": "the cast"}, "default_prompt_name": "own"}}),
}


@pytest.mark.parametrize(("modules", "files"), EXPORTED.values(), ids=EXPORTED)
def test_the_package_opens_what_is_exported(
    modules: Sequence[str], files: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    """The student is for its users: the package must find the vectors that it was judged by."""
    teacher = describe(copied(bert, tmp_path / "t"), *modules, **files)
    np.testing.assert_allclose(encode(teacher), open_with(teacher, "right").encode(TEXTS), atol=1e-5)
    report = run(write_recipe(tmp_path, teacher))
    student = open_with(tmp_path / "out", "right")
    np.testing.assert_allclose(encode(tmp_path / "out"), student.encode(TEXTS), atol=1e-5)
    found = spearman(tmp_path / "out", lambda path, text: student.encode(text))
    assert report.student.metrics["spearman"] == pytest.approx(found, abs=1e-4)
