"""Checks before training that the push to the Hub after it will succeed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_distill import parallel
from hf_distill.errors import UserError

LOGIN = "run `hf auth login`, or set the environment variable HF_TOKEN"
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def check_rights(repo_id: str | None, private: bool | None, output_dir: str, repo_type: str = "model") -> str:
    """Create the repository that a run pushes to, and return its full id.

    Creating it is the only sure test, and `Trainer` does the same in its constructor. For an existing repository, only
    the right to write is checked. In a run of several processes all must call this, after building
    `TrainingArguments` (which sets up their communication); only the first one contacts the Hub.

    Args:
        repo_id: `namespace/name`, or a name under the logged-in user; the name of `output_dir` if left out.
        private: Visibility of a new repository; the Hub's default if None. If True, an existing public repository is
            refused, since the push would publish the weights.
        output_dir: Directory of the run.
        repo_type: `model` or `dataset`.

    Raises:
        UserError: The push would fail; one line says why. Its `key` is `repo_id` or `private` if that key of `hub:` is
            wrong. The message never contains the token.
    """
    return parallel.asked_once(lambda: _check_rights(repo_id, private, output_dir, repo_type))


def look_at_rights(repo_id: str | None, private: bool | None, output_dir: str, repo_type: str = "model") -> str:
    """Return in words what a push would find on the Hub. Unlike `check_rights`, this creates nothing.

    Arguments and errors are those of `check_rights`. That a fine-grained token may create a repository shows only when
    it does.
    """
    return parallel.asked_once(lambda: _look_at_rights(repo_id, private, output_dir, repo_type))


def _look_at_rights(repo_id: str | None, private: bool | None, output_dir: str, repo_type: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    api, user, name = _log_in(repo_id, output_dir)
    try:
        with _explained("for the repository", name):
            _check_existing(api, user, name, private, repo_type)
    except UserError as error:
        if not isinstance(error.__cause__, RepositoryNotFoundError):
            raise
    else:
        return f"{name} is on the Hub, and the token may write to it"
    owner = name.partition("/")[0]
    roles = {one["name"]: one.get("roleInOrg") for one in user.get("orgs", [])}
    if owner != user["name"] and roles.get(owner, "read") == "read":
        raise _may_not_write(name, user)
    return f"{name} is not on the Hub yet, and {user['name']} may create it"


def _check_rights(repo_id: str | None, private: bool | None, output_dir: str, repo_type: str = "model") -> str:
    api, user, name = _log_in(repo_id, output_dir)
    with _explained("to create the repository", name, user):
        full: str = api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
    with _explained("for the right to write", full, user):
        _check_existing(api, user, full, private, repo_type)
    return full


def _check_existing(api: Any, user: dict[str, Any], name: str, private: bool | None, repo_type: str) -> None:
    """Refuse an existing repository that may not be written to, or that is public although a private one is wanted."""
    found: Any = api.repo_info(name, repo_type=repo_type)
    with _explained("for the right to write", name, user):
        # With `exist_ok`, creating also passes for a repository that exists and may only be read.
        api.auth_check(name, repo_type=repo_type, write=True)
    if private and not found.private:
        message = f"{name} exists and is public: make it private in its settings on the Hub, or choose another repo_id"
        raise UserError(message, key="private")


def _log_in(repo_id: str | None, output_dir: str) -> tuple[Any, dict[str, Any], str]:
    """Return the client of the Hub, what it says about the user, and the full id of the repository."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        names = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") != "0"]
        raise UserError(f"a push needs the Hub, but {' and '.join(names)} is set: unset it, or set push: false")
    wanted = _well_formed(repo_id or Path(output_dir).absolute().name, given=repo_id is not None)
    token = get_token()
    if token is None:
        raise UserError(f"a push needs a token, and none was found: {LOGIN}")
    api = HfApi(token=token)
    with _explained("to whom the token belongs"):
        user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"the token may only read, but a push must write: make a write token at {TOKENS_PAGE}")
    # Other missing rights show only in the next call: `whoami` does not list fine-grained rights and resource groups.
    return api, user, wanted if "/" in wanted else f"{user['name']}/{wanted}"


def _well_formed(repo_id: str, given: bool) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        found = f"`{repo_id}`" if given else f"the name of output_dir, `{repo_id}`,"
        advice = "write user/name with letters, digits and - _ . in each" if given else "set hub.repo_id"
        raise UserError(f"{found} is not a valid name for a repository on the Hub: {advice}", key="repo_id") from error
    return repo_id


@contextmanager
def _explained(what: str, repo_id: str = "", user: dict[str, Any] | None = None) -> Iterator[None]:
    """Context manager: turn an error of huggingface_hub into one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # The base class is also that of connection errors, in httpx or httpx2, whichever huggingface_hub uses.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            where = "the environment variable HF_TOKEN" if os.environ.get("HF_TOKEN") else "the login store"
            raise UserError(f"the Hub does not know the token in {where} (revoked, expired?): {LOGIN}") from error
        if status in (403, 404) and user is not None:
            raise _may_not_write(repo_id, user) from error
        raise UserError(f"the Hub returned status {status} when asked {what}: try later, or set push: false") from error
    except http_error as error:
        message = f"no connection to {constants.ENDPOINT} ({type(error).__name__}): check the network"
        raise UserError(f"{message}, or set push: false") from error


def _may_not_write(repo_id: str, user: dict[str, Any]) -> UserError:
    places = ", ".join([user["name"], *(one["name"] for one in user.get("orgs", []))])
    message = f"the token may not write to {repo_id}: choose a repository under {places}, "
    return UserError(message + f"or give the token that right at {TOKENS_PAGE}", key="repo_id")
