"""The configuration file: what may be written in it, and mistakes told with file, line and what would be right.

YAML, read with a safe loader; nothing in it is ever evaluated. Relative paths start at the file's own folder. Secrets
are SHA-256 hashes, or the names of environment variables and files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    Field,
    GetPydanticSchema,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, core_schema

from gateway import engines
from gateway.certificate import Certificate
from gateway.errors import ConfigError
from gateway.fleet.settings import Fleet, Serve
from gateway.ids import Seal
from gateway.monitor.rollout_settings import Rollout
from gateway.monitor.settings import Monitors
from gateway.resilience.breaker import Rules
from gateway.resilience.guard import Limits
from gateway.resilience.ledger import Windows
from gateway.store.settings import Exploration, StoreEntry
from gateway.written import SecretReference, Written, read_key, read_secret, resolve, unknown, wrong

if TYPE_CHECKING:
    from gateway.tracing import Traces

Location = tuple[str | int, ...]

ANONYMOUS = "anonymous"  # the name of all those together who come without a key
LEAST_SECRET_BYTES = 16
NOTHING_SHA256 = hashlib.sha256(b"").hexdigest()

# Names stand in headers, metrics and URLs, so they are plain.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
Share = Annotated[float, Field(ge=0, le=1)]

SHARES_OFF = 1e-6  # how far the shares of a mix may be from 1: people write decimals

AnyEngine = Annotated[
    engines.Options,
    GetPydanticSchema(
        lambda _, schema_of: core_schema.tagged_union_schema(
            {kind: schema_of(engines.find(kind).Options) for kind in engines.kinds()}, discriminator="kind"
        )
    ),
]


def _as_called(name: str) -> str:
    if not re.fullmatch(r"\*|[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", name):
        raise wrong("need a name alone, without scheme, port and path, like gw.example.com or [::1]; or '*' for any")
    return name


HostName = Annotated[str, AfterValidator(_as_called)]


class Server(Written):
    """Where to listen and what one request may take."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes any free port")
    workers: int = Field(default=1, ge=1, le=64, description="processes that share the port; about one per core")
    request_seconds: float = Field(default=120, gt=0, description="one total deadline per request, over all tiers")
    receive_seconds: float = Field(default=10, gt=0, description="how long a client may take to send its request")
    start_seconds: float = Field(
        default=0, ge=0, description="how long to wait at start for model servers that are still loading"
    )
    doctor: Literal["off", "warn", "refuse"] = Field(
        default="off",
        description="ask every server what `confgate doctor` asks before clients are let in; what is wrong is logged, "
        "or ends the start",
    )
    grace_seconds: float = Field(default=30, ge=0, description="from SIGTERM to the exit, at most")
    linger_seconds: float = Field(
        default=0, ge=0, description="of the grace: how long to be seen as not ready before connections are refused"
    )
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description="Host names to answer to, '*' for any. Nothing: on the loopback its own names, elsewhere any",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="web pages that may ask from a browser, as https://host:port, '*' for any; without them none may",
    )
    keep_alive_seconds: float = Field(
        default=10, gt=0, description="a stream that has begun and is silent for so long gets a comment line"
    )
    max_body_mib: float = Field(default=4, gt=0, le=1024)
    max_choices: int = Field(default=8, ge=1, le=128, description="largest `n`")
    strict_fields: bool = Field(default=False, description="400 for fields we do not know, instead of ignoring them")
    sampler: Literal["escalate", "pin"] = Field(
        default="escalate",
        description="a client asks for another sampler than the calibrators were fitted under: escalate honours it "
        "without a confidence, pin ignores it",
    )


class Allowance(Written):
    """What one client may use. Nothing said: as much as it likes."""

    requests_per_minute: int | None = Field(default=None, ge=1, description="and as many at once")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="of all tiers that were asked, prompts too")
    in_flight: int | None = Field(default=None, ge=1, description="requests at once")
    labels_per_minute: int | None = Field(default=None, ge=1, description="and as many at once; else the store's")
    tokens_per_day: int | None = Field(default=None, ge=1, description="calendar days and months are UTC's")
    tokens_per_month: int | None = Field(default=None, ge=1)
    usd_per_day: float | None = Field(default=None, ge=0)
    usd_per_month: float | None = Field(default=None, ge=0)
    dearest_usd_per_day: float | None = Field(
        default=None, ge=0, description="on the dearest tier; over it, policies stop at the tier below"
    )
    dearest_usd_per_month: float | None = Field(default=None, ge=0)

    @cached_property
    def limited(self) -> bool:
        return self != Allowance()

    @property
    def counts_money(self) -> bool:
        caps = (self.usd_per_day, self.usd_per_month, self.dearest_usd_per_day, self.dearest_usd_per_month)
        return any(cap is not None for cap in caps)

    @cached_property
    def daily(self) -> list[tuple[int, float | None, str]]:
        """(what, cap, in words) for a day."""
        return self._caps("day")

    @cached_property
    def monthly(self) -> list[tuple[int, float | None, str]]:
        return self._caps("month")

    def _caps(self, period: Literal["day", "month"]) -> list[tuple[int, float | None, str]]:
        tokens, usd = getattr(self, f"tokens_per_{period}"), getattr(self, f"usd_per_{period}")
        dear = getattr(self, f"dearest_usd_per_{period}")
        return [
            (Windows.TOKENS, tokens, f"{tokens} tokens per {period}"),
            (Windows.USD, usd, f"{usd} US dollars per {period}"),
            (Windows.DEAREST, dear, f"{dear} US dollars per {period} on the dearest model"),
        ]


class Rights(Written):
    """What one client may do."""

    models: tuple[str, ...] | None = Field(
        default=None, description="what may stand in `model`: auto, auto:<policy>, tiers. Nothing: everything"
    )
    limits: Allowance = Allowance()
    priority: int = Field(
        default=0,
        ge=-(2**31),
        lt=2**31,
        description="lower is answered earlier, by servers whose engine has `priority: true`",
    )


class Client(Rights):
    """One client key: its SHA-256, or where it is to be found."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    key: SecretReference | None = None

    @field_validator("sha256")
    @classmethod
    def _of_a_key(cls, sha256: str | None) -> str | None:
        if sha256 == NOTHING_SHA256:
            raise wrong("the SHA-256 of nothing would let everybody in; was a variable hashed that is not set?")
        return sha256

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.sha256 is None) == (self.key is None):
            raise wrong("a client needs either sha256 or key (env:NAME or file:PATH)")
        return self

    def digest(self) -> bytes:
        """The key's SHA-256. Raises ConfigError when it is not there, or no client could send it."""
        if self.sha256 is not None:
            return bytes.fromhex(self.sha256)
        assert self.key is not None, "validated above"
        return hashlib.sha256(read_key(self.key).encode()).digest()


class Ids(Written):
    """How decision ids are made unforgeable. Nothing said: by a secret that ends with the process, and ids with it."""

    secret: SecretReference | None = Field(default=None, description="env:NAME or file:PATH; the same on every replica")
    previous: tuple[SecretReference, ...] = Field(default=(), description="secrets of before: their ids still count")
    keep: Path | None = Field(
        default=None, description="instead: a file that the first start makes, for its owner only"
    )

    @field_validator("keep")
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else resolve(path, info)

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        if self.secret is not None and self.keep is not None:
            raise wrong("say where the secret is (secret) or where to make one (keep), not both")
        return self

    def seal(self, spare: bytes) -> Seal:
        """Reads the secrets. spare: what to use when none is configured. Raises ConfigError naming the one at fault."""
        if self.keep is not None:
            secret = kept_secret(self.keep)
        else:
            secret = spare if self.secret is None else long_enough(self.secret)
        return Seal(secret, [long_enough(reference) for reference in self.previous])


def long_enough(reference: str) -> bytes:
    """A secret nobody can guess, if it was drawn by chance. Raises ConfigError."""
    secret = read_secret(reference).get_secret_value().encode()
    if len(secret) < LEAST_SECRET_BYTES:
        told = f"the secret in {reference} is too short: need {LEAST_SECRET_BYTES} characters"
        raise ConfigError(f"{told}, say from `openssl rand -hex 32`")
    return secret


def kept_secret(path: Path) -> bytes:
    """The secret in a file, which is made when it is not there. Safe against others that do the same now."""
    if not path.exists():
        try:
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as draft:  # mode 0600
                draft.write(secrets.token_hex(32))
                draft.flush()
                with contextlib.suppress(FileExistsError):  # somebody was faster: his counts
                    os.link(draft.name, path)
        except OSError as error:
            raise ConfigError(f"cannot keep a secret in {path}: {error.strerror or error}") from None
    return long_enough(f"file:{path}")


class Keys(Written):
    """Who may ask. Without a key, everybody must be let in on purpose."""

    allow_anonymous: bool = False
    anonymous: Rights = Field(default=Rights(), description="of all those together who come without a key")
    ledger: Path | None = Field(
        default=None, description="a file that keeps what was used over a restart; else that begins anew"
    )
    clients: tuple[Client, ...] = ()
    admins: tuple[Client, ...] = Field(default=(), description="for the admin listener, and for nothing else")

    @field_validator("ledger")
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else resolve(path, info)

    @model_validator(mode="after")
    def _one_name_one_client(self) -> Self:
        """A name may have two keys while one replaces the other; then they have the same rights."""
        first: dict[str, Client] = {}
        for position, client in enumerate(self.clients):
            twin = first.setdefault(client.name, client)
            if (twin.limits, twin.models, twin.priority) != (client.limits, client.models, client.priority):
                told = "two keys of one name must have the same limits, models and priority"
                raise wrong(told, at=("clients", position))
        return self

    def shared(self, key: Callable[[Client], object]) -> tuple[Location, str] | None:
        """Where somebody has another's key, in words too. key: what tells it from others."""
        owners: dict[object, str] = {}
        for kind, ones in (("client", self.clients), ("admin", self.admins)):
            for position, one in enumerate(ones):
                who = f"{kind} {one.name}"
                first = owners.setdefault(key(one), who)
                if first != who:
                    return (f"{kind}s", position), f"{who} has the key of {first}; each needs one of its own"
        return None

    @model_validator(mode="after")
    def _a_key_each(self) -> Self:
        """As far as the file tells; what references lead to is compared once it is read."""
        if found := self.shared(lambda one: one.sha256 or one.key):
            at, told = found
            raise wrong("{told}", at=at, told=told)
        return self

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.clients and not self.allow_anonymous:
            raise wrong("nobody may ask: list clients, or set allow_anonymous: true to let everybody in")
        return self


class Overrides(Written):
    """What a request may change about its own route."""

    threshold: tuple[Share, Share] | None = Field(
        default=None, description="[least, most] that route.threshold may be. Nothing: it may not be set"
    )
    max_tier: bool = Field(default=True, description="route.max_tier: stop at this tier")
    budget: bool = Field(default=True, description="route.budget_usd: ask no tier that may exceed it")
    deadline: bool = Field(default=True, description="route.deadline_seconds, up to server.request_seconds")
    debug: bool = Field(default=True, description="route.debug and x-route-debug: show the whole route")

    @field_validator("threshold")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and bounds[0] > bounds[1]:
            raise wrong("the first bound must not exceed the second")
        return bounds


class Admin(Written):
    """A listener of its own for metrics, reloading and draining; keep it on the loopback or a private network."""

    host: str = "127.0.0.1"
    port: int = Field(default=9090, ge=0, le=65535, description="0 takes any free port")
    hosts: tuple[HostName, ...] = Field(default=(), description="as server.hosts")
    allow_anonymous: bool = Field(default=False, description="let everybody in who can reach it")

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


class Tracing(Written):
    """OpenTelemetry spans and histograms, sent by OTLP over HTTP; needs the extra `otel`. No prompt, no answer is in
    them."""

    endpoint: AnyHttpUrl = Field(description="the collector's, without a path, such as http://127.0.0.1:4318")
    share: Share = Field(default=1.0, description="of the requests whose client has not decided whether to trace")
    metrics: bool = Field(default=True, description="histograms too, of all requests, whether traced or not")
    service: str = Field(default="confidence-gateway", min_length=1, description="service.name of all that is sent")

    def open(self) -> Traces:
        """Raises ConfigError where the packages for it are missing."""
        try:
            from gateway import tracing
        except ImportError as error:
            raise ConfigError(f"tracing needs: pip install 'confidence-gateway[otel]' ({error})") from None
        where = str(self.endpoint)
        metrics = tracing.otlp_metrics(where) if self.metrics else None
        return tracing.Traces(tracing.otlp(where), metrics, self.service, self.share)


class PriceList(Written):
    """US dollars per million tokens."""

    usd_per_mtok_in: float = Field(default=0, ge=0)
    usd_per_mtok_out: float = Field(default=0, ge=0)


class BreakerEntry(Written):
    """When a failing tier is left alone, and for how long."""

    in_a_row: int = Field(default=5, ge=1, description="opens after so many failures in a row")
    share: float = Field(default=0.5, gt=0, le=1, description="or after this share of failures")
    least: int = Field(default=10, ge=1, description="among at least so many calls")
    window_seconds: float = Field(default=10, gt=0, description="within so many seconds")
    open_seconds: float = Field(default=5, gt=0, description="for so long; doubles with every failed probe")
    open_max_seconds: float = Field(default=60, gt=0)


class LimitsEntry(Written):
    """What one tier may bear. Several workers share what is written here evenly."""

    in_flight: int | None = Field(
        default=None, ge=1, description="questions with the tier at once. Nothing: 64 for each worker"
    )
    waiting: int | None = Field(
        default=None,
        ge=0,
        description="questions waiting for one of them to end; more get a 503. Nothing: 32 for each worker",
    )
    waiting_seconds: float = Field(default=5, gt=0)
    breaker: BreakerEntry = BreakerEntry()

    def limits(self, workers: int = 1) -> Limits:
        """One worker's part, a seat at least."""
        usual, rules = Limits(), Rules(**self.breaker.model_dump())
        seats = usual.in_flight if self.in_flight is None else max(1, self.in_flight // workers)
        places = usual.waiting if self.waiting is None else self.waiting // workers
        return Limits(seats, places, self.waiting_seconds, rules)


class TierEntry(Written):
    """One model server and its calibrator."""

    name: Name
    engine: AnyEngine
    calibrator: Path | None = None
    prefix_calibrator: Path | None = Field(
        default=None, description="fitted with `confgate fit --prefix`; decides on first tokens, for stream_mode prefix"
    )
    prices: PriceList = PriceList()
    patience_seconds: float = Field(default=60, gt=0, description="how long this tier's turn may take, retry included")
    limits: LimitsEntry = LimitsEntry()
    allows: tuple[
        Literal["tools", "response_format", "reasoning_effort", "structured_outputs", "chat_template_kwargs"], ...
    ] = Field(default=(), description="request fields that this tier's server takes; requests with others are refused")
    serve: Serve | None = Field(
        default=None, description="how `confgate up` serves the model; no other command reads it"
    )

    @field_validator("name")
    @classmethod
    def _not_a_virtual_name(cls, name: str) -> str:
        if name == "auto":
            raise wrong("'auto' is the name of the whole cascade; call the tier otherwise")
        return name

    @field_validator("allows")
    @classmethod
    def _somebody_takes_them(cls, allows: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        engine = info.data.get("engine")
        if allows and engine is not None and not engine.forwards:
            raise wrong(f"an engine of the kind {engine.kind} takes none of these")
        return allows

    @field_validator("calibrator", "prefix_calibrator")
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else engines.resolve(path, info)


class Step(Written):
    """One tier's turn: its answer is served at p_correct >= accept_at. The last step always answers."""

    tier: str
    accept_at: Share | None = None
    early_abort: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="give an answer up before its end when at most this share of such answers would be accepted; its "
        "calibrator must have been fitted with `confgate fit --early-abort`. Nothing: every answer is waited for",
    )


class Part(Written):
    """One policy of a mix, and the share of decisions that it takes."""

    policy: str
    share: Share


class PolicyEntry(Written):
    """Which tiers are asked in which order; or a mix of two such policies, which spends a budget exactly."""

    steps: tuple[Step, ...] = Field(default=(), description="the tiers in the order asked; the last one always answers")
    mix: tuple[Part, ...] = Field(
        default=(), description="instead of steps: other policies of this file, drawn by a keyed hash of the decision"
    )
    mix_key: Annotated[str, Field(max_length=16)] = Field(default="", description="another key draws otherwise")
    certificate: Certificate | None = Field(default=None, description="written by confgate sweep --write")
    serve_fallback: bool = Field(
        default=True, description="serve an earlier unsure answer, marked, when the last tier fails"
    )
    abstain_below: Share | None = Field(default=None, description="flag a last answer whose probability is below this")
    stream_mode: Literal["buffer", "prefix", "commit"] = Field(
        default="buffer", description="of clients who stream and do not say: see docs/streaming.md"
    )
    commit_to: str | None = Field(
        default=None, description="the step's tier that answers streams in commit mode; without it the last step's"
    )

    @model_validator(mode="after")
    def _commits_to_a_step(self) -> Self:
        tiers = [step.tier for step in self.steps]
        if self.commit_to is not None and self.commit_to not in tiers:
            raise wrong("{told}", at=("commit_to",), told=unknown("step", self.commit_to, dict.fromkeys(tiers)))
        return self

    @model_validator(mode="after")
    def _steps_or_mix(self) -> Self:
        if bool(self.steps) == bool(self.mix):
            raise wrong("a policy has either steps or a mix of other policies")
        for key in ("serve_fallback", "abstain_below", "certificate") if self.mix else ("mix_key",):
            if key in self.model_fields_set:
                raise wrong("belongs to a policy with " + ("steps" if self.mix else "a mix"), at=(key,))
        if self.mix and abs(sum(part.share for part in self.mix) - 1) > SHARES_OFF:
            raise wrong("the shares must sum to 1", at=("mix",))
        return self

    @model_validator(mode="after")
    def _thresholds_where_they_act(self) -> Self:
        if not self.steps:
            return self
        *before, last = self.steps
        for position, step in enumerate(before):
            if step.accept_at is None:
                raise wrong("only the last step may lack accept_at", at=("steps", position))
        if last.early_abort is not None:
            raise wrong("the last step always answers", at=("steps", len(before), "early_abort"))
        if self.certificate is not None and any(step.early_abort is not None for step in before):
            told = "it speaks of a policy that waits for every answer: take early_abort out of the steps, or drop it"
            raise wrong(told, at=("certificate",))
        if last.accept_at is not None:
            at = ("steps", len(before), "accept_at")
            raise wrong("the last step always answers; to flag its unsure answers set abstain_below", at=at)
        return self


class Config(Written):
    """A whole configuration file."""

    server: Server = Server()
    keys: Keys
    ids: Ids = Ids()
    overrides: Overrides = Overrides()
    admin: Admin | None = Field(default=None, description="without it, /metrics is on the public listener")
    tracing: Tracing | None = Field(default=None, description="where spans are sent. Nothing: none are made")
    store: StoreEntry | None = Field(
        default=None, description="where decisions and labels are kept. Nothing: nowhere, and labels are refused"
    )
    exploration: Exploration | None = Field(
        default=None, description="ask all tiers in shadow for some decisions, to learn what was not served"
    )
    monitors: Monitors = Field(
        default=Monitors(), description="whether traffic is what it was, and labels bear out what was claimed"
    )
    rollout: Rollout | None = Field(
        default=None, description="how tiers get other calibrators while they serve, and lose those that do harm"
    )
    on_bad_artifact: Literal["escalate", "refuse"] = Field(
        default="refuse",
        description="a calibrator that is missing, broken or not this server's: escalate runs the tier without a "
        "confidence, refuse does not start",
    )
    signers: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field(
        default=(),
        description="Ed25519 public keys, as `confgate sign` prints them; where any is listed, every calibrator that a "
        "tier names must be signed by one of them",
    )
    on_bad_certificate: Literal["withdraw", "refuse"] = Field(
        default="withdraw",
        description="a policy's certificate that does not speak of what is served: withdraw serves without it, "
        "refuse does not start",
    )
    tiers: tuple[TierEntry, ...] = Field(min_length=1)
    policies: dict[Name, PolicyEntry] = Field(description="`default` is what the model name `auto` means")
    fleet: Fleet = Field(default=Fleet(), description="the machine that `confgate up` starts model servers on")

    _file: Path | None = PrivateAttr(default=None)
    _text: str = PrivateAttr(default="")

    @property
    def file(self) -> Path | None:
        """Where this was read from; None for a configuration that was made otherwise."""
        return self._file

    @property
    def text(self) -> str:
        """What was written; nothing for a configuration that was made otherwise."""
        return self._text

    @field_validator("server")
    @classmethod
    def _linger_inside_the_grace(cls, server: Server) -> Server:
        if server.linger_seconds > server.grace_seconds:
            raise wrong("linger_seconds is a part of grace_seconds", at=("linger_seconds",))
        return server

    @model_validator(mode="after")
    def _admin_is_locked(self) -> Self:
        if self.admin is not None and not self.admin.allow_anonymous and not self.keys.admins:
            told = "nobody may administer: list keys.admins, or set admin.allow_anonymous: true to let everybody in"
            raise wrong(told, at=("admin",))
        return self

    @model_validator(mode="after")
    def _slices_are_of_clients(self) -> Self:
        known = {client.name for client in self.keys.clients} | ({ANONYMOUS} if self.keys.allow_anonymous else set())
        for position, name in enumerate(self.monitors.slices.clients):
            if name not in known:
                at = ("monitors", "slices", "clients", position)
                raise wrong("{told}", at=at, told=unknown("client", name, dict.fromkeys(sorted(known))))
        return self

    @model_validator(mode="after")
    def _what_is_learnt_is_kept(self) -> Self:
        if self.exploration is not None and self.store is None:
            raise wrong("what is explored must be kept somewhere: say where under store", at=("exploration",))
        return self

    @model_validator(mode="after")
    def _a_rollout_has_evidence(self) -> Self:
        if self.rollout is None:
            return self
        if self.store is None:
            raise wrong("what a calibrator on trial shows must be kept: say where under store", at=("rollout",))
        if all(tier.calibrator is None for tier in self.tiers):
            raise wrong("no tier has a calibrator that another could replace", at=("rollout",))
        if self.rollout.labels_of == "explored" and self.exploration is None:
            told = "labels of explored decisions are to count, and none is explored: say exploration, or labels_of: all"
            raise wrong(told, at=("rollout", "labels_of"))
        return self

    @model_validator(mode="after")
    def _a_fit_goes_on_trial(self) -> Self:
        if self.monitors.refit is not None and self.rollout is None:
            raise wrong("what a fit comes to must go on trial somewhere: say rollout", at=("monitors", "refit"))
        return self

    @model_validator(mode="after")
    def _rights_are_about_what_there_is(self) -> Self:
        names = dict.fromkeys(
            ["auto", *(f"auto:{name}" for name in self.policies), *(tier.name for tier in self.tiers)]
        )
        schedules = any(getattr(tier.engine, "priority", False) for tier in self.tiers)
        priced = any(tier.prices != PriceList() for tier in self.tiers)
        places: list[tuple[Location, Rights]] = [(("keys", "anonymous"), self.keys.anonymous)]
        places += [(("keys", "clients", position), client) for position, client in enumerate(self.keys.clients)]
        for place, rights in places:
            for position, model in enumerate(rights.models or ()):
                if model not in names:
                    at = (*place, "models", position)
                    raise wrong("{told}", at=at, told=unknown("model", model, names))
            if rights.limits.counts_money and not priced:
                raise wrong("a limit in dollars needs tiers with prices", at=(*place, "limits"))
            if rights.priority and not schedules:
                told = "no tier's server goes by it: say engine: {priority: true} where vLLM was told to"
                raise wrong(told, at=(*place, "priority"))
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        tiers = {tier.name: tier for tier in self.tiers}
        if len(tiers) < len(self.tiers):
            raise wrong("two tiers have the same name", at=("tiers",))
        if "default" not in self.policies:
            raise wrong("one policy must be called default", at=("policies",))
        for name, policy in self.policies.items():
            for position, part in enumerate(policy.mix):
                there = ("policies", name, "mix", position, "policy")
                plain = {other: entry for other, entry in self.policies.items() if not entry.mix}
                if part.policy not in plain:
                    raise wrong("{told}", at=there, told=unknown("policy with steps", part.policy, plain))
                if part.policy in {earlier.policy for earlier in policy.mix[:position]}:
                    raise wrong("a policy can be mixed in only once", at=there)
            for position, step in enumerate(policy.steps):
                at = ("policies", name, "steps", position)
                if step.tier not in tiers:
                    raise wrong("{told}", at=(*at, "tier"), told=unknown("tier", step.tier, tiers))
                last = position == len(policy.steps) - 1
                if policy.stream_mode == "prefix" and not last and tiers[step.tier].prefix_calibrator is None:
                    told = "stream_mode prefix needs a prefix_calibrator of every step's tier but the last"
                    raise wrong(told, at=at)
                if step.tier in {earlier.tier for earlier in policy.steps[:position]}:
                    raise wrong("a tier can be asked only once", at=(*at, "tier"))
                if step.accept_at is not None and tiers[step.tier].calibrator is None:
                    raise wrong("the tier has no calibrator, so no answer of it could be accepted", at=at)
        return self


def read(path: Path) -> Config:
    """The configuration in a file. Raises ConfigError with one line `file:line: where: what` for each mistake."""
    return parse(text_of(path), path)


def text_of(path: Path) -> str:
    """Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read the configuration {path}: {why}") from None


def parse(text: str, path: Path) -> Config:
    """The configuration in a text. path: for messages, and the folder that relative paths start at."""
    tree, raw = compose(text, path)
    try:
        config = Config.model_validate(raw, context={"base_dir": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError("\n".join(tell(mistake, tree, path) for mistake in causes(error))) from None
    config._file, config._text = path.resolve(), text
    return config


def causes(error: ValidationError) -> list[ErrorDetails]:
    """The mistakes without their mere consequences: a list is called too short when an entry of it was refused."""
    mistakes = error.errors(include_url=False, include_input=False)
    places = [mistake["loc"] for mistake in mistakes]
    return [
        mistake
        for mistake in mistakes
        if mistake["type"] != "too_short" or not any(len(at) > len(mistake["loc"]) for at in places)
    ]


class Values(yaml.constructor.SafeConstructor):
    """Makes plain values of nodes. What Python cannot make of one, such as the 30th of February, is a YAMLError."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, ArithmeticError, AttributeError):
            told = "reads as a number, a date or the like, and is none; text goes in quotes"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from None


def compose(text: str, path: Path) -> tuple[yaml.MappingNode, object]:
    """The file's tree of nodes, which know their lines, and the plain values made from it.

    Raises ConfigError where it is no YAML, or says a key twice.
    """
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        for node in nodes(tree):
            twin = repeated(node)
            if twin is not None:
                raise ConfigError(f"{path}:{twin.start_mark.line + 1}: key {twin.value!r} is written twice")
        raw = Values().construct_document(tree) if tree is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigError(f"{where}: this is no YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # of "\U" and %YAML
        raise ConfigError(f"{path}: this is no YAML: {error}") from None
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{path}:1: need keys and values (server:, keys:, tiers:, policies:)")
    return tree, raw


def nodes(tree: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node once, aliased ones too."""
    seen: set[int] = set()
    waiting = [tree] if tree is not None else []
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting.extend(value for _, value in node.value)


def repeated(node: yaml.Node) -> yaml.Node | None:
    """The first key that a mapping says for the second time; YAML would silently keep the last."""
    seen: set[Hashable] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                return key
            seen.add(key.value)
    return None


# What pydantic says in words of Python, in those of the file.
SAID = {
    "tuple_type": "need a list",
    "dict_type": "need keys and values",
    "model_type": "need keys and values",
    "too_short": "need at least {min_length}, have {actual_length}",
    "too_long": "need at most {max_length}, have {actual_length}",
    "missing": "is missing",
}


def tell(mistake: ErrorDetails, tree: yaml.MappingNode, path: Path) -> str:
    """One mistake as `file:line: where: what`."""
    at: Sequence[str | int] = mistake.get("ctx", {}).get("at", ())
    location = (*mistake["loc"], *at)
    said = SAID[mistake["type"]].format_map(mistake.get("ctx", {})) if mistake["type"] in SAID else mistake["msg"]
    if mistake["type"] in ("union_tag_invalid", "union_tag_not_found"):
        location = (*location, "kind")
        said = f"need an engine's kind, one of: {', '.join(engines.kinds())}"
    line, where = find(tree, location)
    return f"{path}:{line}: {where}: {said}" if where else f"{path}:{line}: {said}"


def find(tree: yaml.Node, location: Location) -> tuple[int, str]:
    """Line (from 1) and spelling of the deepest node on the way to a location.

    Parts the file does not have are passed over: a missing key, and the tag pydantic puts into a union's location.
    """
    node, line, where = tree, tree.start_mark.line + 1, ""
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if getattr(key, "value", None) == str(part)]
            if pairs:
                line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
                where = f"{where}.{part}" if where else str(part)
            elif part == location[-1]:
                where = f"{where}.{part}" if where else str(part)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            where = f"{where}[{part}]"
            if part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
    return line, re.sub(r"^\.", "", where)


def locate(text: str, path: Path, location: Location) -> tuple[int, str]:
    """Line and spelling of a place in a file that has been read."""
    return find(compose(text, path)[0], location)


def schema() -> dict[str, Any]:
    """JSON Schema of the configuration file, for editors."""
    return Config.model_json_schema()
