"""Certificates: by hand, by published numbers, and by counting how often they are broken in simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta, binom

from eval.crossed import Crossed
from eval.guarantees import (
    BadGuarantee,
    Certificate,
    Refused,
    accepted_error,
    binomial_p_value,
    controlled_threshold,
    cost_bound,
    final_error,
    hoeffding_bentkus_p_value,
    kept,
    labels_needed,
    labels_table,
    trusted_threshold,
    upper_bound,
)
from eval.sweep import Route, outcomes, replay

World = Callable[..., Crossed]
DELTA = 0.1
DRAWS = 1_000
MARKS = np.linspace(0.05, 0.95, 10)


@pytest.fixture(scope="module")
def population() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two tiers' p and right answers for 200,000 questions, from which draws are made; truth is theirs."""
    rng = np.random.default_rng(0)
    margin = np.array([1.0, 2.5]) - 1.5 * rng.normal(size=(200_000, 1)) + rng.normal(size=(200_000, 2))
    p = 1 / (1 + np.exp(-margin))
    return p[:, 0], (rng.random(p.shape) < p).astype(float), p


def violations(broken: int) -> None:
    """At most delta of the draws, give or take what 1,000 draws show by chance (one in a thousand tests)."""
    assert broken <= binom.ppf(0.999, DRAWS, DELTA), f"{broken} of {DRAWS} draws broke a promise made for {DELTA:.0%}"


def test_a_certified_final_error_is_exceeded_in_at_most_delta_of_1000_draws(population: tuple) -> None:
    p, right, _ = population
    wrong = np.array([1 - np.where(p >= mark, right[:, 0], right[:, 1]).mean() for mark in MARKS[::-1]])
    alpha = float(np.sort(wrong)[len(wrong) // 2]) - 1e-4  # between two candidates: the worst case for the test
    rng = np.random.default_rng(1)
    broken = 0
    routes = [Route((0, 1), (float(mark),)) for mark in MARKS[::-1]]
    for draw in range(DRAWS):
        rows = rng.integers(len(p), size=300)
        scored = np.stack([p[rows], p[rows]], axis=1)
        crossed = Crossed(tuple(map(str, range(300))), ("a", "b"), scored, right[rows], scored, scored)
        found = final_error(crossed, routes, alpha, DELTA) if draw < 100 else None
        sums, _ = outcomes(crossed, (0, 1), [MARKS])
        passed = kept([binomial_p_value(int(300 - one), 300, alpha) for one in sums[::-1]], DELTA)
        if found is not None:  # the plain way, often enough to know that both are one
            assert isinstance(found, Certificate) == (passed > 0)
            if isinstance(found, Certificate):
                assert found.policy["thresholds"] == [MARKS[::-1][passed - 1]]
        broken += bool((wrong[:passed] > alpha).any())
    assert broken > 0  # else the test would show nothing
    violations(broken)


def test_bounds_per_tier_hold_together_in_all_but_delta_of_1000_draws(population: tuple) -> None:
    p, right, _ = population
    accepted = p >= 0.7
    truth = 1 - right[accepted, 0].mean(), 1 - right[~accepted, 1].mean()
    rng = np.random.default_rng(2)
    broken = 0
    for _ in range(DRAWS):
        rows = rng.integers(len(p), size=300)
        for truly, here, tier in ((truth[0], accepted[rows], 0), (truth[1], ~accepted[rows], 1)):
            m = int(here.sum())
            if upper_bound(int(m - right[rows][here, tier].sum()), m, DELTA / 2) < truly:
                broken += 1
                break
    violations(broken)


def test_a_trusted_threshold_lets_too_many_errors_through_in_at_most_delta_of_1000_draws(population: tuple) -> None:
    p, right, _ = population
    rng = np.random.default_rng(3)
    truth = {float(mark): 1 - right[p >= mark, 0].mean() for mark in MARKS}
    broken = found = 0
    for _ in range(DRAWS):
        rows = rng.integers(len(p), size=400)
        threshold = trusted_threshold(p[rows], right[rows, 0], MARKS, 0.15, DELTA)
        if isinstance(threshold, float):
            found += 1
            broken += truth[threshold] > 0.15
    assert found > 500
    violations(broken)


def test_one_early_mistake_does_not_end_the_search_for_a_trusted_threshold() -> None:
    """Of 1,000 answers one in two hundred is wrong, the very surest among them: 5 % is plain to see."""
    p = np.linspace(0.999, 0.001, 1_000)
    right = (np.arange(1_000) % 200 != 0).astype(float)
    assert trusted_threshold(p, right, np.linspace(0.01, 0.99, 99), 0.05) == pytest.approx(0.01)
    few = trusted_threshold(p[1:101], right[1:101], np.linspace(0.9, 0.99, 10), 0.05)  # too few for any mistake
    assert isinstance(few, float)
    assert isinstance(trusted_threshold(p[1:41], right[1:41], np.linspace(0.9, 0.99, 10), 0.05), Refused)


def test_conformal_bounds_hold_in_the_mean_over_1000_draws(population: tuple) -> None:
    p, right, _ = population
    rng = np.random.default_rng(4)
    loss, over = [], []
    cost = 1 + 10 * (1 - p)
    for _ in range(DRAWS):
        rows, fresh = rng.integers(len(p), size=200), rng.integers(len(p), size=50)
        threshold = controlled_threshold(p[rows], right[rows, 0], MARKS, 0.05)
        if isinstance(threshold, float):
            loss.append(((p[fresh] >= threshold) & (right[fresh, 0] == 0)).mean())
        limit = np.sort(cost[rows])[int(np.ceil(201 * 0.9)) - 1]
        over.append((cost[fresh] > limit).mean())
    assert np.mean(loss) <= 0.05 + 3 * np.std(loss) / len(loss) ** 0.5
    assert np.mean(over) <= 0.1 + 3 * np.std(over) / len(over) ** 0.5


def test_labels_needed_are_those_of_the_reference_card() -> None:
    """Its rounded numbers lie on the saw teeth below ours, from which on no tooth falls short."""
    for (alpha, truth), card in {
        (0.05, 0.03): 630, (0.05, 0.02): 260, (0.1, 0.05): 180, (0.03, 0.02): 1580, (0.02, 0.01): 970,
    }.items():  # fmt: skip
        assert card <= labels_needed(alpha, truth) <= 1.16 * card
    assert [row["labels"] for row in labels_table()] == [203, 694, 286, 1692, 1091]
    with pytest.raises(BadGuarantee, match="truth < alpha"):
        labels_needed(0.05, 0.05)
    with pytest.raises(BadGuarantee, match="do not certify"):
        labels_needed(0.05, 0.0495)


def test_bounds_are_the_textbook_ones() -> None:
    assert upper_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_bound(3, 50, 0.05) == pytest.approx(beta.ppf(0.95, 4, 47))
    assert upper_bound(50, 50, 0.05) == 1.0
    assert binomial_p_value(2, 40, 0.1) == pytest.approx(binom.cdf(2, 40, 0.1))
    assert hoeffding_bentkus_p_value(0.2, 100, 0.1) == 1.0
    assert hoeffding_bentkus_p_value(0.0, 100, 0.1) == pytest.approx(min(0.9**100, np.e * binom.cdf(0, 100, 0.1)))
    assert kept([0.01, 0.04, 0.2, 0.01], 0.05) == 2
    assert kept([], 0.05) == 0


def test_a_certificate_says_what_it_rests_on_and_survives_json(world: World) -> None:
    crossed = world(500, 0, skills=(2.0, 4.0, 8.0))
    routes = [Route((2,)), Route((1, 2), (0.9,)), Route((1,))]
    found = final_error(crossed, routes, 0.05)
    assert isinstance(found, Certificate)
    assert (found.n, found.data_sha256) == (500, crossed.sha256)
    assert "95% confidence" in str(found)
    again = Certificate.from_json(found.as_json())
    assert again == found
    assert again.covers(found.policy["tiers"], found.policy["thresholds"])
    assert not again.covers(found.policy["tiers"], [0.123])
    for broken in ({"n": 0}, {"confidence": 1.0}, {"policy": {}}):
        with pytest.raises(BadGuarantee):
            Certificate.from_json({**found.as_json(), **broken})
    with pytest.raises(BadGuarantee, match="has the fields"):
        Certificate.from_json({"what": "x"})


def test_no_promise_is_made_where_none_can_be_kept(world: World) -> None:
    crossed = world(40, 1)
    assert isinstance(final_error(crossed, [Route((0,))], 0.01), Refused)
    assert isinstance(final_error(crossed, [], 0.01), Refused)
    few = accepted_error(crossed, Route((0, 2), (0.5,)))
    assert any(isinstance(one, Refused) and "are needed" in str(one) for one in few)
    assert isinstance(cost_bound(crossed.rows(np.arange(10)), Route((0,))), Refused)
    assert isinstance(trusted_threshold(crossed.p[:, 0], crossed.right[:, 0], MARKS, 0.001), Refused)
    assert isinstance(controlled_threshold(crossed.p[:, 0], crossed.right[:, 0], MARKS, 0.001), Refused)
    with pytest.raises(BadGuarantee, match="alpha must lie"):
        final_error(crossed, [Route((0,))], 0.0)


def test_a_cost_bound_is_a_cost_that_was_seen(world: World) -> None:
    crossed, route = world(400, 2), Route((0, 2), (0.6,))
    found = cost_bound(crossed, route, 0.1)
    assert isinstance(found, Certificate)
    costs = replay(crossed, route).cost
    assert found.limit in costs
    assert (costs > found.limit).mean() <= 0.1


def test_variants_of_one_question_count_once(world: World) -> None:
    one = world(200, 3, skills=(4.0, 6.0, 9.0))
    twice = Crossed(
        tuple(f"{q}{half}" for half in "xy" for q in one.questions), one.tiers, *(np.tile(a, (2, 1)) for a in (
            one.p, one.right, one.cost, one.seconds)), families=one.questions * 2,
    )  # fmt: skip
    found = final_error(twice, [Route((2,))], 0.1)
    assert isinstance(found, Certificate)
    assert found.n == 200
    tiers = accepted_error(twice, Route((2,)))
    assert [one.n for one in tiers if isinstance(one, Certificate)] == [200]
