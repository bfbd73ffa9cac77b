"""Whether this user may change a model, found out before anything is changed.

A tracking server with users tells nobody his rights, and lets readers make experiments and registered models of their
own, so that a promotion would fail half-way. So each run that is going to be written to is first given a value that it
has already, and from the registered model a tag is removed that is not there (which takes the right to edit), and an
alias that is not there (which takes the right to delete).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gate import audit, registry
from serve_app import mlflow_client as names
from serve_app.mlflow_client import TrackingUnavailable, find_run
from serve_app.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NO_ALIAS: Final = "trialgate-no-such-alias"
_NO_TAG: Final = "trialgate.no_such_tag"


def require_right_to_change(
    client: MlflowClient, model_name: str, run_id: str | None = None, *, removes: bool = False
) -> None:
    """Raises TrackingUnavailable, which names what is not permitted, unless this user may write to all there is of:
    the candidate's run ``run_id``, the history of decisions, and the registered model; with ``removes`` also take
    aliases and tags from it, as rolling back does."""
    if not client.tracking_uri.startswith("http"):  # a database has no users in this sense
        return
    run = find_run(client, run_id) if run_id else None
    if run is not None and run.info.lifecycle_stage == "active" and names.KIND in run.data.tags:
        with _told(f"write to run {run_id}"):
            client.set_tag(run.info.run_id, names.KIND, run.data.tags[names.KIND])
    past = audit.any_run(client)
    if past is not None:
        with _told(f"write to experiment {audit.EXPERIMENT}"):
            client.set_tag(past.info.run_id, names.KIND, names.KIND_DECISION)
    if registry.find_model(client, model_name) is not None:
        with _told(f"change registered model {model_name}"):
            client.delete_registered_model_tag(model_name, _NO_TAG)
        if removes:
            with _told(f"remove aliases and tags from registered model {model_name}"):
                client.delete_registered_model_alias(model_name, _NO_ALIAS)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A refusal says what for."""
    try:
        yield
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        raise TrackingUnavailable(f"no permission to {what}. {refused}") from error
