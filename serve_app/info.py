"""What /info says: the model that is served, the limits, and every replica."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from configs.schema import Settings
from serve_app.board import View


def describe(settings: Settings, view: View) -> dict[str, Any]:
    """The body of /info."""
    serving = settings.serving
    able = [replica for replica in view["replicas"] if replica["ready"]]
    newest: dict[str, Any] = max(able, key=lambda replica: replica["since"], default={})
    return {
        "model_name": settings.tracking.model_name,
        "alias": serving.alias,
        "model_version": newest.get("version"),
        "run_id": newest.get("run_id"),
        "f1": newest.get("f1"),
        "labels": newest.get("labels"),
        "precision": newest.get("precision"),
        "precision_reason": newest.get("precision_reason"),
        "device": newest.get("device"),
        "application_version": application_version(),
        "draining": view["draining"],
        "limits": {
            "max_length": newest.get("max_length"),
            "max_text_chars": serving.max_text_chars,
            "max_client_batch_size": serving.max_client_batch_size,
            "max_body_bytes": serving.max_body_bytes,
            "max_concurrent_texts": serving.max_concurrent_texts,
            "max_queue_ms": serving.max_queue_ms,
            "max_batch_tokens": serving.batch_tokens,
            "max_batch_texts": serving.max_batch_texts,
            "deadline_ms": serving.deadline_ms,
        },
        "explanations": {
            "max_tokens": serving.explain_max_tokens,
            "steps": serving.explain_steps,
            "deadline_ms": serving.explain_deadline_ms,
            "max_concurrent": serving.explain_max_concurrent,
        }
        if serving.explain_enabled
        else None,
        "replicas": view["replicas"],
    }


def current_version(view: View) -> str | None:
    """The version that was put to work last, of those that are being served."""
    able = [replica for replica in view["replicas"] if replica["ready"]]
    return max(able, key=lambda replica: replica["since"])["version"] if able else None


def application_version() -> str:
    """Version of the installed package."""
    try:
        return importlib.metadata.version("trialgate")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
