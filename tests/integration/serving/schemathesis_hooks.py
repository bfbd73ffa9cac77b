"""What JSON Schema cannot say of a valid request: `schemathesis run` in test_openapi.py loads this."""

from __future__ import annotations

from typing import Any

import schemathesis

from serve_app.schemas import is_empty

LABELS = (None, "negative", "positive")  # of the tiny models


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leaves out bodies that are valid by their schema and rightly refused."""
    body: Any = case.body
    if case.meta.generation.mode.is_negative or not isinstance(body, dict):
        return True
    texts = body.get("texts", [body.get("text")])
    fit = body.get("truncate", True) or all(len(text) < 60 for text in texts)  # at most as many tokens
    return fit and not any(map(is_empty, texts)) and body.get("label") in LABELS
