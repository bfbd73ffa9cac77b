"""How many classifier replicas: by the texts in work, and one more for as long as any replica turns texts away.

Ray counts HTTP requests. A batch of 32 texts is one of those and 32 texts of work, and a replica that refuses what it
cannot answer in time keeps few requests in work, however many come. So replicas tell both figures
(``record_autoscaling_stats``), and Serve asks ``policy``; its delays and bounds apply to the answer.

Serve's controller unpickles the policy: it stands on nothing but this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

TEXTS = "texts"  # admitted and not answered
REFUSED_TEXTS = "refused_texts"  # turned away as overloaded, since the figure was asked for the last time


def replicas_for(texts: Iterable[float], refused_texts: Iterable[float], *, target: float, running: int) -> float:
    """The number of replicas, not whole, with which each would have ``target`` texts in work; more than those
    ``running`` if any replica refuses. ``texts``, ``refused_texts``: one figure per replica."""
    wanted = sum(texts) / target
    return max(wanted, running + 1) if any(refused > 0 for refused in refused_texts) else wanted


def policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Called by Serve in every round of its controller. While no replica has told its figures, nothing changes."""
    figures = context.aggregated_metrics or {}
    if not figures.get(TEXTS) or context.config is None:
        return context.target_num_replicas, {}
    return replicas_for(
        figures[TEXTS].values(),
        figures.get(REFUSED_TEXTS, {}).values(),
        target=context.config.get_target_ongoing_requests(),
        running=context.current_num_replicas,
    ), {}
