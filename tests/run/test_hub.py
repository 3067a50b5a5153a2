"""Publishing: `hf_distill/run/hub.py` and the push of a finished student, against the hub of `fake_hub.py`.

Never run against huggingface.co; the xet protocol is not covered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WORDS
from fake_hub import BAD_TOKEN, FINE_TOKEN, READ_TOKEN, TOKENS, WRITE_TOKEN, FakeHub, fake_hub

__all__ = ["fake_hub"]

ROOT = Path(__file__).parents[2]

CHECK = """
import json, sys
from hf_distill.errors import UserError
from hf_distill.run.hub import check_rights
for case in json.loads(sys.argv[1]):
    try:
        print(check_rights(*case))
    except UserError as error:
        print(f"{error.key}! {error}")
"""


def _python(
    hub: FakeHub, home: Path, token: str | None, *arguments: object, status: int = 0, **environment: str
) -> list[str]:
    """Run Python as a client of the hub; return the lines that it prints, to stderr where it is to fail."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(home, token), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert not any(token in done.stdout + done.stderr for token in TOKENS)
    return (done.stderr if status else done.stdout).splitlines()


def _check(hub: FakeHub, home: Path, token: str | None, *cases: tuple[str | None, bool | None], **environment: str):
    """Return one line for each case: the repository's id, or `key! message`."""
    rows = [(repo_id, private, "outputs/bert") for repo_id, private in cases]
    return _python(hub, home, token, "-c", CHECK, json.dumps(rows), **environment)


# --- before training ----------------------------------------------------------------------------------------------


def test_repository_is_created_with_the_visibility_asked_for(fake_hub, tmp_path):
    """A private student in a public repository; or a repository that only turns out to be impossible after training."""
    lines = _check(fake_hub, tmp_path, WRITE_TOKEN, (None, None), ("ada/x", True), ("lab/y", False), ("ada/x", True))
    assert lines == ["ada/bert", "ada/x", "lab/y", "ada/x"]
    assert {name: repo.private for name, repo in fake_hub.repos.items()} == {
        "ada/bert": False,
        "ada/x": True,
        "lab/y": False,
    }


def test_rights_that_would_fail_after_training(fake_hub, tmp_path):
    """`create_repo(exist_ok=True)` passes for a repository that exists and may only be read: the push fails."""
    fake_hub.add("press/bert")
    fake_hub.add("ada/public")
    places = [("press/new", None), ("press/bert", None), ("other/bert", None), ("ada/public", True)]
    lines = _check(fake_hub, tmp_path, WRITE_TOKEN, *places)
    for line, (name, _) in zip(lines[:3], places, strict=False):
        assert line.startswith(f"repo_id! the token may not write to {name}: choose a repository under ada, lab, press")
    assert lines[3].startswith("private! ada/public exists and is public")
    assert set(fake_hub.repos) == {"press/bert", "ada/public"}


def test_tokens_that_are_not_enough(fake_hub, tmp_path):
    """Each would otherwise show as a traceback, or only when the student is finished."""
    fake_hub.add("lab/allowed")
    fake_hub.add("lab/other")
    assert _check(fake_hub, tmp_path, None, ("ada/x", None)) == [
        "! a push needs a token, and none was found: run `hf auth login`, or set the environment variable HF_TOKEN"
    ]
    (line,) = _check(fake_hub, tmp_path, BAD_TOKEN, ("ada/x", None))
    assert line.startswith("! the Hub does not know the token in the environment variable HF_TOKEN")
    (line,) = _check(fake_hub, tmp_path, READ_TOKEN, ("ada/x", None))
    assert line.startswith("! the token may only read")
    lines = _check(fake_hub, tmp_path, FINE_TOKEN, ("lab/allowed", None), ("lab/other", None))
    assert lines[0] == "lab/allowed"
    assert lines[1].startswith("repo_id! the token may not write to lab/other")


def test_token_of_the_login_store(fake_hub, tmp_path):
    """`hf auth login` must be enough; and its file is named when its token is the bad one."""
    (tmp_path / "token").write_text(WRITE_TOKEN)
    assert _check(fake_hub, tmp_path, None, ("ada/x", None)) == ["ada/x"]
    (tmp_path / "token").write_text(BAD_TOKEN)
    (line,) = _check(fake_hub, tmp_path, None, ("ada/x", None))
    assert "the token in the login store" in line


def test_no_hub_to_push_to(fake_hub, tmp_path):
    """Offline, a push must fail before the training that it would crown."""
    (line,) = _check(fake_hub, tmp_path, WRITE_TOKEN, ("ada/x", None), HF_HUB_OFFLINE="1")
    assert line == "! a push needs the Hub, but HF_HUB_OFFLINE is set: unset it, or set push: false"
    assert fake_hub.requests == []
    (line,) = _check(fake_hub, tmp_path, WRITE_TOKEN, ("ada/x", None), HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("! no connection to http://127.0.0.1:9 (ConnectError)")


TWO = """
import os, sys
from accelerate import PartialState
from hf_distill.errors import UserError
from hf_distill.run.hub import check_rights
rank = PartialState(cpu=True).process_index
results = [check_rights("lab/student", None, "out")]
try:
    check_rights("press/student", None, "out")
except UserError as error:
    results.append(f"{error.key}! {error}")
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    file.write("\\n".join(results))
os._exit(0)  # gloo now and then aborts at exit, after all is done
"""


@pytest.mark.slow
def test_one_process_of_many_asks(fake_hub, tmp_path):
    """An error on one process alone leaves the others waiting for it until the launcher's timeout."""
    (tmp_path / "two.py").write_text(TWO)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    _python(fake_hub, tmp_path, WRITE_TOKEN, *launch, tmp_path / "two.py", tmp_path / "result")
    results = [(tmp_path / f"result.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert results[0] == results[1]
    assert results[0][0] == "lab/student"
    assert results[0][1].startswith("repo_id! the token may not write to press/student")
    assert len(fake_hub.asked("whoami")) == 2


def test_malformed_names(fake_hub, tmp_path):
    """A name is checked without asking anybody."""
    lines = _check(fake_hub, tmp_path, WRITE_TOKEN, ("a/b/c", None), ("ada/ä", None), ("-x", None))
    assert all(line.startswith("repo_id! `") and "is not a valid name for a repository" in line for line in lines)
    assert len(lines) == 3
    assert fake_hub.requests == []
    lines = _python(fake_hub, tmp_path, WRITE_TOKEN, "-c", CHECK, '[[null, null, "runs/my run"]]')
    assert lines == [
        "repo_id! the name of output_dir, `my run`, is not a valid name for a repository on the Hub: set hub.repo_id"
    ]


# --- the fake hub itself, with nothing of ours --------------------------------------------------------------------

ROUND_TRIP = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
api, folder = HfApi(), Path(sys.argv[1])
api.create_repo("lab/plain", private=True)
for _ in range(2):
    api.upload_folder(repo_id="lab/plain", folder_path=folder, ignore_patterns=["_*"], commit_message="first")
    (folder / "a.txt").write_text("changed")
api.delete_file("sub/b.bin", "lab/plain")
print(sorted(path.name for path in Path(snapshot_download("lab/plain", cache_dir=sys.argv[2])).iterdir()))
"""


def test_plain_huggingface_hub_round_trip(fake_hub, tmp_path):
    """A fake hub that takes anything would prove nothing: here the library alone uploads, changes and downloads."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    contents = {"a.txt": b"a", "README.md": b"---\nlicense: mit\n---\n", "big.safetensors": bytes(range(256)) * 500}
    for name, content in {**contents, "sub/b.bin": b"b" * 99, "_private": b"x"}.items():
        (folder / name).write_bytes(content)
    lines = _python(fake_hub, tmp_path, WRITE_TOKEN, "-c", ROUND_TRIP, folder, tmp_path / "cache")
    assert lines == ["['.gitattributes', 'README.md', 'a.txt', 'big.safetensors']"]
    assert fake_hub.repos["lab/plain"].files == {**contents, "a.txt": b"changed"}
    assert len(fake_hub.asked("PUT /lfs/")) == 2  # each large file once, though it was pushed twice
    assert all(request.token is None for request in fake_hub.asked("PUT /lfs/"))
    assert {request.token for request in fake_hub.asked("/commit/")} == {WRITE_TOKEN}


DENIED = """
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
for token in (False, "hf_FakeHubRevokedY2nJd", "hf_FakeHubReadK3vWp"):
    for action in ("model_info", "create_commit"):
        try:
            kwargs = {"operations": [], "commit_message": "x"} if action == "create_commit" else {}
            getattr(HfApi(token=token), action)("lab/secret", **kwargs)
            print("done")
        except HfHubHTTPError as error:
            print(type(error).__name__, error.response.status_code)
"""


def test_private_repositories_are_private(fake_hub, tmp_path):
    """Else a test that loads a private student would pass without a token."""
    fake_hub.add("lab/secret", private=True)
    lines = _python(fake_hub, tmp_path, None, "-c", DENIED)
    assert lines[0] == lines[2].replace("HfHubHTTPError", "RepositoryNotFoundError") == "RepositoryNotFoundError 401"
    assert lines[4] == "done"
    assert "done" not in lines[:4]


# --- the push of a finished student -------------------------------------------------------------------------------

STUDENT_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}

TRAIN = """
import sys
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from hf_distill import DistillationArguments, DistillationTrainer
teacher, student, output_dir = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(teacher)
rows = Dataset.from_dict({**tokenizer(["a great film", "the plot is dull"] * 4), "labels": [1, 0] * 4})
trainer = DistillationTrainer(
    model=AutoModelForSequenceClassification.from_pretrained(student),
    teacher=AutoModelForSequenceClassification.from_pretrained(teacher),
    args=DistillationArguments(
        output_dir, push_to_hub=True, hub_model_id="lab/student", hub_private_repo=True, max_steps=2, save_steps=1,
        learning_rate=0.1,
    ),
    train_dataset=rows,
    processing_class=tokenizer,
)
trainer.train()
trainer.push_to_hub()
"""


def _assert_it_opens(repo, place, out):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place.mkdir()
    for name in STUDENT_FILES:
        (place / name).write_bytes(repo.files[name])
    model, info = AutoModelForSequenceClassification.from_pretrained(place, output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_hidden_layers == 2
    pushed, own = (AutoTokenizer.from_pretrained(one)("a great film").input_ids for one in (place, out))
    assert pushed == own


def test_pushed_student_is_the_trained_one_and_nothing_else(fake_hub, tmp_path, make_model):
    """Trainer alone publishes `training_args.bin`, a pickle that may hold the token, and all it finds."""
    teacher, student, out = make_model(layers=4), make_model(layers=2), tmp_path / "out"
    for name in ("_projections", "_targets"):  # what a run may keep there for itself
        (out / name).mkdir(parents=True)
        (out / name / "data.bin").write_bytes(b"ours")
    _python(fake_hub, tmp_path, WRITE_TOKEN, "-c", TRAIN, teacher, student, out)
    repo = fake_hub.repos["lab/student"]
    assert repo.private
    assert len(repo.messages) == 2  # the Hub's own first commit, and one push
    assert set(repo.files) == STUDENT_FILES
    assert repo.files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert repo.files["model.safetensors"] != (student / "model.safetensors").read_bytes()  # it was trained
    assert (out / "checkpoint-2").exists()
    _assert_no_token(fake_hub, out)
    _assert_it_opens(repo, tmp_path / "pushed", out)


RECIPE = """
task: text-classification
data:
  path: {{train: {splits.train}, validation: {splits.validation}}}
  columns: {{text: sentence, label: label}}
teacher: {{name: pretrained, model: {teacher}}}
student: {{name: copy_layers, layers: 2}}
objectives:
  - {{name: kl, weight: 0.5, temperature: 2.0}}
  - {{name: labels, weight: 0.5}}
training: {{output_dir: {out}, max_steps: 2, save_steps: 1, save_strategy: steps, report_to: none}}
report: {{baseline: true, latency: false}}
hub: {{push: true, repo_id: student, private: true}}
"""


@pytest.mark.slow
def test_recipe_that_pushes(fake_hub, tmp_path, make_model, sentiment_csv):
    """The baseline, the checkpoints and the teacher lie beside the student, and are not to be published with it."""
    out, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(splits=sentiment_csv, teacher=make_model(layers=4), out=out))
    script = ROOT / "scripts" / "distill.py"
    *_, line = _python(fake_hub, tmp_path / "home", READ_TOKEN, script, recipe, status=2)
    assert "recipe.yaml:" in line
    assert "hub: the token may only read" in line
    assert not list(out.glob("*.safetensors"))  # said before training
    _python(fake_hub, tmp_path / "home", WRITE_TOKEN, script, recipe)
    repo = fake_hub.repos["ada/student"]
    assert repo.private
    assert repo.messages == ["initial commit", "Distilled with hf_distill"]
    assert set(repo.files) == STUDENT_FILES | {"recipe.yaml", "report.json", "report.html"}
    for name, content in repo.files.items():
        assert content == (out / name).read_bytes()
    assert str(tmp_path).encode() not in repo.files["README.md"]
    _assert_no_token(fake_hub, tmp_path)
    _assert_it_opens(repo, tmp_path / "pushed", out)


LINEAGES = """
import json, sys
from hf_distill import distill, load_recipe
from transformers import AutoModelForSequenceClassification
adapters, chain, last = sys.argv[1:]
distill(load_recipe(adapters))
AutoModelForSequenceClassification.from_pretrained("ada/adapters")
distill(load_recipe(chain))
distill(load_recipe(last))
"""


@pytest.mark.slow
def test_adapters_and_chains_are_pushed_and_taught_from(fake_hub, tmp_path, make_model, sentiment_csv):
    """Adapters could name a path of this machine as their base, assistants be published too, or the lineage of a
    student from the Hub begin with it; with the teacher's tokenizer, a student without some tokens reads other words.
    """
    base = {one.name: one.read_bytes() for one in make_model("bert-bare", layers=2).iterdir()}
    fake_hub.add("ada/base").commit("upload", base)
    teacher = f"{{name: pretrained, model: {make_model(layers=4, vocab=('unused', *WORDS))}}}"
    cut = "{name: prune_vocabulary, student: {name: copy_layers, layers: 2}}"
    links = f"[{{name: copy_layers, layers: 3}}, {cut}]"
    changes = {
        "adapters": (teacher, "student: {name: lora, model: ada/base, r: 4, merge: false}"),
        "chain": (teacher, f"chain: {links}"),
        "last": ("{name: pretrained, model: ada/chain}", "student: {name: copy_layers, layers: 1}"),
    }
    recipes = [tmp_path / f"{name}.yaml" for name in changes]
    for recipe, (taught_by, student) in zip(recipes, changes.values(), strict=True):
        text = RECIPE.format(splits=sentiment_csv, teacher="TEACHER", out=tmp_path / recipe.stem)
        text = text.replace("{name: pretrained, model: TEACHER}", taught_by).replace(
            "baseline: true", "baseline: false"
        )
        text = text.replace("student: {name: copy_layers, layers: 2}", student)
        recipe.write_text(text.replace("repo_id: student, private: true", f"repo_id: ada/{recipe.stem}"))
    _python(fake_hub, tmp_path / "home", WRITE_TOKEN, "-c", LINEAGES, *recipes)
    reports = {"recipe.yaml", "report.json", "report.html"}

    files = fake_hub.repos["ada/adapters"].files
    whole = {"config.json", "model.safetensors"}
    assert set(files) == STUDENT_FILES - whole | reports | {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "ada/base"
    assert b"base_model: ada/base" in files["README.md"]

    assert set(fake_hub.repos) == {"ada/base", "ada/adapters", "ada/chain", "ada/last"}
    assert set(fake_hub.repos["ada/chain"].files) == STUDENT_FILES | reports
    _assert_it_opens(fake_hub.repos["ada/chain"], tmp_path / "pushed", tmp_path / "chain")
    vocabulary = json.loads(fake_hub.repos["ada/chain"].files["tokenizer.json"])["model"]["vocab"]
    assert "unused" not in vocabulary
    assert json.loads(fake_hub.repos["ada/chain"].files["config.json"])["vocab_size"] == len(vocabulary)
    assert json.loads(fake_hub.repos["ada/last"].files["tokenizer.json"])["model"]["vocab"] == vocabulary

    report = json.loads(fake_hub.repos["ada/last"].files["report.json"])
    names = [(one["name"], one["on_hub"]) for one in report["lineage"]]
    assert names[1:] == [("link-1", False), ("ada/chain", True), ("ada/last", True)]
    card = fake_hub.repos["ada/last"].files["README.md"].decode()
    assert "https://huggingface.co/ada/chain" in card.split("## Lineage")[1]
    assert str(tmp_path) not in card
    _assert_no_token(fake_hub, tmp_path)


def _assert_no_token(hub: FakeHub, *folders: Path) -> None:
    """No token in what was published, nor in any file that the run left behind."""
    kept = [file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()]
    for content in (*hub.received(), *kept):
        assert not any(token.encode() in content for token in TOKENS)
