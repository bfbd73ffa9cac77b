"""Lists the skipped tests of JUnit reports and fails when one was skipped for a reason that is not allowed.

    python .ci/unexpected_skips.py ALLOWED REPORT.xml ...

ALLOWED holds one regular expression a line, searched for in the reason; lines that start with # are comments.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree


def allowed_patterns(file: Path) -> list[re.Pattern[str]]:
    """The expressions in ``file``."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def skipped(report: Path) -> Iterator[tuple[str, str]]:
    """(test, reason) of every test in ``report`` that did not run to its end; expected failures count too."""
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.findall("skipped"):
            yield f"{case.get('classname')}::{case.get('name')}", skip.get("message") or skip.text or "no reason given"


def main(arguments: list[str]) -> int:
    """Exit code 0 when every skip is allowed."""
    allowed = allowed_patterns(Path(arguments[0]))
    skips = [skip for report in arguments[1:] for skip in skipped(Path(report))]
    unexpected = 0
    for test, reason in skips:
        known = any(pattern.search(reason) for pattern in allowed)
        unexpected += not known
        print(f"{'allowed' if known else 'NOT ALLOWED'}: {test}: {reason}")
    print(f"{len(skips)} skipped, {unexpected} of them for a reason that .ci/allowed-skips does not name")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
