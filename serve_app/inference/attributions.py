"""What an explanation consists of. Loads nothing else, so what only hands it on does not load torch."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE = "the embedding of [PAD] in place of every token of the text; [CLS] and [SEP] stay"


@dataclass(frozen=True)
class WordAttribution:
    """Of the characters ``start`` to ``end``: ``attribution`` in nats, positive where they speak for the label."""

    start: int
    end: int
    attribution: float


@dataclass(frozen=True)
class Attributions:
    """``words`` in the order of the text; log odds of the label, nats, for the text and for the baseline."""

    words: list[WordAttribution]
    log_odds: float
    baseline_log_odds: float

    @property
    def completeness_gap(self) -> float:
        """By how much the attributions miss the difference between text and baseline, nats; 0 with enough steps."""
        return sum(word.attribution for word in self.words) - (self.log_odds - self.baseline_log_odds)
