"""Hidden states of a cached teacher in a recipe: derived from the objectives or listed, checked, and trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cached_runs import cached, count_calls
from runs import WriteRecipe, run, weights

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

KL = {"name": "kl", "temperature": 2.0}
SGD = {"optim": "sgd", "learning_rate": 0.05}


def line(path: Path) -> str:
    """Return what `--check` says of the cache."""
    (found,) = [one for one in check(load_recipe(path)).splitlines() if one.startswith("cache ")]
    return found.removeprefix("cache").strip()


def test_a_run_from_a_cache_is_the_run(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Layers on two stages, of which the second compares others and the third none: student and curves of the live
    teacher, and the sizes that were announced."""
    model = make_model("bert", layers=4, seed=1)
    stages = [
        {"objectives": [{"name": "embeddings"}, {"name": "hidden"}]},
        {"objectives": [{"name": "patient", "layers": [[1, 3]]}, {"name": "similarity_preserving", "weight": 10.0}]},
        {"objectives": [KL]},
    ]
    found = {}
    for name, teacher in {
        "live": {"name": "pretrained", "model": str(model)},
        "cached": cached(model, hidden_precision="float32"),
    }.items():
        training = {"output_dir": str(tmp_path / name), **SGD}
        path = write_recipe(teacher=teacher, objectives=None, stages=stages, training=training)
        found[name] = run(path)
    live, replayed = found["live"], found["cached"]
    assert replayed.student.metrics == live.student.metrics
    one, other = weights(tmp_path / "live"), weights(tmp_path / "cached")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    for stage, term in (("student stage 1", "objective/hidden"), ("student stage 2", "objective/patient")):
        curves = [[step[term] for step in one.history[stage] if term in step] for one in found.values()]
        assert curves[1] == pytest.approx(curves[0], rel=1e-4)
        assert len(curves[0]) > 4
    said = str(replayed.settings["teacher's answers"])
    assert "hidden states of layers 0, 2, 3 (first), 4, 32 wide in float32: about" in said
    assert line(path) == (
        "whole outputs in float32; hidden states of layers 0, 2, 3 (first), 4, 32 wide in float32: 384 bytes a token "
        "and 128 bytes a text, at most 24.6 kB a text of 64 tokens"
    )


def test_one_cache_for_several_objectives(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `layers` the cache depends on no objective: the second student asks the teacher nothing."""
    seen = count_calls(monkeypatch)
    teacher = cached(make_model("bert", layers=4, seed=1), layers=[1, 2, 4])
    for name, features in {
        "one": [{"name": "hidden"}],
        "two": [{"name": "patient", "layers": [[1, 1]]}, {"name": "relational"}],
        "three": [KL],
    }.items():
        run(write_recipe(teacher=teacher, objectives=features, training={"output_dir": str(tmp_path / name)}))
        assert sum(seen) == 96
    found = line(write_recipe(teacher=teacher, objectives=[KL], training={"output_dir": str(tmp_path / "four")}))
    assert (
        "hidden states of layers 1, 2, 4, 32 wide in float16: 192 bytes a token, at most 12.3 kB a text of 64 tokens"
        in found
    )


def language(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.csv"
    text.write_text("text\n" + "\n".join(["the film is great .", '"a dull plot , and a stale story !"'] * 4))
    return {"task": "text-generation", "data": {"path": {"train": str(text), "validation": str(text)}}}


def test_a_language_model(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Sparse answers and whole layers side by side."""
    sections = language(tmp_path)
    path = write_recipe(
        **sections,
        teacher=cached(make_model("llama-lm", layers=2), top=8),
        student={"name": "copy_layers", "layers": 1},
        objectives=[KL, {"name": "hidden", "loss": "cosine"}, {"name": "relational", "of": "last"}],
    )
    said = line(path)
    assert said.startswith("the likeliest 8 of ")
    assert " tokens, 34 bytes a position; hidden states of layer 2, 32 wide in float16: 64 bytes a token" in said
    report = run(path)
    assert report.student.metrics["perplexity"] > 1
    assert any("objective/hidden" in step for step in report.history["student"])


def test_an_encoder_and_a_decoder(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Both stacks by name; the decoder's at the places that have a label."""
    text = tmp_path / "text.csv"
    text.write_text("text,summary\n" + "\n".join(["the film is great,great film", "a dull plot,dull"] * 4))
    sections: dict[str, Any] = {
        "task": "summarization",
        "data": {"path": {"train": str(text), "validation": str(text)}},
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": [
            KL,
            {"name": "hidden", "part": "decoder"},
            {"name": "hidden", "part": "encoder", "layers": "last"},
        ],
    }
    model = make_model("bart", layers=2)
    path = write_recipe(teacher=cached(model, layers={"encoder": [2], "decoder": [1, 2]}), **sections)
    assert "hidden states of layers decoder 1, decoder 2, encoder 2, 32 wide in float16: 192 bytes a token" in line(
        path
    )
    report = run(path)
    assert any("objective/hidden_2" in step for step in report.history["student"])
    wrong = write_recipe(teacher=cached(model, layers=[2]), **sections)
    with pytest.raises(UserError, match=r"teacher\.layers: .* an encoder and a decoder\. Wanted: {encoder: \[\.\.\.\]"):
        check(load_recipe(wrong))


MISTAKES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"layers": [1]}, {"name": "hidden"}, r"objectives\[0\]: 'hidden' compares .* does not give: 2, 4 \(there: 1\)"),
    ({"layers": [5]}, KL, r"teacher\.layers: the teacher \(bert\) has no layer 5\. Its layers are 1 to 4"),
    ({"layers": {"encoder": [1]}}, KL, r"teacher\.layers: the teacher \(bert\) has one stack of layers\. Wanted: a l"),
    ({"layers": [1, 1]}, KL, r"teacher\.layers: 1 is listed twice"),
    ({"layers": [-1]}, KL, r"teacher\.layers"),
    ({"layers": []}, KL, r"teacher\.layers"),
    ({"layers": 2}, KL, r"teacher\.layers: wanted"),
    ({"hidden_precision": "bfloat16"}, KL, r"teacher\.hidden_precision: "),
    ({}, {"name": "hidden", "layers": [[1, 9]]}, r"objectives\[0\]\.layers: \[1, 9\]: the teacher has no layer 9"),
    ({}, {"name": "attention"}, r"objectives\[0\]: 'attention' looks into the teacher \(its maps of attention\)"),
    ({}, {"name": "input_gradient"}, r"objectives\[0\]: 'input_gradient' looks into the teacher \(derivatives"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "objective", "reason"), MISTAKES)
def test_mistakes(
    settings: dict[str, Any], objective: dict[str, Any], reason: str, write_recipe: WriteRecipe, make_model: Any
) -> None:
    """One line each, the same from `--check` and from the run, before a weight is loaded."""
    path = write_recipe(teacher=cached(make_model("bert", layers=4, seed=1), **settings), objectives=[objective])
    said = []
    for attempt in (lambda: check(load_recipe(path)), lambda: run(path)):
        with pytest.raises(UserError, match=reason) as caught:
            attempt()
        said.append(caught.value.mistakes)
    assert said[0] == said[1]
    assert len(said[0]) == 1


def test_numbers_too_large(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Found when the teacher runs, and told at the key that helps."""
    import torch
    import transformers

    model = transformers.BertForSequenceClassification.from_pretrained(make_model("bert", layers=2, seed=1))
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.bias[0] = 1e5
    model.save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(make_model("bert", layers=2, seed=1)).save_pretrained(tmp_path / "model")
    path = write_recipe(teacher=cached(tmp_path / "model"), objectives=[{"name": "embeddings"}])
    with pytest.raises(UserError, match=r"teacher\.hidden_precision: .* go up to 1e\+05, but float16 ends at 65,504"):
        run(path)


def test_two_tokenizers(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """One vector for a text does not care for tokens: from the cache as from the live teacher. Whole layers do."""
    model = make_model("roberta", layers=2)
    sections = {"student": {"name": "pretrained", "model": str(make_model("bert-bare", layers=1))}}
    features = [{"name": "similarity_preserving", "weight": 10.0}, {"name": "contrastive", "memory": 16}, KL]
    found = {}
    for name, teacher in {
        "live": {"name": "pretrained", "model": str(model)},
        "cached": cached(model, hidden_precision="float32"),
    }.items():
        training = {"output_dir": str(tmp_path / name), **SGD}
        found[name] = run(write_recipe(teacher=teacher, objectives=features, training=training, **sections))
    for term in ("objective/similarity_preserving", "objective/contrastive"):
        curves = [[step[term] for step in one.history["student"] if term in step] for one in found.values()]
        assert curves[1] == pytest.approx(curves[0], rel=1e-4)
        assert len(curves[0]) > 4
    for teacher, objectives in (
        (cached(model, layers=[2]), features),
        (cached(model), [{"name": "relational", "of": "first"}, {"name": "similarity_preserving"}]),
    ):
        path = write_recipe(teacher=teacher, objectives=objectives, **sections)
        with pytest.raises(
            UserError, match=r"teacher\.layers: .* layer 2 would be stored token by token, but teacher and"
        ):
            check(load_recipe(path))


def test_a_teacher_elsewhere(write_recipe: WriteRecipe) -> None:
    """Layers cannot be compared with a model that is not here: what can be told is told, and the rest is let pass."""
    teacher = cached("some-user/some-model", layers=[1])
    assert "not checked teacher" in check(load_recipe(write_recipe(teacher=teacher, objectives=[{"name": "hidden"}])))
    with pytest.raises(UserError, match=r"objectives\[0\]: 'attention' looks into the teacher"):
        check(load_recipe(write_recipe(teacher=teacher, objectives=[{"name": "attention"}])))
