"""What people write: the base of every configuration model, and how a secret is named without being written down."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.errors import ConfigError


def resolve(value: str | Path, info: ValidationInfo) -> Path:
    """An absolute path; a relative one starts at the folder of the configuration file (without one: where we run)."""
    base_dir: Path = (info.context or {}).get("base_dir", Path.cwd())
    try:
        return (base_dir / Path(value).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # nobody of that name has a home, links in a circle, a NUL
        raise wrong("no path can be made of this: {why}", why=str(error)) from None


def _beside_the_file(reference: str, info: ValidationInfo) -> str:
    return f"file:{resolve(reference[5:], info)}" if reference.startswith("file:") else reference


# A secret's place, never the secret: `env:NAME` is the environment variable NAME, `file:PATH` what stands in a file.
REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$"
SecretReference = Annotated[str, StringConstraints(pattern=REFERENCE), AfterValidator(_beside_the_file)]


class Written(BaseModel):
    """A wrong key is answered with the right ones; the input itself is never repeated in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in raw:
                if key not in cls.model_fields:
                    raise wrong("{told}", at=(key,), told=unknown("key", str(key), cls.model_fields))
        return raw


def unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    """The sentence for a name that does not exist: what might have been meant, and everything there is."""
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"no {what} {name!r}{guess} (there is: {', '.join(known) or 'nothing'})"


def wrong(message: str, *, at: tuple[str | int, ...] = (), **facts: object) -> PydanticCustomError:
    """A mistake that a validator found. at: where, seen from the model that is being validated."""
    return PydanticCustomError("written", message, {"at": at, **facts})


def read_secret(reference: str, environ: Mapping[str, str] = os.environ) -> SecretStr:
    """The secret a reference names, without the blanks around it. Raises ConfigError when the environment, or the
    disk, does not have it."""
    kind, _, where = reference.partition(":")
    place = f"the file {where}" if kind == "file" else f"the environment variable {where}"
    if kind == "env" and where not in environ:
        raise ConfigError(f"{place} is not set; a secret is expected in it")
    try:
        text = Path(where).read_text(encoding="utf-8") if kind == "file" else environ[where]
        text.encode()  # of what is no UTF-8, os.environ has surrogates
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read the secret in {place}: {why}") from None
    if not text.strip():
        raise ConfigError(f"{place} is empty; a secret is expected in it")
    return SecretStr(text.strip())


def read_key(reference: str) -> str:
    """A secret that clients send in a header. Raises ConfigError, for one that they could not send, too."""
    key = read_secret(reference).get_secret_value()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"no client could send the key in {reference}: it may hold printable ASCII alone")
    return key


def given_key(option: str, reference: str) -> str:
    """The key that an option of a command leads to. Raises ConfigError; what was given is not repeated where it is no
    reference, for it may be the key."""
    if not re.fullmatch(REFERENCE, reference):
        raise ConfigError(f"{option} wants env:NAME or file:PATH, the place of a key instead of the key")
    return read_key(reference)
