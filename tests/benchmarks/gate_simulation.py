"""How often the gate promotes a candidate that is no better than production, with and without significance.

    python -m tests.benchmarks.gate_simulation [--sets 2000]

No model runs here. Production gets 88 % of all texts right and the candidate 88 % plus a true difference; on 6 % of the
texts exactly one of them is right. Test splits of n texts of two equally frequent classes are drawn from these numbers,
and each is judged by the functions that the gate itself uses: ``decide`` for the rule, ``difference_of`` for the
interval that ``gate.require_significant`` asks for. Takes about a minute.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from gate.comparison import Cell, difference_of
from gate.rule import decide

ACCURACY = 0.88
DISCORDANT = 0.06  # share of texts that exactly one of the two gets right
TEXTS = (1_000, 25_000)
DIFFERENCES = (0.01, 0.005, 0.0, -0.005, -0.01, -0.02)  # true accuracy of the candidate minus production's
# Whether production and candidate are right, for each cell of one class.
_RIGHT = [(True, True), (True, False), (False, True), (False, False)]


def probabilities(difference: float) -> np.ndarray:
    """The probability of each cell: two classes by the four rows of ``_RIGHT``."""
    only_production, only_candidate = (DISCORDANT - difference) / 2, (DISCORDANT + difference) / 2
    both = ACCURACY - only_production
    return np.tile([both, only_production, only_candidate, 1 - both - DISCORDANT], 2) / 2


def drawn(texts: int, difference: float, random: np.random.Generator) -> list[Cell]:
    """One test split, as the gate's comparison records it."""
    counts = random.multinomial(texts, probabilities(difference))
    kinds = [(true, true if before else 1 - true, true if after else 1 - true)
             for true in (0, 1) for before, after in _RIGHT]  # fmt: skip
    return [(*kind, int(count)) for kind, count in zip(kinds, counts, strict=True) if count]


def promoted(texts: int, difference: float, sets: int) -> tuple[float, float]:
    """Shares of ``sets`` test splits on which the candidate is promoted: by the rule, and if it must be significant."""
    random = np.random.default_rng((texts, round(1000 * (1 + difference))))
    rule = significant = 0
    for _ in range(sets):
        found = difference_of("", drawn(texts, difference, random), 2, [1])
        passed = decide(found.candidate_f1, found.production_f1, True, 0.85).passed
        rule += passed
        significant += passed and found.difference.low > 0.0
    return rule / sets, significant / sets


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gate_simulation", description=__doc__)
    parser.add_argument("--sets", type=int, default=2000, help="test splits drawn for each line, count")
    sets = parser.parse_args(argv).sets
    print(f"{sets} test splits for each line; production is right in {ACCURACY:.0%} of the texts\n")
    print("| texts | true difference | promoted by the rule | with require_significant |")
    print("| ---: | ---: | ---: | ---: |")
    for texts in TEXTS:
        for difference in DIFFERENCES:
            rule, significant = promoted(texts, difference, sets)
            print(f"| {texts:,} | {difference:+.3f} | {rule:.1%} | {significant:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
