"""The pages for a browser: one to try the service, one that shows the OpenAPI document. Neither needs the internet."""

from __future__ import annotations

import importlib.resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

# Nothing from elsewhere, and nobody else can be talked to; ``data:`` is the empty icon.
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_pages(api: FastAPI) -> None:
    """Adds ``/`` and ``/docs``."""
    _add_page(api, "/", "page.html")
    _add_page(api, "/docs", "docs.html")


def _add_page(api: FastAPI, path: str, file: str) -> None:
    page = importlib.resources.files("serve_app").joinpath(file).read_text(encoding="utf-8")

    @api.get(path, include_in_schema=False)
    async def show() -> Response:
        return HTMLResponse(page, headers=_HEADERS)
