from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.cleaning import clean_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Great film.<br /><br />Go!", "Great film.\nGo!"),
        ("one<BR>two<br/>three</br>four", "one\ntwo\nthree\nfour"),
        ("<p>one</p><p>two</p>", "one\ntwo"),
        ("  two   spaces\tand a tab ", "two spaces and a tab"),
        ("lines\r\n\r\n  of Windows\rand Mac", "lines\nof Windows\nand Mac"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("cafe\u0301", "café"),
        ("don\x92t \x96 really\x85", "don’t – really…"),
        ("\ufeffmark and zero\u200bwidth", "mark and zerowidth"),
        ("bell\x07 and null\x00", "bell and null"),
        ("", ""),
        (" <br /> \n\t", ""),
    ],
)
def test_cleans(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "NOT good!!! :-( ... 10/10",
        "a < b and b > a",
        "AT&amp;T &quot;quoted&quot;",
        "<b>bold</b> <brilliant> <print>",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 family, one emoji",
        "می\u200cخواهم",
        "straße, naïve, 映画, ½",
    ],
)
def test_keeps_what_means_something(text: str) -> None:
    assert clean_text(text) == text


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    assert "  " not in once


@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P"])))
def test_words_survive(text: str) -> None:
    if "<" not in text:
        assert clean_text(f"  {text}\n") == text
