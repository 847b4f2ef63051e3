"""The JSON schema (draft 2020-12) of a report's twin, for those who read reports by machine."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(**properties: Schema) -> Schema:
    """Exactly these keys, all required."""
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _by_name(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


WORDS: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COST: Schema = {"type": "number", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
TRUTH: Schema = {"type": "boolean"}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
ROUTE = {"tiers": _list(WORDS), "thresholds": _list(SHARE)}
POINT = {"cost": COST, "accuracy": SHARE}

_CERTIFICATE = _object(
    what=WORDS, limit=COST, confidence=SHARE, seen=COST, n=COUNT, method=WORDS, policy=_ref("route"),
    data_sha256=SHA256, assumptions=_list(WORDS), unit=WORDS,
)  # fmt: skip
_THRESHOLD: Schema = {
    "anyOf": [_object(threshold=SHARE, accepted=COUNT, wrong=COUNT), _object(refused=WORDS)],
}
_CONFIDENCE = _object(
    n=COUNT,
    claimed=_or_null(SHARE),
    right=_ref("outcome"),
    histogram=_object(edges=_list(SHARE), right=_list(COUNT), wrong=_list(COUNT)),
)
_CONFIDENCE["properties"] |= {
    "insufficient": WORDS,
    "auroc": _ref("score"),
    "ks": _object(value=SHARE, mean=SHARE, p95=SHARE, p_value=SHARE),
    "reliability": _object(
        bins=_list(
            _object(n=COUNT, **dict.fromkeys(("p_mean", "p_low", "p_high", "rate", "low", "high", "band_low",
                                              "band_high"), SHARE))
        ),
        counts=_object(edges=_list(SHARE), right=_list(COUNT), wrong=_list(COUNT)),
    ),
}  # fmt: skip

DEFINITIONS: dict[str, Schema] = {
    "route": _object(**ROUTE),
    "score": _object(
        value=NUMBER, low=_or_null(NUMBER), high=_or_null(NUMBER), level=SHARE, n={"type": "integer", "minimum": 1},
        how=WORDS,
    ),
    "outcome": {"anyOf": [_ref("score"), _object(insufficient=WORDS, n=COUNT)]},
    "certificate": _CERTIFICATE,
    "confidence": _CONFIDENCE,
}  # fmt: skip

# What `confgate sweep --json` prints.
SWEEP: Schema = _object(
    verdict=WORDS,
    sells=TRUTH,
    recommended=_ref("route"),
    served=_ref("route"),
    reference=_ref("route"),
    chosen=_ref("route"),
    cost_unit={"enum": ["tokens", "flops", "gpu-seconds", "usd", "seconds", "cost"]},
    n=_object(chosen_on=COUNT, test=COUNT),
    held_out=_object(
        chosen_accuracy=SHARE, chosen_cost=COST, test_accuracy=SHARE, test_cost=COST, optimism=NUMBER
    ),
    numbers=_object(
        **dict.fromkeys(("accuracy", "reference_accuracy", "cost_share", "saving", "gain", "skill"), _ref("score"))
    ),
    anew=_object(gain=_ref("score"), saving=_ref("score")),
    signals=_by_name(_ref("outcome")),
    against=_list(
        _object(tier=WORDS, accuracy=SHARE, cost=COST, only_policy=COUNT, only_model=COUNT, p_value=SHARE)
    ),
    frontier=_list(_object(**ROUTE, **POINT)),
    baselines=_list(
        _object(
            name=WORDS,
            told=WORDS,
            oracle=TRUTH,
            cost=_list(COST),
            accuracy=_list(SHARE),
            picked=_or_null(_object(**POINT)),
        )
    ),
    budgets=_list(
        _object(share=SHARE, accuracy=_or_null(SHARE), cost=_or_null(COST), random=_or_null(SHARE))
    ),
    metrics=_by_name(_ref("outcome")),
    mix=_or_null(_object(low=_ref("route"), high=_ref("route"), share_high=SHARE)),
    certificates=_list({"anyOf": [_ref("certificate"), _object(what=WORDS, why=WORDS)]}),
    policies_tried=COUNT,
    definitions=_by_name(WORDS),
    absent=_by_name(WORDS),
    notes=_list(WORDS),
)  # fmt: skip

_FILE = _object(path=WORDS, sha256=SHA256)
_COLLECTED = _object(
    path=WORDS,
    sha256=SHA256,
    dataset=WORDS,
    splits=_by_name(COUNT),
    questions_sha256=WORDS,
    prompt_sha256=WORDS,
    seed={"type": "integer"},
    max_tokens=_or_null(COUNT),
    command=WORDS,
    created=WORDS,
    versions=_by_name(WORDS),
    models=_by_name(_by_name(WORDS)),
)

SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of a cascade swept over recorded answers",
    "$defs": DEFINITIONS,
} | _object(
    schema={"const": "confidence-gateway/report"},
    schema_version={"const": 1},
    created=WORDS,
    verdict=WORDS,
    sweep=SWEEP,
    method=_object(resamples=COUNT, level=SHARE, bars=COUNT, rare_needed=COUNT),
    curve=_object(
        policies=_list(
            _object(
                **ROUTE,
                accuracy=_ref("score"),
                cost=_ref("score"),
                chosen_accuracy=SHARE,
                chosen_cost=COST,
                optimism=NUMBER,
            )
        ),
        band=_list(_object(**POINT, low=SHARE, high=SHARE)),
    ),
    parity=_list(
        _object(
            margin=SHARE,
            **ROUTE,
            **dict.fromkeys(("accuracy", "cost_share", "saving", "gain"), _ref("score")),
        )
    ),
    budgets=_list(
        _object(
            share=SHARE,
            low=_or_null(_ref("route")),
            high=_or_null(_ref("route")),
            share_high=_or_null(SHARE),
            accuracy=_or_null(_ref("score")),
            cost=_or_null(COST),
            random=_or_null(SHARE),
            gain=_or_null(_ref("score")),
        )
    ),
    models=_list(
        _object(
            tier=WORDS,
            n=COUNT,
            accuracy=_ref("outcome"),
            cost=COST,
            seconds=_or_null(COST),
            cut=_or_null(COUNT),
            unreadable=_or_null(COUNT),
            silent=_or_null(COUNT),
            without_p=COUNT,
            confidence=_ref("confidence"),
        )
    ),
    chosen=_object(
        **ROUTE,
        n=COUNT,
        accuracy=_ref("outcome"),
        tiers_asked=NUMBER,
        seconds=_object(**dict.fromkeys(("mean", "p50", "p95"), _or_null(COST))),
        confidence=_ref("confidence"),
    ),
    steps=_list(
        _object(
            tier=WORDS,
            threshold=_or_null(SHARE),
            reached=COUNT,
            answered=COUNT,
            right=_ref("outcome"),
            claimed=_or_null(SHARE),
            cost=COST,
            cut=_or_null(COUNT),
            without_p=COUNT,
            confidence=_ref("confidence"),
        )
    ),
    slices=_list(
        _object(
            column=WORDS,
            slice=WORDS,
            n=COUNT,
            accuracy=_ref("outcome"),
            reference_accuracy=_ref("outcome"),
            gain=_ref("score"),
            cost_share=_ref("score"),
            claimed=_or_null(SHARE),
        )
    ),
    guarantees=_object(
        thresholds=_list(
            _object(
                tier=WORDS,
                after=_list(WORDS),
                risk=SHARE,
                confidence=SHARE,
                n=COUNT,
                trusted=_THRESHOLD,
                controlled=_THRESHOLD,
            )
        ),
        proven=_list(
            {"anyOf": [_object(risk=SHARE, certificate=_ref("certificate")), _object(risk=SHARE, refused=WORDS)]}
        ),
        labels=_list(_object(certify=SHARE, truth=SHARE, labels=COUNT)),
        assumptions=_list(WORDS),
    ),
    questions=_object(
        id=_list(WORDS),
        family=_list(WORDS),
        right=_list({"enum": [0, 1]}),
        cost=_list(COST),
        served=_list(COUNT),
        p=_list(_or_null(SHARE)),
    ),
    provenance=_object(
        command=WORDS,
        config=_or_null(_FILE),
        prices=_or_null(_FILE),
        wish={"type": "object"},
        versions=_by_name(WORDS),
        machine=WORDS,
        records=_list({"anyOf": [_FILE, _COLLECTED]}),
        calibrators=_list(
            _object(
                tier=WORDS,
                path=WORDS,
                label=WORDS,
                sha256=SHA256,
                kind=WORDS,
                features=_list(WORDS),
                split=WORDS,
                n=COUNT,
                created=WORDS,
                expires=_or_null(WORDS),
            )
        ),
    ),
)
