"""A Hugging Face Hub on this machine: the HTTP and LFS requests that huggingface_hub makes to publish and load a model
or a data set.

It keeps what it is sent in memory, checks tokens and their rights, and records every request. The client reads
`HF_ENDPOINT` at import, so it runs in a subprocess that is started with `FakeHub.environment`. The xet protocol, which
the real Hub prefers for large files, is not spoken.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

# Made up, with nothing in them that another file could contain by chance.
WRITE_TOKEN = "hf_FakeHubWriteQ7xTz"
READ_TOKEN = "hf_FakeHubReadK3vWp"
FINE_TOKEN = "hf_FakeHubFineB9mLs"
BAD_TOKEN = "hf_FakeHubRevokedY2nJd"
TOKENS = (WRITE_TOKEN, READ_TOKEN, FINE_TOKEN, BAD_TOKEN)

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".arrow", ".parquet")


@dataclass(frozen=True)
class Account:
    """What a token stands for: a user, the role of the token, organisations with the user's role in each.

    A fine-grained token may write to the repositories in `only`, and create none.
    """

    user: str
    role: str = "write"
    organisations: dict[str, str] = field(default_factory=dict)
    only: frozenset[str] = frozenset()

    def may_create_in(self, namespace: str) -> bool:
        """Return whether the token may create a repository there."""
        own = namespace == self.user or self.organisations.get(namespace) in ("write", "admin", "contributor")
        return self.role == "write" and own

    def may_write(self, repo_id: str) -> bool:
        """Return whether the token may push to an existing repository."""
        return repo_id in self.only if self.role == "fineGrained" else self.may_create_in(repo_id.split("/")[0])

    def may_read(self, repo_id: str) -> bool:
        """Return whether the token may see a private repository."""
        namespace = repo_id.split("/")[0]
        return namespace == self.user or namespace in self.organisations


@dataclass
class Repo:
    """A model repository: `commits[i]` maps paths to contents after the i-th commit."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The files at the head, without those that the Hub itself adds."""
        return {path: content for path, content in self.commits[-1][1].items() if path != ".gitattributes"}

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        """Add a commit and return its id."""
        self.messages.append(message)
        seed = json.dumps([len(self.commits), message, sorted(files)]).encode()
        oid = hashlib.sha1(seed + b"".join(files[path] for path in sorted(files))).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit that a branch name or a commit id means."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass(frozen=True)
class Request:
    """One request: which, with what token, and how it was answered."""

    method: str
    path: str
    token: str | None
    status: int


class Refusal(Exception):
    """An answer other than success; `code` and `message` go into the headers that huggingface_hub reads."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = {"error": message, **(body or {})}


class FakeHub:
    """The server; a context manager that listens on a free port of the loopback interface.

    >>> with FakeHub() as hub:
    ...     hub.endpoint.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self) -> None:
        organisations = {"lab": "write", "press": "read"}
        self.accounts = {
            WRITE_TOKEN: Account("ada", "write", organisations),
            READ_TOKEN: Account("ada", "read", organisations),
            FINE_TOKEN: Account("ada", "fineGrained", organisations, frozenset({"lab/allowed"})),
        }
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        """Start to listen."""
        # Polling often: the default of half a second is waited for at every shutdown.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and free the port."""
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Return the variables that make a subprocess talk to this hub; `HF_HUB_OFFLINE=0` undoes that of the tests."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_TOKEN": token or "",
            "no_proxy": "127.0.0.1",
        }

    def add(self, repo_id: str, private: bool = False) -> Repo:
        """Create a repository as the Hub does: with one file, `.gitattributes`."""
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.repos[repo_id] = Repo(private)
        self.repos[repo_id].commit("initial commit", {".gitattributes": attributes.encode()})
        return self.repos[repo_id]

    def received(self) -> Iterator[bytes]:
        """Yield every content that was ever uploaded, in any repository, commit or blob."""
        yield from self.blobs.values()
        for repo in self.repos.values():
            for _, files in repo.commits:
                yield from files.values()

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests whose `METHOD path` a regular expression finds."""
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    """A hub of its own for each test."""
    with FakeHub() as hub:
        yield hub


REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"


class _Handler(BaseHTTPRequestHandler):
    """One connection. Routes are tried in order; each answers with JSON or raises `Refusal`."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    routes: ClassVar[tuple[tuple[str, str, Callable[..., Any]], ...]]

    def handle_any(self) -> None:
        self.status = 500
        self.content = self._read()  # always, or the rest of a refused upload is taken for the next request
        path = unquote(urlsplit(self.path).path)
        try:
            with self.hub.lock:
                for method, pattern, action in self.routes:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method.split():
                        self._send_json(200, action(self, **match.groupdict()))
                        break
                else:
                    raise Refusal(404, f"no such route: {self.command} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send_json(refusal.status, refusal.body, headers)
        finally:
            self.hub.requests.append(Request(self.command, path, self._token(), self.status))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, format: str, *args: object) -> None:  # quiet
        pass

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        if body is not None:
            content = json.dumps(body).encode()
            self._send(status, content, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- rights ---

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _account(self) -> Account | None:
        token = self._token()
        if token is not None and token not in self.hub.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.accounts[token] if token else None

    def _user(self) -> Account:
        account = self._account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        return account

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        """Return a repository, or refuse as the Hub does: a private one that may not be read does not exist."""
        account = self._user() if write else self._account()
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not (account and account.may_read(repo_id))):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and not (account and account.may_write(repo_id)):
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")
        return repo

    # --- routes ---

    def whoami(self) -> dict[str, Any]:
        account = self._user()
        organisations = [{"name": name, "roleInOrg": role} for name, role in account.organisations.items()]
        token = {"displayName": "test", "role": account.role}
        return {
            "type": "user",
            "name": account.user,
            "orgs": organisations,
            "auth": {"type": "access_token", "accessToken": token},
        }

    def create(self) -> dict[str, Any]:
        account, wanted = self._user(), json.loads(self.content)
        namespace = wanted.get("organization") or account.user
        repo_id = f"{namespace}/{wanted['name']}"
        address = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if not account.may_create_in(namespace):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
        if repo_id in self.hub.repos:
            raise Refusal(409, "You already created this model repo", body=address)
        self.hub.add(repo_id, wanted.get("visibility") == "private")
        return address

    def auth_check(self, repo_id: str, write: str | None) -> dict[str, Any]:
        self._repo(repo_id, write=write is not None)
        return {}

    def info(self, repo_id: str, revision: str | None = None) -> dict[str, Any]:
        repo = self._repo(repo_id)
        oid, files = self._commit(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": repo_id, "sha": oid, "private": repo.private, "siblings": siblings, "tags": [], "downloads": 0}

    def tree(self, repo_id: str, revision: str, path: str = "") -> list[dict[str, Any]]:
        _, files = self._commit(self._repo(repo_id), revision)
        there = {name: content for name, content in files.items() if name.startswith(f"{path}/" if path else "")}
        if not there and path:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        start = len(path) + 1 if path else 0
        flat = "recursive=false" in self.path.lower()
        folders = {name[: name.index("/", start)] for name in there if "/" in name[start:]} if flat else set()
        found = [name for name in there if not (flat and "/" in name[start:])]
        return [*map(_folder, sorted(folders)), *(_file(name, there[name]) for name in sorted(found))]

    def paths_info(self, repo_id: str, revision: str) -> list[dict[str, Any]]:
        _, files = self._commit(self._repo(repo_id), revision)
        asked = parse_qs(self.content.decode())["paths"]
        folders = [path for path in asked if any(name.startswith(f"{path}/") for name in files)]
        return [*map(_folder, folders), *(_file(path, files[path]) for path in asked if path in files)]

    def preupload(self, repo_id: str, revision: str) -> dict[str, Any]:
        self._commit(self._repo(repo_id, write=True), revision)
        paths = [file["path"] for file in json.loads(self.content)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}

    def lfs_batch(self, repo_id: str) -> dict[str, Any]:
        self._repo(repo_id, write=True)
        objects = json.loads(self.content)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}
                verify = {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/objects/verify"}
                item["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> dict[str, Any]:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refusal(400, "content does not match its hash")
        self.hub.blobs[oid] = self.content
        return {}

    def lfs_verify(self, repo_id: str) -> dict[str, Any]:
        self._repo(repo_id, write=True)
        claim = json.loads(self.content)
        if len(self.hub.blobs.get(claim["oid"], b"")) != claim["size"]:
            raise Refusal(404, "no such object")
        return {}

    def commit(self, repo_id: str, revision: str) -> dict[str, Any]:
        repo = self._repo(repo_id, write=True)
        files, message = dict(self._commit(repo, revision)[1]), ""
        for line in self.content.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in self.hub.blobs:
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise Refusal(400, f"cannot commit {other}: {value['path']}")
        oid = repo.commit(message, files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"}

    def validate_yaml(self) -> dict[str, Any]:
        card = json.loads(self.content)["content"]
        if card and not re.match(r"---\r?\n.*?\n---\r?\n", card, re.DOTALL):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        return {"errors": [], "warnings": []}

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        oid, files = self._commit(self._repo(repo_id), revision)
        headers = {"X-Repo-Commit": oid, "Content-Type": "application/octet-stream", "Accept-Ranges": "none"}
        if path not in files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._send(404, b"Entry not found", headers)
        content = files[path]
        large = path.endswith(LFS_SUFFIXES)
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest() if large else _git_oid(content)}"'
        return self._send(200, content, headers)

    def _commit(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repo.at(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


_Handler.routes = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", f"/api/(?:models|datasets)/{REPO}/auth-check(?P<write>/write)?", _Handler.auth_check),
    ("GET", f"/api/(?:models|datasets)/{REPO}", _Handler.info),
    ("GET", f"/api/(?:models|datasets)/{REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", f"/api/(?:models|datasets)/{REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET", f"/api/(?:models|datasets)/{REPO}/tree/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.tree),
    ("POST", f"/api/(?:models|datasets)/{REPO}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", f"/api/(?:models|datasets)/{REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", f"/api/(?:models|datasets)/{REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", f"/(?:datasets/)?{REPO}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", f"/(?:datasets/)?{REPO}\\.git/info/lfs/objects/verify", _Handler.lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("GET HEAD", f"/(?:datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)


def _file(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": _git_oid(path.encode()), "size": 0}


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
