"""Grade-school word problems, generated: seeded, reproducible to the byte, with shifts by name.

A problem is a story about one person's things: a start, then operations on the running number, then a question. Its
reasoning chain is the arithmetic, one equation a line, and ends in `#### N`. What the splits differ in:

    train, calibration, validation, test   2-8 steps, numbers to 999, the wordings, names and items of training
    more_steps                             9-11 steps
    larger_numbers                         the first number, and what is added or taken, larger than in training
    new_names                              names and items that training never shows
    reworded                               sentence templates that training never shows
    extra_clause                           an irrelevant clause with a number, of kinds that training never shows

In the last three, what is new stands beside what is known, as it does in real traffic. All splits use the words of
training and no others (a test proves it): a model with 1,024 tokens has never met the pieces of any other word, and
would be tested on nothing but that.

A problem's identity is its templates and numbers, names and items aside, and the hash of the identity alone decides
which of the four unshifted splits may use it. So no split ever shares a problem with another, not even a renamed one,
however many are drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from eval.datasets import Question
from gateway.errors import ConfigError

SHIFTS = ("more_steps", "larger_numbers", "new_names", "reworded", "extra_clause")
SPLITS = ("train", "calibration", "validation", "test", *SHIFTS)
SEED = 2026

# Of 20 equal buckets of identities: where each split's problems come from. Shifted problems differ from training by
# construction and still keep out of its buckets.
BUCKETS = {"train": range(4, 20), "calibration": range(2, 4), "validation": range(1, 2), "test": range(1)}

NAMES = tuple(
    """
    Ada Ben Cara Dan Elsa Finn Gina Hugo Ivy Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tara Uwe Vera Will Yara
    Zack Anna Bob Chloe David Emma Frank Grace Henry Iris Jonas Kate Liam
    """.split()  # noqa: SIM905 -- a list of words reads best as words
)
ITEMS = tuple(
    """
    apples books cards coins eggs flowers grapes hats jars keys lamps marbles nails oranges pens plums roses
    shells stamps stones toys cups balls beads boats candles cakes cookies lemons pears pencils plates tickets
    tulips
    """.split()  # noqa: SIM905 -- a list of words reads best as words
)
# Double names, and items that have a quality.
NEW_NAMES = ("Anna Grace", "Emma Rosa", "Ada Iris", "Kate Ivy", "Cara Mia", "Paul Leo", "Will Henry", "Dan David")
NEW_ITEMS = (
    "old coins",
    "new books",
    "smaller boats",
    "old lamps",
    "new toys",
    "smaller boxes",
    "old stamps",
    "new hats",
)

# {p}: whose story it is.  {q}, {r}: others.  {i}: the item.  {j}: another item.  {a}, {b}, {c}: numbers.
START = {
    "has": "{p} has {a} {i}.",
    "starts": "{p} starts the day with {a} {i}.",
    "bag": "There are {a} {i} in the bag of {p}.",
    "collects": "{p} collects {i} and has {a} of them.",
    "shelf": "On a shelf {p} keeps {a} {i}.",
    "morning": "In the morning {p} counts {a} {i}.",
}
START_PRODUCT = {
    "boxes": "{p} has {a} boxes with {b} {i} in each.",
    "rows": "{p} lays out {a} rows of {b} {i}.",
    "days": "For {a} days {p} gets {b} {i} every day.",
    "bags": "{p} fills {a} bags with {b} {i} each.",
}
STEP = {
    "add": {
        "buys": "{p} buys {b} more {i}.",
        "gift": "{q} gives {p} {b} {i}.",
        "finds": "Then {p} finds {b} {i} in the garden.",
        "brings": "Later {q} brings {b} more.",
        "makes": "After lunch {p} makes {b} new {i}.",
        "wins": "{p} wins {b} {i} in a game.",
        "post": "A parcel with {b} {i} comes for {p}.",
    },
    "sub": {
        "gives": "{p} gives {b} {i} to {q}.",
        "loses": "{p} loses {b} of them.",
        "sells": "Then {p} sells {b} {i}.",
        "break": "{b} {i} break.",
        "takes": "{q} takes {b} of the {i}.",
        "throws": "{p} throws away {b} old {i}.",
        "lends": "{p} lends {b} {i} to {q}.",
    },
    "mul": {
        "times": "Soon {p} has {b} times as many.",
        "grows": "By evening the number of {i} grows to {b} times what it was.",
        "each": "Each of them is swapped for {b} smaller {i}.",
        "multiplies": "{q} multiplies the {i} of {p} by {b}.",
    },
    "div": {
        "shares": "{p} shares the {i} equally among {b} people and keeps one share.",
        "piles": "{p} makes {b} equal piles of {i} and keeps just one pile.",
        "part": "Only one part in {b} of the {i} is left.",
        "divides": "{q} divides the {i} of {p} by {b}.",
    },
    "packs_in": {
        "packs": "{p} buys {b} packs with {c} {i} in each.",
        "friends": "Each of {b} friends gives {p} {c} {i}.",
        "days": "For {b} days {p} gets {c} more {i} a day.",
    },
    "packs_out": {
        "bags": "{p} gives away {b} bags of {c} {i}.",
        "friends": "Each of {b} friends takes {c} {i} from {p}.",
        "days": "For {b} days {p} uses {c} {i} a day.",
    },
}
ASK = {
    "have": {
        "now": "How many {i} does {p} have now?",
        "left": "How many {i} are there in the end?",
        "many": "What is the number of {i} that {p} has?",
    },
    "price": {
        "sell": "Each one sells for {b} dollars. How many dollars does {p} get for all of them?",
        "weigh": "Each one weighs {b} grams. How many grams do all of them weigh?",
    },
    "lack": {
        "needs": "{p} needs {b} {i} in all. How many are missing?",
        "wants": "{q} asks for {b} {i}. How many more must {p} find?",
    },
    "more_together": {
        "together": "{q} has {b} more {i} than {p}. How many do they have together?",
        "both": "{q} owns {b} more than {p}. How many {i} do both own?",
    },
    "times_together": {
        "together": "{q} has {b} times as many {i} as {p}. How many do they have together?",
        "both": "{q} owns {b} times as many as {p}. How many {i} do both own?",
    },
}
DISTRACT = {
    "other": "{q} has {c} {j}.",
    "same": "{r} has {c} {i} too.",
    "age": "{q} is {c} years old.",
    "walk": "{p} walks {c} minutes to school.",
    "shop": "The shop also sells {c} kinds of {j}.",
}

# Wordings that training never shows, for the split `reworded`.
NEW_START = {
    "bag": "In the bag of {p} there are {a} {i}.",
    "keeps": "{p} keeps {a} {i} in a bag.",
    "starts": "In the morning {p} starts with {a} {i}.",
}
NEW_START_PRODUCT = {
    "bags": "In the morning {p} has {a} bags of {b} {i} each.",
    "rows": "{p} counts {a} rows with {b} {i} each.",
}
NEW_STEP = {
    "add": {
        "brings": "After lunch {q} brings {p} {b} {i}.",
        "new": "{p} finds {b} new {i}.",
        "parcel": "Then {p} gets a parcel of {b} {i}.",
    },
    "sub": {
        "away": "Then {p} gives away {b} {i}.",
        "game": "{p} loses {b} {i} in a game.",
        "broken": "Soon {b} of them break.",
    },
    "mul": {"swapped": "{p} gets {b} {i} for each of them.", "day": "In a day {p} has {b} times as many {i}."},
    "div": {"friends": "{p} divides the {i} equally among {b} friends and keeps one share."},
    "packs_in": {
        "boxes": "{q} gives {p} {b} boxes with {c} {i} in each.",
        "each": "{p} gets {c} {i} from each of {b} friends.",
    },
    "packs_out": {
        "packs": "{p} sells {b} packs with {c} {i} in each.",
        "takes": "For {b} days {q} takes {c} {i} a day.",
    },
}
NEW_ASK = {
    "have": {"left": "How many {i} are left in the end?", "of": "What is the number of {i} now?"},
    "price": {"all": "{p} sells all of them for {b} dollars each. How many dollars does {p} get?"},
    "lack": {"must": "{p} must have {b} {i} in all. How many must {p} find?"},
    "more_together": {"of": "{q} has {b} more {i}. What is the number of {i} they have together?"},
    "times_together": {"of": "{q} has {b} times as many. What is the number of {i} they have together?"},
}
# Clauses of kinds that training never shows, for the split `extra_clause`.
CLAUSES = {
    "age": "{p} is {c} years old.",
    "walk": "{q} walks {c} minutes every day.",
    "friends": "{q} has {c} friends.",
    "gives": "{q} gives {r} {c} {j}.",
    "shop": "The shop sells {c} {j} every day.",
}

GROUP = 40  # the largest number in a pack
STEPS_OF = {"add": 1, "sub": 1, "mul": 1, "div": 1, "packs_in": 2, "packs_out": 2}
STEPS_OF_ASK = {"have": 0, "price": 1, "lack": 1, "more_together": 2, "times_together": 2}


@dataclass(frozen=True, slots=True)
class Problem:
    """One generated problem. answer: a positive integer.  magnitude: the largest number on the way.  identity: hex."""

    id: str
    split: str
    text: str
    chain: str
    answer: int
    steps: int
    magnitude: int
    identity: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a split allows. steps, peak: inclusive ranges; peak bounds the largest number on the way.

    start, spread: the first number, and a number added or taken, inclusive.
    """

    steps: tuple[int, int] = (2, 8)
    peak: tuple[int, int] = (0, 999)
    start: tuple[int, int] = (4, 400)
    spread: tuple[int, int] = (2, 199)
    new_words: bool = False
    reworded: bool = False
    clause: bool = False


RECIPES = {
    **dict.fromkeys(BUCKETS, Recipe()),
    "more_steps": Recipe(steps=(9, 11)),
    "larger_numbers": Recipe(start=(401, 600), spread=(100, 299)),
    "new_names": Recipe(new_words=True),
    "reworded": Recipe(reworded=True),
    "extra_clause": Recipe(clause=True),
}


def load(*, split: str = "test", n: int = 1000, seed: int = SEED) -> list[Question]:
    """The first n problems of a split as questions; needs no files. Slices: steps, magnitude, shift ("none" at home).

    Raises ConfigError for a split that does not exist.
    """
    if split not in SPLITS:
        raise ConfigError(f"pocket has no split {split!r}; have {', '.join(SPLITS)}")
    shift = split if split in SHIFTS else "none"
    return [
        Question(
            id=drawn.id,
            text=drawn.text,
            target=str(drawn.answer),
            dataset="pocket",
            split=split,
            solution=drawn.chain,
            family=drawn.identity,
            slices={"steps": drawn.steps, "magnitude": drawn.magnitude, "shift": shift},
        )
        for drawn in problems(split, n, seed=seed)
    ]


def problems(split: str, n: int, *, seed: int = SEED) -> Iterator[Problem]:
    """The first n problems of a split, no two of the same identity, however long the list.

    Raises ValueError for a split that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; have {', '.join(SPLITS)}")
    seen: set[str] = set()
    for index in count():
        if len(seen) == n:
            return
        drawn = problem(split, index, seed=seed)
        if drawn.identity not in seen:
            seen.add(drawn.identity)
            yield drawn


def problem(split: str, index: int, *, seed: int = SEED) -> Problem:
    """The index-th problem of a split. Draws until one fits the split's recipe and belongs to its buckets."""
    rng = random.Random(f"{seed}/{split}/{index}")  # seeding by a string is the same in every Python since 3.2
    recipe, buckets = RECIPES[split], BUCKETS.get(split, BUCKETS["test"])
    while True:
        draft = _draft(rng, recipe)
        if draft is None:
            continue
        text, equations, answer, peak, identity = draft
        if recipe.peak[0] <= peak <= recipe.peak[1] and int(identity[:8], 16) % 20 in buckets:
            chain = "\n".join([*equations, f"#### {answer}"])
            return Problem(f"pocket-{split}-{index}", split, text, chain, answer, len(equations), peak, identity)


class _Story:
    """A story under construction: the running number, its sentences, its equations."""

    def __init__(self, rng: random.Random, recipe: Recipe) -> None:
        self.rng, self.recipe = rng, recipe
        self.words = dict(zip("pqrij", [*rng.sample(NAMES, 3), *rng.sample(ITEMS, 2)], strict=True))
        if recipe.new_words:
            self.words |= {"p": rng.choice(NEW_NAMES)} if rng.random() < 0.5 else {"i": rng.choice(NEW_ITEMS)}
        self.sentences: list[str] = []
        self.equations: list[str] = []
        self.keys: list[str] = []
        self.value = self.peak = 0
        self.reworded = False

    def say(self, kind: str, wordings: dict[str, str], new: dict[str, str] | None = None, **numbers: int) -> None:
        """Put one sentence. new: wordings that a reworded story takes instead, every other time."""
        if new and self.recipe.reworded and self.rng.random() < 0.5:
            kind, wordings, self.reworded = f"new_{kind}", new, True
        key = self.rng.choice(list(wordings))
        self.sentences.append(wordings[key].format(**self.words, **numbers))
        self.keys.append(f"{kind}.{key}{tuple(numbers.values())}")

    def compute(self, left: int, sign: str, right: int) -> int:
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        self.equations.append(f"{left}{sign}{right}={result}")
        self.value, self.peak = result, max(self.peak, left, right, result)
        return result

    def below(self, low: int, high: int) -> int | None:
        """A number in [low, high], None when there is none."""
        return self.rng.randint(low, high) if low <= high else None


def _draft(rng: random.Random, recipe: Recipe) -> tuple[str, list[str], int, int, str] | None:
    """One try. None when the numbers drawn leave no legal next step."""
    story = _Story(rng, recipe)
    wanted = rng.randint(*recipe.steps)
    ask = rng.choice([kind for kind, cost in STEPS_OF_ASK.items() if cost < wanted])
    _begin(story, as_product=wanted - STEPS_OF_ASK[ask] > 1 and rng.random() < 0.3 and recipe.start[0] < GROUP)
    while (room := wanted - STEPS_OF_ASK[ask] - len(story.equations)) > 0:
        if not _step(story, rng.choice([kind for kind, cost in STEPS_OF.items() if cost <= room])):
            return None
    _disturb(story)
    if not _ask(story, ask) or story.reworded != recipe.reworded:
        return None
    identity = hashlib.sha256("|".join(story.keys).encode()).hexdigest()[:16]
    return " ".join(story.sentences), story.equations, story.value, story.peak, identity


def _begin(story: _Story, *, as_product: bool) -> None:
    rng, recipe = story.rng, story.recipe
    if as_product:
        a, b = rng.randint(2, 12), rng.randint(2, GROUP)
        story.say("start_product", START_PRODUCT, NEW_START_PRODUCT, a=a, b=b)
        story.compute(a, "*", b)
    else:
        a = rng.randint(*recipe.start)
        story.say("start", START, NEW_START, a=a)
        story.value = story.peak = a


def _step(story: _Story, kind: str) -> bool:
    """One operation on the running number, or False when no number fits."""
    top, x, (low, high) = story.recipe.peak[1], story.value, story.recipe.spread
    if kind in ("packs_in", "packs_out"):
        b = story.below(2, 9)
        c = story.below(2, min(GROUP, ((top - x) if kind == "packs_in" else x - 1) // (b or 1)))
        if b is None or c is None:
            return False
        story.say(kind, STEP[kind], NEW_STEP[kind], b=b, c=c)
        packed = story.compute(b, "*", c)
        story.compute(x, "+" if kind == "packs_in" else "-", packed)
        return True
    factors = {"mul": [k for k in range(2, 10) if x * k <= top], "div": [k for k in range(2, 10) if x % k == 0]}
    match kind:
        case "add":
            b = story.below(low, min(high, top - x))
        case "sub":
            b = story.below(low, min(high, x - 1))
        case _:
            b = story.rng.choice(factors[kind]) if factors[kind] else None
    if b is None:
        return False
    story.say(kind, STEP[kind], NEW_STEP[kind], b=b)
    story.compute(x, {"add": "+", "sub": "-", "mul": "*", "div": "/"}[kind], b)
    return True


def _disturb(story: _Story) -> None:
    """Put irrelevant sentences into the story: one in a third of all problems, and the split's own clause."""
    rng = story.rng
    for kind, wordings, wanted in (
        ("distract", DISTRACT, rng.random() < 0.35),
        ("clause", CLAUSES, story.recipe.clause),
    ):
        if wanted:
            story.say(kind, wordings, c=rng.randint(2, 60))
            sentence = story.sentences.pop()
            story.sentences.insert(rng.randint(1, len(story.sentences)), sentence)


def _ask(story: _Story, kind: str) -> bool:
    top, x, (low, high) = story.recipe.peak[1], story.value, story.recipe.spread
    limits = {
        "have": (0, 0),
        "price": (2, min(9, top // x)),
        "lack": (x + low, min(x + high, top)),
        "more_together": (low, min(high, top - 2 * x)),
        "times_together": (2, min(9, top // x - 1)),
    }
    b = story.below(*limits[kind])
    if b is None:
        return False
    story.say(kind, ASK[kind], NEW_ASK[kind], b=b)
    match kind:
        case "price":
            story.compute(x, "*", b)
        case "lack":
            story.compute(b, "-", x)
        case "more_together":
            story.compute(x, "+", story.compute(x, "+", b))
        case "times_together":
            story.compute(x, "+", story.compute(x, "*", b))
    return True
