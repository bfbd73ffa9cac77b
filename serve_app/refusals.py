"""What a tracking server with users, or S3, does not permit, told apart from what is not there, and the way out."""

from __future__ import annotations

import os
import re
import sys
from typing import Final
from urllib.parse import urlsplit

_STATUS: Final = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}  # HTTP's numbers for MLflow's words
_ARTIFACT: Final = "/mlflow-artifacts/artifacts/"


def refusal(error: BaseException | None) -> str | None:
    """What a tracking server with users says no to, who asked, and the way out; None if ``error`` is something else."""
    if error is None or "Invalid Host header" in str(error):  # a 403 too, of a server without --allowed-hosts
        return None
    import requests

    found = re.search(r"endpoint \S*?/mlflow/(\S+)", str(error))
    status, what = _STATUS.get(getattr(error, "error_code", "")), found[1] if found else "the request"
    if isinstance(error, requests.HTTPError) and error.response is not None:  # an artifact's, through the server
        path = urlsplit(error.response.url).path.partition(_ARTIFACT)[2]
        status, what = (error.response.status_code if path else None), f"the artifact {path}"
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    user = f"user '{name}'" if name else "a request without user name"
    if status == requests.codes.unauthorized:
        return (
            f"MLflow refuses {user}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user that it knows"
        )
    if status == requests.codes.forbidden:
        return (
            f"MLflow does not permit this to {user}: {what}. Have the permission granted (docs/gate.md, 'On a real "
            "server'), or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to another user"
        )
    return refusal(error.__cause__ or error.__context__)


def is_s3_gone(error: BaseException) -> bool:
    """Whether S3 cannot be reached, fails, or lets nobody in with these credentials, or without any.

    boto's errors have a base of their own. Where boto was never imported, none can have been raised.
    """
    boto = sys.modules.get("botocore.exceptions")
    if boto is None:
        return False
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status in (401, 403) or status >= 500
    return isinstance(error, boto.BotoCoreError)


def storage_problem(url: str, error: BaseException) -> str:
    """What keeps from reading or writing at ``url``, in one line, with the fix where it is known."""
    said = " ".join(str(error).split()) or type(error).__name__
    boto = sys.modules.get("botocore.exceptions")
    if "://" not in url:
        return said
    if boto is not None and isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return (
            f"{said}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of Ray's processes on every "
            "node (before `ray start`), or give the machines a role"
        )
    if isinstance(error, PermissionError):
        return f"{said}. These credentials do not open it: correct them, or have the right to read and write granted"
    if isinstance(error, FileNotFoundError) and "bucket" in said:
        return f"{said}. Correct its name, or make it first: a bucket that is missing is not made"
    return said
