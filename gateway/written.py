"""What people write: the base of every configuration model, and how a secret is named without being written down."""

from __future__ import annotations

import difflib
import os
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
    return (base_dir / Path(value).expanduser()).resolve()


def _beside_the_file(reference: str, info: ValidationInfo) -> str:
    return f"file:{resolve(reference[5:], info)}" if reference.startswith("file:") else reference


# A secret's place, never the secret: `env:NAME` is the environment variable NAME, `file:PATH` what stands in a file.
SecretReference = Annotated[
    str, StringConstraints(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$"), AfterValidator(_beside_the_file)
]


class Written(BaseModel):
    """A wrong key is answered with the right ones; the input itself is never repeated in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

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
    """The secret a reference names. Raises ConfigError when the environment, or the disk, does not have it."""
    if reference.startswith("file:"):
        path = Path(reference[5:])
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot read the secret in {path}: {why}") from None
        if not text:
            raise ConfigError(f"the file {path} is empty; the configuration expects a secret in it")
        return SecretStr(text)
    name = reference.removeprefix("env:")
    if not environ.get(name):
        raise ConfigError(f"the environment variable {name} is not set; the configuration names it as {reference!r}")
    return SecretStr(environ[name])
