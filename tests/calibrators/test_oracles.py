"""Our families and scores against the figures of other people's packages, stored with their origin in data/oracles."""

import json
from pathlib import Path

import numpy as np
import pytest

from calibrators import beta, isotonic, scores, temperature, venn_abers
from calibrators._linear import task, with_ones
from calibrators.base import FitData, sigmoid

FOLDER = Path(__file__).resolve().parents[1] / "data" / "oracles"


def stored(package):
    told = json.loads((FOLDER / f"{package}.json").read_text(encoding="utf-8"))
    z, y = np.array(told["logits"]), np.array(told["labels"])
    return told, FitData(z[:, None], y), np.array(told["new_logits"])[:, None]


def test_every_stored_figure_says_which_package_version_and_command_it_comes_from():
    files = sorted(FOLDER.glob("*.json"))
    assert [file.stem for file in files] == ["netcal", "venn_abers"]
    for file in files:
        origin = json.loads(file.read_text(encoding="utf-8"))["origin"]
        assert all(origin[field] for field in ("package", "version", "command", "python", "numpy"))


def test_venn_abers_gives_the_package_s_two_probabilities_at_between_and_beyond_the_old_scores():
    told, data, _ = stored("venn_abers")
    fit, at = venn_abers.fit(data), np.array(told["at"])[:, None]
    p0, p1 = fit.interval(at)
    assert p0 == pytest.approx(told["p0"], abs=1e-12)
    assert p1 == pytest.approx(told["p1"], abs=1e-12)
    assert fit.predict(at) == pytest.approx(told["p"], abs=1e-12)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_equal_width_ece_is_netcal_s(bins):
    told, data, _ = stored("netcal")
    ours = scores.ece_equal_width(sigmoid(data.X[:, 0]), data.y, bins)
    assert ours == pytest.approx(told["ece_equal_width"][str(bins)], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "fit"), [("temperature", temperature.fit), ("beta", lambda data: beta.fit(data, ridge=0.0))]
)
def test_temperature_and_beta_give_netcal_s_probabilities(name, fit):
    told, data, new = stored("netcal")
    assert fit(data).predict(new) == pytest.approx(told["at_new"][name], abs=1e-6)  # netcal stops a little earlier


def test_isotonic_gives_netcal_s_probabilities_but_for_never_saying_0_or_1():
    told, data, new = stored("netcal")
    edge = 1 / (data.n + 2)
    theirs = np.clip(told["at_new"]["isotonic"], edge, 1 - edge)
    assert isotonic.fit(data, min_rows=1).predict(new) == pytest.approx(theirs, abs=1e-12)


def test_the_core_of_platt_and_logistic_gives_netcal_s_slope_and_intercept():
    """The core, because around it ours winsorise the feature, and Platt smooths its targets, as netcal does not."""
    told, data, new = stored("netcal")
    slope, intercept = task(data, with_ones(data.X[:, 0])).solve()
    assert sigmoid(slope * new[:, 0] + intercept) == pytest.approx(told["at_new"]["logistic"], abs=1e-5)
