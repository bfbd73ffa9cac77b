"""Reading a request's body by hand: FastAPI would read it whole before anything of ours could refuse it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from email.message import Message

from fastapi import Request
from starlette.requests import ClientDisconnect

from configs.schema import ServingConfig
from serve_app.edge import Exchange
from serve_app.errors import ErrorCode, ServiceError


async def read_body(request: Request, limits: ServingConfig, exchange: Exchange) -> bytes:
    """The body, refused before it is read whole if it is not JSON by its type or too large. Raises ServiceError."""
    if not is_json(request.headers.getlist("content-type")):
        message = "The body must be sent as 'Content-Type: application/json' in UTF-8."
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
    too_large = ServiceError(
        ErrorCode.PAYLOAD_TOO_LARGE, f"The body is larger than {limits.max_body_bytes} bytes, the most that is taken."
    )
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    with exchange.phase("body"):
        try:
            async for chunk in request.stream():
                body += chunk
                exchange.body_bytes = len(body)
                if len(body) > limits.max_body_bytes:
                    raise too_large
        except ClientDisconnect:
            raise asyncio.CancelledError from None  # nobody is there to read an answer
    return bytes(body)


def is_json(content_types: Sequence[str]) -> bool:
    """Whether a request's Content-Type headers say application/json, in UTF-8 if they name a charset."""
    if len(content_types) != 1:
        return False
    if content_types[0] == "application/json":  # what nearly all send need not be parsed
        return True
    header = Message()
    header["content-type"] = content_types[0]
    try:
        parameters = header.get_params([])[1:]
    except (TypeError, ValueError):  # of the standard library, at continued parameters that are none
        return False
    charsets = {str(value).lower() for name, value in parameters if name.lower() == "charset"}
    return header.get_content_type() == "application/json" and charsets <= {"utf-8", "utf8"}
