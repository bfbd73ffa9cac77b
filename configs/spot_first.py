"""Which of cluster.yaml's node types Ray's autoscaler starts: spot first, on-demand while there is no spot capacity.

Ray's autoscaler (version 1) calls ``score`` where ``RAY_AUTOSCALER_UTILIZATION_SCORER=configs.spot_first.score`` stands
in the environment of the head's ``ray start``. By itself version 1 knows when AWS refused a node type and does not look
at it. Version 2 has ``priority`` for node types, but of a refusal by AWS it takes no note (Ray 2.60): it would ask for
spot instances for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary


def score(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """Ray's own score, and for types of the same resources: is it to be had, is it spot (``spot`` is in its name).

    None where the node type fits none of ``resources``. A refusal counts for so many seconds as
    AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S says (Ray's default: 1800); then spot is asked for again.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    fit = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if fit is None:
        return None
    last = node_availability_summary.node_availabilities.get(node_type)
    return (*fit, last is None or last.is_available, "spot" in node_type)
