"""What LitServe serves in ``tests.benchmarks.serving_servers``, in a module that its worker processes can import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litserve

from tests.benchmarks.serving_servers import pipeline_of


class Api(litserve.LitAPI):
    """A transformers pipeline on the model ``folder``, in LitServe's batches."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder

    def setup(self, device: str) -> None:
        """Loads the model; called in the worker."""
        self._classify = pipeline_of(self._folder)

    # LitServe takes an annotation for the schema of its endpoint; without one the body may be any JSON.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """The text of a request's body."""
        return str(request["text"])

    def predict(self, texts: list[str]) -> Any:
        """A batch."""
        return self._classify(texts, batch_size=len(texts))

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """The answer's body."""
        return output
