"""The optimiser: it finds known minima, keeps to its bounds, and never returns a point where it is not done."""

import numpy as np
import pytest

from calibrators.base import NotConverged
from calibrators.minimise import brent, newton


def rosenbrock(theta):
    x, y = theta
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2, np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])


def bowl(theta):
    return float(((theta - [1.0, -2.0]) ** 2).sum()), 2 * (theta - [1.0, -2.0])


def test_a_curved_valley_is_followed_to_its_end():
    assert newton(rosenbrock, np.array([-1.2, 1.0])) == pytest.approx([1.0, 1.0], abs=1e-8)


def test_a_bound_holds_and_the_other_coordinate_is_still_optimal():
    found = newton(bowl, np.array([3.0, 3.0]), lower=np.array([-np.inf, 0.0]))
    assert found == pytest.approx([1.0, 0.0], abs=1e-9)


def test_a_start_on_the_wrong_side_of_an_inactive_bound_comes_back():
    assert newton(bowl, np.zeros(2), upper=np.array([0.0, 0.0]), lower=np.full(2, -9.0)) == pytest.approx([0.0, -2.0])


def test_a_function_without_a_minimum_raises_instead_of_returning_a_far_point():
    with pytest.raises(NotConverged, match="gradient norm"):
        newton(lambda t: (-float(t.sum()), -np.ones(1)), np.zeros(1), max_steps=30)


def test_a_gradient_that_contradicts_its_value_raises():
    with pytest.raises(NotConverged, match="no descent"):
        newton(lambda t: (float(t @ t), -2 * t), np.ones(2))


def test_brent_finds_the_inner_minimum_and_refuses_an_edge():
    assert brent(lambda x: (x - 0.3) ** 2, -1, 1) == pytest.approx(0.3, abs=1e-7)
    with pytest.raises(NotConverged, match="edge"):
        brent(lambda x: x, 0, 1)
