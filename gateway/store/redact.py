"""Functions that texts may go through before they are kept. Any other one can be named in the configuration."""

from __future__ import annotations

import re

# Bounded repeats, so that no text is slow. What is found too much is only lost to the log.
ADDRESS = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,255}")
LINK = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://\S{1,2048}", re.IGNORECASE)
LONG_NUMBER = re.compile(r"\+?\d(?:[ ()/.-]{0,2}\d){8,30}")
KEY = re.compile(r"\b(?=[A-Za-z0-9_-]{0,200}\d)[A-Za-z0-9_-]{24,200}\b")


def contacts(text: str) -> str:
    """Without e-mail addresses, links, keys, and numbers of nine digits and more (telephones, cards, accounts)."""
    for told, pattern in (("link", LINK), ("address", ADDRESS), ("key", KEY), ("number", LONG_NUMBER)):
        text = pattern.sub(f"[{told}]", text)
    return text


def nothing(text: str) -> str:
    """Everything as it is."""
    return text
