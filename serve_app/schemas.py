"""Bodies of requests and replies, and the strict reading of a request: bytes to texts, or the one fitting error."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from configs.schema import ServingConfig
from serve_app.errors import ErrorCode, ServiceError

_TRUNCATE = Field(
    True, description="true: a text over the model's max_length tokens is cut; false: it is refused as text_too_long."
)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PredictRequest(_Request):
    """Body of POST /predict."""

    text: str = Field(description="The text to classify; not empty, at most max_text_chars characters.")
    truncate: bool = _TRUNCATE


class BatchPredictRequest(_Request):
    """Body of POST /batch_predict."""

    # The first that is no text ends it: a list of a million problems would hold up everybody else for seconds.
    texts: Annotated[list[str], FailFast()] = Field(
        min_length=1, description="The texts to classify, at most max_client_batch_size."
    )
    truncate: bool = _TRUNCATE


class ExplainRequest(_Request):
    """Body of POST /explain."""

    text: str = Field(description="The text to explain; not empty, at most max_text_chars characters.")
    truncate: bool = _TRUNCATE
    label: str | None = Field(None, description="The class to speak of; by default the most probable one.")


class Prediction(BaseModel):
    """The answer for one text."""

    label: str = Field(description="The most probable class.")
    score: float = Field(description="Its probability, 0 to 1.")
    probabilities: dict[str, float] = Field(description="Probability of every class, 0 to 1; their sum is 1.")
    truncated: bool = Field(description="The text was longer than max_length tokens and was cut.")
    model_version: str = Field(description="The registered version that computed this.")


class BatchPrediction(BaseModel):
    """The answers for a batch, in the order of its texts, computed by one version."""

    predictions: list[Prediction]
    model_version: str


class Token(BaseModel):
    """A word of the text, and what it did."""

    text: str = Field(description="The word as it stands in the text.")
    start: int = Field(description="Its first character in the text, counted in Unicode code points from 0.")
    end: int = Field(description="The one after its last character.")
    attribution: float = Field(description="Nats by which it moved the log odds of explained_label; negative: against.")


class ExplainedPrediction(Prediction):
    """A prediction, and which words moved it: integrated gradients (Sundararajan, Taly and Yan, 2017)."""

    explained_label: str = Field(description="The class that the attributions are about.")
    tokens: list[Token] = Field(description="The words that the model read, in order; pieces of a word are added up.")
    baseline: str = Field(description="What the text is compared with.")
    log_odds: float = Field(description="ln(p / (1 - p)) of explained_label for the text, nats.")
    baseline_log_odds: float = Field(description="The same for the baseline.")
    completeness_gap: float = Field(
        description="Sum of the attributions minus (log_odds - baseline_log_odds): their error, near 0."
    )


class Health(BaseModel):
    """Reply of GET /health."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Reply of GET /ready: at least one classifier replica has a model loaded and warm."""

    status: Literal["ready"]
    ready_replicas: int
    replicas: int


class Limits(BaseModel):
    """What a request may ask for, and how long it may take."""

    max_length: int | None = Field(description="Tokens that the model reads of a text; null while there is no model.")
    max_text_chars: int = Field(description="Longest text, characters.")
    max_client_batch_size: int = Field(description="Most texts in one /batch_predict.")
    max_body_bytes: int = Field(description="Largest request body.")
    max_concurrent_texts: int = Field(description="Texts that one replica admits at once; beyond: 429.")
    max_queue_ms: int = Field(description="Longest estimated wait with which a request is admitted; else 429.")
    max_batch_tokens: int = Field(description="Most tokens in one forward pass.")
    max_batch_texts: int = Field(description="Most texts in one forward pass.")
    deadline_ms: int = Field(description="Longest time from first byte to answer.")


class ExplanationLimits(BaseModel):
    """The limits of /explain."""

    max_tokens: int = Field(description="Longest text that is explained, tokens.")
    steps: int = Field(description="Gradients that an explanation takes.")
    deadline_ms: int = Field(description="Longest time from first byte to answer.")
    max_concurrent: int = Field(description="Explanations that one replica admits at once; beyond: 429.")


class LoadError(BaseModel):
    """A version that a replica could not load."""

    version: str
    error: str = Field(description="What was found.")
    fix: str = Field(description="What to do, and when it is tried again.")
    tries: int = Field(description="How often it was tried.")
    at: float = Field(description="When it was tried last, seconds since 1970.")


class Replica(BaseModel):
    """A classifier replica. What is about its model is left out while it has none."""

    replica: str
    ready: bool
    version: str | None = Field(description="The version that it serves.")
    desired_version: str | None = Field(description="The version that the alias names.")
    loading_version: str | None
    started_from_last_good: bool = Field(
        description="It serves the last version that loaded well on its machine, and could not ask the registry since."
    )
    load_errors: list[LoadError]
    registry_error: str | None = Field(description="Why it cannot ask the registry.")
    since: float = Field(0.0, description="When it put its version to work, seconds since 1970.")
    run_id: str | None = None
    f1: float | None = None
    labels: list[str] = []
    max_length: int = 0
    precision: str = ""
    precision_reason: str = ""
    device: str = ""
    weights_digest: str = ""


class Info(BaseModel):
    """Reply of GET /info. What is about the model is null while there is none."""

    model_name: str
    alias: str = Field(description="The registry alias that is followed.")
    model_version: str | None = Field(description="The version that was put to work last.")
    run_id: str | None = Field(description="The MLflow run that trained it.")
    f1: float | None = Field(description="Its F1 at the gate.")
    labels: list[str] | None
    precision: str | None
    precision_reason: str | None
    device: str | None
    application_version: str
    draining: bool
    limits: Limits
    explanations: ExplanationLimits | None = Field(description="Null when /explain is switched off.")
    replicas: list[Replica] = Field(description="Every classifier.")


class ErrorBody(BaseModel):
    """What went wrong."""

    code: ErrorCode
    message: str
    retryable: bool
    request_id: str


class ErrorReply(BaseModel):
    """The envelope of every error."""

    error: ErrorBody


RequestModel = TypeVar("RequestModel", bound=_Request)


def parse_predict(body: bytes, limits: ServingConfig) -> PredictRequest:
    """The request of a /predict body. Raises ServiceError: bad_json, invalid_request, empty_text, text_too_long."""
    request = _validate(PredictRequest, body)
    _check_text("text", request.text, limits)
    return request


def parse_explain(body: bytes, limits: ServingConfig) -> ExplainRequest:
    """The request of an /explain body. Raises ServiceError as ``parse_predict``."""
    request = _validate(ExplainRequest, body)
    _check_text("text", request.text, limits)
    return request


def parse_batch_predict(body: bytes, limits: ServingConfig) -> BatchPredictRequest:
    """The request of a /batch_predict body. Raises ServiceError as ``parse_predict``, and batch_too_large."""
    request = _validate(BatchPredictRequest, body)
    if len(request.texts) > limits.max_client_batch_size:
        raise ServiceError(
            ErrorCode.BATCH_TOO_LARGE,
            f"'texts' has {len(request.texts)} texts, at most {limits.max_client_batch_size} are taken at once.",
        )
    for place, text in enumerate(request.texts):
        _check_text(f"texts[{place}]", text, limits)
    return request


def _validate(model: type[RequestModel], body: bytes) -> RequestModel:
    values = _parse_json(body)
    if not isinstance(values, dict):
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"The body must be a JSON object, found {_json_type(values)}.")
    if unknown := [name for name in values if name not in model.model_fields]:  # pydantic takes long to list thousands
        told = ", ".join(_field((name,)) for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        known = ", ".join(f"'{name}'" for name in model.model_fields)
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{told}{more}: unknown field; there are {known}.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(f"{_field(problem['loc'])}: {problem['msg']}" for problem in problems)
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{told}.") from None


def _parse_json(body: bytes) -> Any:
    """Strict JSON in UTF-8: no BOM, no UTF-16, no NaN."""
    try:
        # Numbers as floats: no field takes one, and Python refuses to read integers of more than 4300 digits.
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, parse_int=float)
    except UnicodeDecodeError as error:
        raise ServiceError(ErrorCode.BAD_JSON, f"The body is not valid UTF-8 (byte {error.start}).") from None
    except RecursionError:
        raise ServiceError(ErrorCode.BAD_JSON, "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")  # some of these messages end in it
        raise ServiceError(ErrorCode.BAD_JSON, f"The body is not JSON: {problem} at character {error.pos}.") from None
    except ValueError as error:
        raise ServiceError(ErrorCode.BAD_JSON, f"The body is not JSON: {error}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _check_text(field: str, text: str, limits: ServingConfig) -> None:
    if len(text) > limits.max_text_chars:
        raise ServiceError(
            ErrorCode.TEXT_TOO_LONG,
            f"'{field}' has {len(text)} characters, at most {limits.max_text_chars} are taken.",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"'{field}' has an unpaired surrogate at character {error.start}."
        raise ServiceError(ErrorCode.INVALID_REQUEST, message) from None
    if is_empty(text):
        raise ServiceError(ErrorCode.EMPTY_TEXT, f"'{field}' has no visible characters.")


def is_empty(text: str) -> bool:
    """Whether nothing is left of ``text`` without white space and control characters, which no model sees."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def _field(location: tuple[int | str, ...]) -> str:
    """``texts[2]`` for ("texts", 2). Names come from the client: cut, and made printable."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{ascii(part[:60])[1:-1]}" for part in location)
    return f"'{''.join(parts).lstrip('.')}'" if location else "body"


_JSON_TYPES: list[tuple[type, str]] = [(bool, "a boolean"), (str, "a string"), (list, "an array"), (float, "a number")]


def _json_type(value: object) -> str:
    return next((name for kind, name in _JSON_TYPES if isinstance(value, kind)), "null")
