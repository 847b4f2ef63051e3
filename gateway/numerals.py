"""Exact numbers in running text: where they stand, what they are worth, and whether they stand alone.

A number is looked for in the text as it is, never cleaned out of it first, so its place stays known. Read are integers,
decimals, thousands groups (comma, thin space, "1 234"), a/b, \\frac{a}{b}, mixed "1 1/2" and "1½", scientific notation,
with a sign and a currency. What is not certainly one number (a range, a sum, two candidates, a power) has no value: a
wrong reading looks like a wrong answer, no reading does not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

MAX_DIGITS = 1_000  # no word problem has more, and Python itself refuses integers past 4,300 digits
MAX_REGION = 2_000  # characters read of one box, line or clause

SPACE = r"[^\S\n]"
CURRENCY = r"(?:\\?\$|[€£¥₹₽₩]|\b(?:USD|EUR|GBP|Rs\b\.?))"
VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9),
    "⅒": (1, 10),
}  # fmt: skip
_VULGARS = "".join(VULGAR)
_SEPARATOR = r"(?:,(?:\\!)?|\{,\}|\\[,;:!\ ]|[\ '])"
_DECIMAL = rf"(?:(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![.0-9A-Za-z)])\.[0-9]+)"
_NUMBER = re.compile(
    rf"""
    (?= [-+.\\0-9{_VULGARS}$€£¥₹₽₩UEGR] )    # nothing else begins a number; three characters in four fail here
    (?: (?P<sign>[-+]){SPACE}*+ | (?<![A-Za-z0-9_^]) (?<!\^\{{) (?<!_\{{) )
    (?: {CURRENCY}{SPACE}*+ ){{0,3}}+
    (?P<inner>-)?
    (?P<body>
        (?: (?P<whole>[0-9]+) (?: {SPACE}+ | \\[\ ,;] | (?=[\\{_VULGARS}]) ) )?
        (?: \\[dtc]?frac\s*\{{\s*(?P<n1>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<d1>{_DECIMAL})\s*\}}
          | \\[dtc]?frac\s*(?P<n2>[0-9])\s*(?P<d2>[0-9])
          | (?P<n3>{_DECIMAL}){SPACE}*/{SPACE}*(?P<d3>{_DECIMAL})
          | (?P<vulgar>[{_VULGARS}])
        )
      | (?P<decimal>{_DECIMAL})
        (?: [eE](?P<e1>[-+]?[0-9]+)(?![0-9A-Za-z])
          | \s*(?:×|x|\*|\\times|\\cdot)\s*10\s*\^\s*(?: \{{\s*(?P<e2>[-+]?[0-9]+)\s*\}} | (?P<e3>[-+]?[0-9]+) )
        )?
    )
    """,
    re.VERBOSE | re.ASCII,
)
_POWER = re.compile(r"\s*(?:\^(?!\s*\{?\s*\\circ)|[⁰¹²³⁴-⁹])")
_NOT_DECIMAL = re.compile(r"[^0-9.\-]+")
_MATH_BRACKET = re.compile(r"\\[()]")

# What ties two numbers together: ranges, lists without spaces, ratios, "3 or 4"; and sums with units, "5 apples + 3".
_JOINED = re.compile(r"\.{1,3}|…|,|:|\s+:\s+|\s*(?:&|x|~)\s*|\s+(?:to|or|and|through)\s+\W{0,3}")
_ENDS_IN_OPERATOR = re.compile(r"(?:[-+/×÷±]|(?<!\*)\*(?!\*)|\\times|\\cdot|\\div|\\pm)[\s$({\[\\]*$")
_SENTENCE_END = re.compile(r"[.!?;\n。]")
_LINK_REACH = 60  # characters; farther apart, an operator sign is punctuation

# What may stand beside the only number without changing it: units, and the commands that dress them.
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_HARMLESS = frozenset({
    "text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit", "mathsf", "mbox", "operatorname", "boldsymbol",
    "displaystyle", "left", "right", "quad", "qquad", "approx", "degree", "circ", "boxed", "fbox", "underline", "bf",
    "rm", "pounds", "euro", "yen", "dollars",
})  # fmt: skip
_OPERATOR_BEFORE = re.compile(r"[-+/×÷±^<>≤≥]\s*$|\b(?:or|to)\b")
_OPERATOR_BEHIND = re.compile(r"^\s*(?:[+×÷±]|-\s*[a-zA-Z]\b)|\b(?:or|to)\b")

_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
_LOOKALIKES = {
    **dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－"), "-"),
    **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **dict(zip(map(ord, "，．／⁄∕＋＝：＄％’（）＊＾＃"), ",.///+=:$%'()*^#", strict=True)),
}


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number and its place: text[start:end] runs from the sign or the first digit to the last digit."""

    value: Fraction
    start: int
    end: int


class Written(NamedTuple):
    """A number as it is written, not yet read: of ten on a line, one matters."""

    start: int
    end: int
    negative: bool
    match: re.Match[str]

    def number(self) -> Number | None:
        """None when it cannot be read exactly (3/0, a power, too many digits)."""
        value = _value(self.match)
        return None if value is None else Number(-value if self.negative else value, self.start, self.end)


def read_number(text: str) -> Fraction | None:
    """A text that is one number, perhaps with its unit: "1,234.0", "$18", "\\frac{3}{4}", "9 (apples)", "2e-06".

    None for everything else: names, ratios, times of day, ranges, two numbers.
    """
    plain = one_for_one(text)
    number = only_number(plain, 0, len(plain))
    return None if number is None else number.value


def one_for_one(text: str) -> str:
    """Full-width, Bengali, Thai, ... digits, dashes, spaces and commas as ASCII; no character changes its place."""
    if text.isascii():
        return text
    return _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text.translate(_LOOKALIKES))


def numbers(text: str, start: int, end: int, line_start: int | None = None) -> list[Written]:
    """The numbers between two bounds. text: as one_for_one leaves it.  line_start: set when the bounds are a line's.

    A minus is a sign unless something stands before it that one can subtract from; at the start of a line and with a
    space behind it, it is a bullet. Digits inside words (H2O) and in exponents and indices are no numbers.
    """
    found = []
    for match in _NUMBER.finditer(text, start, end):
        sign, inner = match["sign"], match["inner"]
        begin = match.start("inner" if inner else "body")
        negative = inner is not None
        if sign:
            before = text[max(start, match.start() - 8) : match.start()]
            if before.endswith(("^", "^{", "_", "_{")):
                continue
            spaced = text[match.start() + 1].isspace()
            bullet = spaced and line_start is not None and not text[line_start : match.start()].strip()
            if not bullet and _is_sign(before, spaced=spaced):
                begin = match.start()
                negative ^= sign == "-"
        found.append(Written(begin, match.end(), negative, match))
    return found


def only_number(text: str, start: int, end: int) -> Number | None:
    """The one number between two bounds, or what the one equation there comes to ("x = 5", "3 + 4 = 7")."""
    if end - start > MAX_REGION:
        return None
    equals = text.find("=", start, end)
    if equals >= 0:
        if text.find("=", equals + 1, end) >= 0:
            return None
        start = equals + 1
    found = numbers(text, start, end)
    if len(found) != 1:
        return None
    before, behind = text[start : found[0].start], text[found[0].end : end]
    if any(command not in _HARMLESS for command in _COMMAND.findall(f"{before} {behind}")):
        return None
    if _OPERATOR_BEFORE.search(before) or _OPERATOR_BEHIND.search(behind):
        return None
    return found[0].number()


def first_number(text: str, found: Sequence[Written]) -> Number | None:
    """The first number, or what the equation that it begins comes to: "6 * 3 = 18" is 18, "5-3" is none."""
    last, link = found[0], ""
    for following in found[1:]:
        next_link = _link(text, last, following, lists=True)
        if not next_link:
            break
        last, link = following, next_link
    return None if link == "op" else last.number()


def last_number(text: str, found: Sequence[Written], line_start: int) -> Number | None:
    """The last number outside brackets, or else the last; none when it is part of a sum or a range."""
    line = _MATH_BRACKET.sub("  ", text[line_start : found[-1].end])
    outside = (i for i in reversed(range(len(found))) if _depth(line, found[i].start - line_start) <= 0)
    i = next(outside, len(found) - 1)
    before = _link(text, found[i - 1], found[i], lists=False) if i > 0 else ""
    behind = _link(text, found[i], found[i + 1], lists=False) if i + 1 < len(found) else ""
    return None if "op" in (before, behind) else found[i].number()


def _depth(line: str, position: int) -> int:
    return line.count("(", 0, position) - line.count(")", 0, position)


def _link(text: str, one: Written, other: Written, *, lists: bool) -> str:
    """How two neighbours hang together: "=", "op" (a sum, a range, two candidates) or "" (not at all).

    lists: whether comma and space make two candidates; in running text they rather end a clause.
    """
    between = text[one.end : min(other.start, one.end + _LINK_REACH + 1)]
    if len(between) > _LINK_REACH:
        return ""
    if _JOINED.fullmatch(between) or (lists and between.strip() == ","):
        return "op"
    if _SENTENCE_END.search(between):
        return ""
    if _ENDS_IN_OPERATOR.search(between):
        return "op"
    return "=" if "=" in between or "approx" in between or "≈" in between else ""


def _is_sign(before: str, *, spaced: bool) -> bool:
    """ "is -7" is negative; "5-3", "COVID-19" and "total - 7" are not. before: the few characters in front."""
    stripped = before.rstrip()
    if not stripped:
        return True
    if stripped[-1] in "0123456789)]}%":
        return False
    if stripped[-1].isascii() and stripped[-1].isalpha():
        return not spaced and stripped != before
    return True


def _value(match: re.Match[str]) -> Fraction | None:
    too_long = match.end("body") - match.start("body") > MAX_DIGITS
    if too_long or _POWER.match(match.string, match.end(), match.endpos):
        return None
    if match["decimal"] is not None:
        exponent = match["e1"] or match["e2"] or match["e3"]
        if exponent is None:
            return _decimal(match["decimal"])
        if len(exponent) > 5 or abs(int(exponent)) > MAX_DIGITS:
            return None
        return _decimal(match["decimal"]) * Fraction(10) ** int(exponent)
    if match["vulgar"]:
        part = Fraction(*VULGAR[match["vulgar"]])
    else:
        below = _decimal(match["d1"] or match["d2"] or match["d3"])
        if below == 0:
            return None
        part = _decimal(match["n1"] or match["n2"] or match["n3"]) / below
    if match["whole"] is None:
        return part
    return int(match["whole"]) + part if 0 <= part < 1 else None  # "2 5/3" is no mixed number


def _decimal(text: str) -> Fraction:
    whole, _, part = _NOT_DECIMAL.sub("", text).partition(".")
    return Fraction(int(whole + part), 10 ** len(part))  # four times as fast as Fraction("1.5")
