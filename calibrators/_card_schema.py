"""The JSON schema (draft 2020-12) of the calibration card's twin, for those who read cards by machine."""

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


def _with(schema: Schema, **optional: Schema) -> Schema:
    return schema | {"properties": schema["properties"] | optional}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _by_name(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


WORDS: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
MAYBE_SHARE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
ANY: Schema = {}

_COUNTED = _object(n=COUNT, n_right=COUNT, n_rare=COUNT, mean_p=MAYBE_SHARE, scores=_by_name(_ref("outcome")))

DEFINITIONS: dict[str, Schema] = {
    "score": _object(value=NUMBER, low=MAYBE_NUMBER, high=MAYBE_NUMBER, level=SHARE, n=COUNT, how=WORDS),
    "insufficient": _object(insufficient=WORDS, n=COUNT),
    "outcome": {"anyOf": [_ref("score"), _ref("insufficient")]},
    "floor": _object(value=NUMBER, n=COUNT, mean=NUMBER, p95=NUMBER, p_value=SHARE, draws=COUNT),
    "bin": _object(
        n=COUNT,
        p_mean=SHARE,
        p_low=SHARE,
        p_high=SHARE,
        rate=SHARE,
        low=SHARE,
        high=SHARE,
        band_low=SHARE,
        band_high=SHARE,
    ),
    "reliability": _object(
        bins=_list(_ref("bin")), counts=_object(edges=_list(SHARE), right=_list(COUNT), wrong=_list(COUNT))
    ),
    "region": _with(
        _COUNTED,
        insufficient=WORDS,
        floors=_by_name(_ref("floor")),
        failed=_list({"enum": ["ks_ce", "debiased_ece", "intercept", "slope"]}),
        brier_parts=_object(reliability=NUMBER, resolution=NUMBER, uncertainty=NUMBER, within=NUMBER),
        corp=_object(miscalibration=NUMBER, discrimination=NUMBER, uncertainty=NUMBER),
        clipped=COUNT,
        risk_coverage=_list(_object(coverage=SHARE, threshold=SHARE, tied={"type": "boolean"}, error=_ref("score"))),
        reliability=_ref("reliability"),
        curve=_object(coverage=_list(SHARE), error=_list(SHARE), best=_list(SHARE)),
    ),
    "slice": _with(
        _COUNTED
        | {
            "properties": _COUNTED["properties"] | {"column": WORDS, "slice": WORDS, "fails": {"type": "boolean"}},
            "required": sorted([*_COUNTED["required"], "column", "slice", "fails"]),
        },
        insufficient=WORDS,
        ks=_ref("floor"),
    ),
    "aggregate": _object(
        name=WORDS, description=WORDS, served_by=_by_name(COUNT), region=_ref("region"), slices=_list(_ref("slice"))
    ),
    "feature": {
        "anyOf": [
            _object(
                name=WORDS,
                n_right=COUNT,
                n_wrong=COUNT,
                n_undefined=COUNT,
                edges=_list(NUMBER),
                right=_list(NUMBER),
                wrong=_list(NUMBER),
                auroc=_ref("score"),
            ),
            _object(name=WORDS, insufficient=WORDS, n=COUNT),
        ]
    },
    "tier": _object(
        tier=WORDS,
        threshold=MAYBE_SHARE,
        calibrator=_object(
            label=WORDS,
            sha256=WORDS,
            kind=WORDS,
            features=_list(WORDS),
            fingerprint=_by_name(WORDS),
            fit=_by_name(ANY),
            conditions=_list(WORDS),
            created=WORDS,
            expires={"type": ["string", "null"]},
        ),
        regions=_object(all=_ref("region"), reached=_ref("region"), accepted=_ref("region")),
        slices=_list(_ref("slice")),
        features=_list(_ref("feature")),
    ),
}

SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Calibration card of a confidence-aware cascade",
    "$defs": DEFINITIONS,
} | _object(
    schema={"const": "confidence-gateway/calibration-card"},
    schema_version={"const": 1},
    title=WORDS,
    created=WORDS,
    intended_use=WORDS,
    task=_object(task=WORDS, label=WORDS, grader=WORDS),
    routing=_object(type=WORDS, tiers=_list(WORDS), thresholds=_by_name(MAYBE_SHARE)),
    distributions=_object(fitting=WORDS, evaluation=WORDS, splits=_by_name(WORDS)),
    method=_object(binning=WORDS, level=SHARE, resamples=COUNT, floor_draws=COUNT, rare_needed=COUNT, clip=NUMBER),
    routed=_ref("aggregate"),
    tiers=_list(_ref("tier")),
    shifts=_list(_ref("aggregate")),
    post_processing=_list(WORDS),
    guarantees=_list(
        _object(
            claim=WORDS,
            risk={"type": "number", "minimum": 0},
            unit=WORDS,
            confidence=SHARE,
            n=COUNT,
            assumptions=_list(WORDS),
        )
    ),
    operating_conditions=_list(WORDS),
    monitors=_list(WORDS),
    rebuild=WORDS,
)
