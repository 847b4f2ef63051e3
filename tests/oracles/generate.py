"""Compute what other people's packages give on small fixed data, and store it with its origin in tests/data/oracles.

Run in an environment of its own, for netcal brings 2 GB of PyTorch and an old NumPy that ours has no use for:

    python -m venv /tmp/oracles && /tmp/oracles/bin/pip install venn-abers netcal
    /tmp/oracles/bin/python tests/oracles/generate.py

The tests read the stored figures only. A package that is not installed leaves its file as it is, and is named.
"""

import json
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "data" / "oracles"
NEW = np.array([-4.0, -1.1, -0.3, 0.0, 0.45, 1.0, 1.9, 3.2, 6.0])  # logits, some between and some outside the sample's


def sample():
    """(z, y): 240 logits on a grid of a twentieth, hence with ties, and labels that follow 0.6 z + 0.5: over-confident.

    No sigmoid of these logits lies on an edge of 15 equal bins, where packages differ on purpose.
    """
    rng = np.random.default_rng(20260101)
    z = np.round(20 * (1.5 * rng.normal(size=240) + 0.8)) / 20
    z[z == 0] = 0.05
    y = (rng.random(240) < 1 / (1 + np.exp(-(0.6 * z + 0.5)))).astype(float)
    return z, y


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def store(package, figures):
    z, y = sample()
    told = {
        "origin": {
            "package": package,
            "version": version(package),
            "command": "python tests/oracles/generate.py",
            "python": platform.python_version(),
            "numpy": version("numpy"),
        },
        "logits": z.tolist(),
        "labels": y.tolist(),
        "new_logits": NEW.tolist(),
        **figures,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{package.replace('-', '_')}.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(path)


def venn_abers():
    from venn_abers import VennAbers

    z, y = sample()
    fitted, at = VennAbers(), np.concatenate([NEW, z[:20]])
    fitted.fit(np.column_stack([1 - sigmoid(z), sigmoid(z)]), y)
    p, interval = fitted.predict_proba(np.column_stack([1 - sigmoid(at), sigmoid(at)]))
    figures = {"p0": interval[:, 0], "p1": interval[:, 1], "p": p[:, 1]}
    store("venn-abers", {"at": at.tolist()} | {name: column.tolist() for name, column in figures.items()})


def netcal():
    """Its histogram binning is left out: version 1.4.0 refuses equal-mass bins, the only ones that ours has."""
    from netcal.binning import IsotonicRegression
    from netcal.metrics import ECE
    from netcal.scaling import BetaCalibration, LogisticCalibration, TemperatureScaling

    z, y = sample()
    p, new = sigmoid(z), sigmoid(NEW)
    methods = {
        "temperature": TemperatureScaling(),
        "logistic": LogisticCalibration(),
        "beta": BetaCalibration(),
        "isotonic": IsotonicRegression(),
    }
    at_new = {}
    for name, method in methods.items():
        method.fit(p, y)
        at_new[name] = np.asarray(method.transform(new), dtype=float).ravel().tolist()
    store("netcal", {"ece_equal_width": {str(b): float(ECE(b).measure(p, y)) for b in (5, 10, 15)}, "at_new": at_new})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    absent = []
    for compute in (venn_abers, netcal):
        try:
            compute()
        except (ImportError, PackageNotFoundError) as error:
            absent.append(f"{compute.__name__}: {error}")
    if absent:
        sys.exit("left as they were: " + "; ".join(absent))
