"""Retention: old versions that carry no alias are removed, for good, and that is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate import audit, registry
from gate.carry_out import carry_out, repair, settle_interrupted
from gate.decision import Decision, GateUsageError
from gate.lease import Lease
from gate.permissions import require_right_to_change
from serve_app.mlflow_client import PRODUCTION

if TYPE_CHECKING:
    from mlflow import MlflowClient


def prune(client: MlflowClient, model_name: str, keep: int, *, dry_run: bool = False) -> Decision:
    """Removes the versions beyond the newest ``keep`` (count) that carry no alias at all, with their logged models.

    The decision names them (``versions``, oldest first) and tells how many of them one could have gone back to.
    ``dry_run`` decides the same and removes nothing. Without anything to remove nothing is recorded. Raises
    GateUsageError, TrackingUnavailable, and as ``Lease``.
    """
    if keep < 0:
        raise GateUsageError(f"--keep is {keep}, expected 0 or more versions")
    registry.refuse_foreign(client, model_name)
    if not dry_run:
        repair(client)
        require_right_to_change(client, model_name, removes=True)
    decision = _decide(client, model_name, keep, dry_run=dry_run)
    if dry_run or not decision.versions:
        return decision
    with Lease(client, model_name, f"a prune by {audit.who()}") as lease:
        settle_interrupted(client, lease)
        decision = _decide(client, model_name, keep, dry_run=False)
        return carry_out(client, lease, decision) if decision.versions else decision


def _decide(client: MlflowClient, model_name: str, keep: int, *, dry_run: bool) -> Decision:
    there = registry.find_model(client, model_name) is not None
    aliases = registry.aliases(client, model_name)
    found = registry.versions(client, model_name) if there else []
    old = [version for version in found[: max(0, len(found) - keep)] if str(version.version) not in aliases.values()]
    numbers = [str(version.version) for version in old]
    production = aliases.get(PRODUCTION)
    if numbers:
        lost = sum(registry.can_go_back_to(version) for version in old)
        reason = (
            f"{len(numbers)} of {len(found)} versions, beyond the newest {keep} and without an alias: "
            f"{', '.join(numbers)}; production could have gone back to {lost or 'none'} of them"
        )
    else:
        reason = f"nothing to remove: no version beyond the newest {keep} of {len(found)} is without an alias"
    return Decision(decision="would_prune" if dry_run else "pruned", reason=reason, action="prune",
                    model_name=model_name, baseline_version=production, production_version=production,
                    versions=numbers)  # fmt: skip
