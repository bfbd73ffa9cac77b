"""The reading of a body: whatever it is, texts or one ServiceError, soon and with a short message."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import ServingConfig
from serve_app.errors import ErrorCode, ServiceError
from serve_app.reading import is_json
from serve_app.schemas import parse_batch_predict, parse_explain, parse_predict

LIMITS = ServingConfig(max_text_chars=50, max_client_batch_size=4)
PARSERS = [parse_predict, parse_batch_predict, parse_explain]

pieces = st.sampled_from(
    [
        *b'{ } [ ] " : , "text" "texts" \\ud800 \\u0000 \x00 \xff \xef\xbb\xbf 1e999 -0 null true NaN'.split(),
        b"9" * 5000,
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)
texts = st.text(st.characters(), max_size=60)  # surrogates too
objects = st.fixed_dictionaries(
    {},
    optional={"text": texts | values, "texts": st.lists(texts | values) | values, "truncate": values, "label": texts},
)
bodies = (
    st.binary()
    | st.lists(pieces).map(b"".join)
    | (values | objects).map(lambda value: json.dumps(value).encode())
    | objects.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
)


def outcome(parse: Callable, body: bytes) -> list[str] | ServiceError:
    try:
        asked = parse(body, LIMITS)
    except ServiceError as error:
        return error
    return asked.texts if parse is parse_batch_predict else [asked.text]


@pytest.mark.parametrize("parse", PARSERS)
@given(body=bodies)
def test_any_bytes_are_texts_or_one_error(parse: Callable, body: bytes):
    found = outcome(parse, body)
    if isinstance(found, ServiceError):
        assert found.code.status in (400, 422)
        assert len(json.dumps(found.envelope("id")).encode()) < 1000
    else:
        assert 1 <= len(found) <= 4
        assert all(1 <= len(text) <= 50 and text.encode() for text in found)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text": ' * 50_000 + b"1" + b"}" * 50_000,
        b'{"text": ' + b"9" * 100_000 + b"}",
        b'{"text": -1e999}',
        b'{"texts": [' + b"1," * 100_000 + b"1]}",
        b'{"texts": [' + b"{}," * 100_000 + b"1]}",
        b"{" + b",".join(b'"%d": 1' % number for number in range(50_000)) + b"}",
    ],
)
def test_large_rubbish_gets_one_short_error(parse: Callable, body: bytes):
    found = outcome(parse, body)
    assert isinstance(found, ServiceError)
    assert found.code in (ErrorCode.BAD_JSON, ErrorCode.INVALID_REQUEST)
    assert len(found.message) < 300


def test_unknown_fields_are_named_with_those_that_there_are():
    with pytest.raises(ServiceError, match=r"'a', 'b', 'c' and 1 more: unknown field; there are 'text', 'truncate'\."):
        parse_predict(b'{"text": "x", "a": 1, "b": 1, "c": 1, "d": 1}', LIMITS)


@given(
    st.lists(st.sampled_from(["application/json", "charset", "utf-8", *';=*"\\ \t,()0a\xff', "%ff", "''"])).map("".join)
)
def test_any_content_type_is_json_or_not(value: str):
    assert is_json([value]) in (True, False)
    assert not is_json([value, value])
    assert not is_json([])
