"""Cost models by hand, and price files that lack what a model needs."""

from pathlib import Path

import numpy as np
import pytest

from eval.costs import MODELS, CostFile, Usage, check_unit, cost, read
from eval.crossed import BadTable
from gateway.errors import ConfigError

USAGE = Usage(("small", "large"), np.array([[100.0, 100.0]]), np.array([[200.0, 50.0]]), np.array([[1.0, 2.5]]))
FILE = """
load: 128 in flight
tiers:
  small: {parameters: 1.0e+9, usd_per_mtok_in: 1, usd_per_mtok_out: 2, gpus: 1, prompt_tokens_per_second: 1000,
          completion_tokens_per_second: 100}
  large: {parameters: 7.0e+9, usd_per_mtok_in: 10, usd_per_mtok_out: 20, gpus: 2, prompt_tokens_per_second: 500,
          completion_tokens_per_second: 50}
"""


@pytest.fixture
def prices(tmp_path: Path) -> CostFile:
    path = tmp_path / "prices.yaml"
    path.write_text(FILE)
    return read(path)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("tokens", [300, 150]),
        ("flops", [2e9 * 300, 14e9 * 150]),
        ("gpu-seconds", [100 / 1000 + 200 / 100, 2 * (100 / 500 + 50 / 50)]),
        ("usd", [(100 + 400) / 1e6, (1000 + 1000) / 1e6]),
        ("seconds", [1.0, 2.5]),
    ],
)
def test_each_model_by_hand(model: str, wanted: list[float], prices: CostFile) -> None:
    assert cost(model, USAGE, prices)[0] == pytest.approx(wanted)  # type: ignore[arg-type]
    assert model in MODELS


def test_tokens_and_seconds_need_no_prices() -> None:
    assert cost("tokens", USAGE).tolist() == [[300, 150]]
    assert cost("seconds", USAGE).tolist() == [[1.0, 2.5]]


def test_what_a_model_needs_and_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("tiers:\n  small: {parameters: 1.0e+9}\n")
    small = Usage(("small",), np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ConfigError, match="needs gpus of the tier 'small'"):
        cost("gpu-seconds", small, read(path))
    with pytest.raises(ConfigError, match="needs usd_per_mtok_in of the tier 'small'"):
        cost("usd", small, read(path))
    with pytest.raises(ConfigError, match="no tier 'large'"):
        cost("usd", USAGE, read(path))
    with pytest.raises(ConfigError, match="needs a file of prices"):
        cost("flops", USAGE)
    with pytest.raises(ConfigError, match="no cost model 'money'; have tokens"):
        cost("money", USAGE, read(path))  # type: ignore[arg-type]


def test_a_mistake_in_a_price_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("tiers:\n  small:\n    usd_per_mtok: 3\n")
    with pytest.raises(ConfigError, match=r"prices.yaml:3: .*usd_per_mtok_in"):
        read(path)
    with pytest.raises(ConfigError, match="cannot read the prices"):
        read(tmp_path / "absent.yaml")


def test_free_answers_are_no_basis_for_saving() -> None:
    with pytest.raises(BadTable, match="count tokens"):
        check_unit("usd", ("a",), np.zeros((3, 1)))
    check_unit("usd", ("a",), np.array([[0.0], [1.0]]))
