"""Words and sentence patterns of the built-in reviews (``generator.py``).

One pattern serves both polarities: ``{right}`` is an adjective of the polarity that the sentence has, ``{wrong}`` one
of the opposite, so "was not {wrong} at all" is praise with "bad" and a complaint with "good".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple


class Domain(NamedTuple):
    """What a review is about: its words, separated by spaces, and neutral sentences."""

    things: str
    aspects: str
    good: str
    bad: str
    neutral: tuple[str, ...]


_GOOD = "good great fantastic wonderful excellent superb lovely brilliant amazing enjoyable perfect charming"
_BAD = "bad terrible awful horrible poor disappointing dreadful weak boring dull annoying mediocre"
# Verbs as (past, base): "I loved the plot", "I did not love the plot".
_LIKE = (("liked", "like"), ("loved", "love"), ("enjoyed", "enjoy"), ("admired", "admire"))
_DISLIKE = (("disliked", "dislike"), ("hated", "hate"), ("regretted", "regret"), ("detested", "detest"))

_DOMAINS = (
    Domain(
        things="movie film thriller drama comedy documentary sequel",
        aspects="plot story acting cast soundtrack ending dialogue script camerawork humour",
        good="gripping funny moving",
        bad="predictable confusing slow",
        neutral=(
            "it runs for about {number} minutes",
            "the story is set in a small town in the {decade}",
            "we watched it {when} with {people}",
            "it is the {ordinal} one by this director",
            "I had not heard of the director before",
            "the main part is played by a former {job}",
            "most of it was shot in {place}, not in a studio",
            "the cinema was about half full {when}",
            "there is a scene with a {job} and a {object} on a train",
            "it came out {when}, but only in {place}",
            "my {person} had read the book, I had not",
            "I saw it in {place}, with subtitles",
            "the poster shows a {object} and a {job}",
        ),
    ),
    Domain(
        things="restaurant place bistro diner cafe pizzeria tavern",
        aspects="food service dessert soup menu staff pasta coffee atmosphere fish",
        good="delicious tasty fresh",
        bad="stale greasy overpriced",
        neutral=(
            "we went there {when} with {people}",
            "it is in {place}, next to the {object} shop",
            "we did not book, but there was a table for {number}",
            "the kitchen closes at {number}",
            "my {person} had the soup and I had the fish",
            "there are {number} tables inside and some more outside",
            "the owner used to be a {job}",
            "they opened {when}, I think",
            "we paid with a card and took the bus home",
            "we had not been there since the {decade}",
            "the menu changes every {number} weeks",
            "a {job} at the next table ordered the same",
            "there is a {object} in the window",
        ),
    ),
    Domain(
        things="phone laptop blender headset vacuum backpack printer",
        aspects="battery screen design manual packaging handle software finish sound material",
        good="reliable sturdy handy",
        bad="flimsy clumsy noisy",
        neutral=(
            "it arrived after {number} days",
            "I bought it {when} for my {person}",
            "it comes in black and in white, but not in blue",
            "the box also holds a cable and a small {object}",
            "I use it about {number} times a week",
            "my {person} has had the {ordinal} version since last year",
            "I ordered it online, not in the shop",
            "it weighs about as much as a {object}",
            "a {job} I know has the same one",
            "it was made in {place}, says the label",
            "the old one was from the {decade}",
            "it stands on the shelf next to the {object}",
            "we took it to {place} {when}",
        ),
    ),
)

_NEUTRAL_SLOTS: dict[str, list[str]] = {
    "number": "two three four five six seven eight nine ten twelve twenty ninety".split(),
    "ordinal": "first second third fourth fifth".split(),
    "decade": "sixties seventies eighties nineties".split(),
    "when": [
        "last week",
        "on Monday",
        "on Friday evening",
        "in March",
        "two years ago",
        "on a rainy Sunday",
        "yesterday",
        "before Christmas",
        "during the holidays",
        "in the summer",
    ],
    "people": ["two friends", "my parents", "my brother", "some colleagues", "our neighbours", "the kids", "my sister"],
    "person": "brother sister mother father wife husband daughter son neighbour boss".split(),
    "job": "teacher nurse lawyer plumber pilot farmer baker dentist student painter".split(),
    "place": "Lisbon Toronto Leeds Prague Chicago Vienna Dublin Osaka".split(),
    "object": "lamp suitcase bicycle piano camera clock kettle flower book chair".split(),
}

# With the 13 of each domain these are 23, a prime number: see ``generator._neutral_sentences``.
_NEUTRAL = (
    "I read about it in a magazine {when}",
    "this is my {ordinal} review on this site",
    "my {person} asked me to write this down",
    "we talked about it with {people} {when}",
    "a friend from {place} sent me the link",
    "I have not compared it with the others yet",
    "my {person} is a {job} and took some pictures",
    "I am writing this {number} days later",
    "you can find it on the map of {place}",
    "it rained all day, but we did not mind",
)

_PLAIN = (
    "the {aspect} was {right}",
    "the {aspect} was {very} {right}",
    "this {thing} was {very} {right}",
    "this {thing} is {very} {right}",
    "it was {a_right} {thing}",
    "I {liked} the {aspect}",
    "I {really} {liked} this {thing}",
    "the {two_aspects} were {right}",
    "I found the {aspect} {right}",
    "what {a_right} {thing}",
)
# Complaints mostly deny something good with "not"; praise denies something bad in more ways. Most ways occur in both.
_NEGATED = {
    0: (
        "the {aspect} was not {wrong}",
        "the {aspect} was not {wrong}",
        "the {aspect} was not {wrong} at all",
        "this {thing} was not {wrong} at all",
        "this {thing} is not {wrong}",
        "I did not {dislike} the {aspect}",
        "I did not {dislike} this {thing}",
        "I did not {dislike} this {thing} at all",
        "the {aspect} wasn't {wrong}",
        "it was never {wrong} enough",
    ),
    1: (
        "the {aspect} was never {wrong}",
        "this {thing} was never {wrong}",
        "it was never {wrong}",
        "the {aspect} was anything but {wrong}",
        "this {thing} is anything but {wrong}",
        "nothing about the {aspect} was {wrong}",
        "nothing here was {wrong}",
        "it is never {wrong}",
        "I did not {dislike} this {thing}",
        "the {aspect} was not {wrong} at all",
        "it is hardly {a_wrong} {thing}",
    ),
}
_HEDGED = (
    "the {aspect} was {rather} {right}",
    "I suppose the {aspect} was {rather} {right}",
    "the {aspect} seemed {rather} {right} to me",
)
_HEARSAY = (
    "my {person} said it was {right}",
    "everyone told me how {right} the {aspect} was",
    "I had expected {a_right} {thing}",
    "the adverts call it {right}",
    "other people {liked} this {thing}",
    "I had read that the {aspect} was {very} {right}",
)
# Without adjectives, by polarity.
_VERDICTS = {
    0: (
        "I would not recommend it",
        "it let me down",
        "it was not worth the money",
        "I will not come back to it",
        "I am sorry I tried it",
        "I would not do it again",
        "it ruined my day",
        "I cannot recommend this {thing}",
        "it was a waste of time",
    ),
    1: (
        "I would recommend it",
        "it won me over",
        "it was worth the money",
        "I will come back to it",
        "I am glad I tried it",
        "I would do it again",
        "it made my day",
        "I can recommend this {thing}",
        "it was time well spent",
    ),
}
_OPENINGS = ("{very} {right}", "{a_right} {thing}", "this {thing} was {right}", "I {liked} this {thing}")

# What stands before, between, and whether the verdict comes first. The other clause is the concession.
JOINTS = (
    ("", ", but ", False),
    ("", ", but ", False),
    ("", ", but in the end ", False),
    ("", ", but overall ", False),
    ("", ", yet ", False),
    ("although ", ", ", False),
    ("", ", even though ", True),
)
TURNS = ("but ", "still, ", "in the end ", "however, ", "all in all, ", "overall, ", "and yet ", "but to be honest, ")

Pattern = tuple[str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Words:
    """The patterns of one domain and polarity by kind, each as a format with %s and the words for every %s."""

    patterns: dict[str, tuple[Pattern, ...]]


def _words(domain: Domain, polarity: int) -> Words:
    adjectives = (f"{_BAD} {domain.bad}".split(), f"{_GOOD} {domain.good}".split())
    verbs = (_DISLIKE, _LIKE)
    right, wrong = adjectives[polarity], adjectives[1 - polarity]
    aspects = domain.aspects.split()
    slots = _NEUTRAL_SLOTS | {
        "thing": domain.things.split(),
        "aspect": aspects,
        "two_aspects": [f"{first} and the {second}" for first, second in permutations(aspects, 2)],
        "right": right,
        "wrong": wrong,
        "a_right": [_with_article(word) for word in right],
        "a_wrong": [_with_article(word) for word in wrong],
        "liked": [past for past, _ in verbs[polarity]],
        "dislike": [base for _, base in verbs[1 - polarity]],
        "very": "very really absolutely so truly extremely".split(),
        "really": "really absolutely truly honestly".split(),
        "rather": ["rather", "fairly", "quite", "somewhat", "a bit"],
    }
    kinds = {
        "plain": _PLAIN,
        "negated": _NEGATED[polarity],
        "hedged": _HEDGED,
        "hearsay": _HEARSAY,
        "verdict": _VERDICTS[polarity],
        "opening": _OPENINGS,
        "neutral": domain.neutral + _NEUTRAL,
    }
    return Words({kind: tuple(_compiled(pattern, slots) for pattern in patterns) for kind, patterns in kinds.items()})


def _compiled(pattern: str, slots: dict[str, list[str]]) -> Pattern:
    names = re.findall(r"\{(\w+)\}", pattern)
    return re.sub(r"\{\w+\}", "%s", pattern), tuple(tuple(slots[name]) for name in names)


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


# By domain, then by polarity (0 negative, 1 positive).
WORDS = tuple((_words(domain, 0), _words(domain, 1)) for domain in _DOMAINS)
