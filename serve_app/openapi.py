"""The parts of the OpenAPI document that FastAPI cannot see: bodies read by hand, errors, headers and keys."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from configs.schema import ServingConfig
from serve_app.errors import ErrorCode
from serve_app.schemas import ErrorReply


def _header(description: str, **schema: str | int) -> dict[str, Any]:
    return {"required": True, "description": description, "schema": schema}


_HEADERS = {
    "x-request-id": _header("The client's, or a new one.", type="string", minLength=1, maxLength=128),
    "x-model-version": _header("What computed the answer, else what is served, or none.", type="string"),
    "Server-Timing": _header("Milliseconds per phase, and in total.", type="string"),
}
_RETRY_AFTER = {"Retry-After": _header("Seconds until it is worth another try.", type="integer", minimum=1)}
_HEADERS_OF_STATUS = {
    "401": {"WWW-Authenticate": _header("How keys are sent.", type="string")},
    "429": _RETRY_AFTER,
    "503": _RETRY_AFTER,
}


def error_replies(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for these statuses: our envelope, with the codes that each can have."""
    return {
        status: {
            "model": ErrorReply,
            "description": " or ".join(code.value for code in ErrorCode if code.status == status),
        }
        for status in statuses
    }


def request_body(model: type[BaseModel], limits: ServingConfig) -> dict[str, Any]:
    """FastAPI's ``openapi_extra`` for a route that reads a ``model`` with a ``text`` or ``texts`` from its body by
    itself, within ``limits``."""
    schema = model.model_json_schema()
    fields = schema["properties"]
    if "texts" in fields:
        fields["texts"]["maxItems"] = limits.max_client_batch_size
    text = fields["texts"]["items"] if "texts" in fields else fields["text"]
    text.update(minLength=1, maxLength=limits.max_text_chars)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def complete_openapi(api: FastAPI, keyed_routes: Set[str]) -> None:
    """Adds to the generated document what FastAPI cannot see: keys (of ``keyed_routes``; empty when
    none are configured) and the headers of every response."""
    document = api.openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, reply in operation["responses"].items():
                reply["headers"] = {**_HEADERS, **_HEADERS_OF_STATUS.get(status, {})}
            if path in keyed_routes:
                operation["security"] = [{"bearer": []}, {"apiKey": []}]
    if keyed_routes:
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    api.openapi_schema = json.loads(json.dumps(document))
