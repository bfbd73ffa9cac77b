"""The parts of the OpenAPI document that FastAPI cannot see: bodies read by hand, errors, headers and keys."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serve_app.errors import ErrorCode
from serve_app.schemas import ErrorReply


def error_replies(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for these statuses: our envelope, with the codes that each can have."""
    return {
        status: {
            "model": ErrorReply,
            "description": " or ".join(code.value for code in ErrorCode if code.status == status),
        }
        for status in statuses
    }


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """FastAPI's ``openapi_extra`` for a route that reads a ``model`` from its body by itself."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def complete_openapi(api: FastAPI, keyed_routes: Set[str]) -> None:
    """Adds to the generated document what FastAPI cannot see: keys (of ``keyed_routes``; empty when
    none are configured) and the headers of every response."""
    document = api.openapi()
    text = {"schema": {"type": "string"}}
    headers = {"x-request-id": text, "x-model-version": text, "Server-Timing": text}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for reply in operation["responses"].values():
                reply["headers"] = dict(headers)
            if "429" in operation["responses"]:
                operation["responses"]["429"]["headers"]["Retry-After"] = {"schema": {"type": "integer"}}
            if path in keyed_routes:
                operation["security"] = [{"bearer": []}, {"apiKey": []}]
    if keyed_routes:
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    api.openapi_schema = json.loads(json.dumps(document))
