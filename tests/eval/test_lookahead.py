"""The look-ahead policy: what it saves by skipping, and what it does at its edges."""

from collections.abc import Callable

import numpy as np
import pytest

from eval.crossed import Crossed
from eval.lookahead import LookAhead, candidates, learn, replay
from eval.stats import mix_accuracy
from eval.sweep import sweep

World = Callable[..., Crossed]


def test_it_skips_a_tier_that_never_helps() -> None:
    """The middle tier is wrong wherever the first is, so a policy that looks ahead goes straight to the last."""
    rng = np.random.default_rng(0)
    n = 1_000
    first = (rng.random(n) < 0.6).astype(float)
    right = np.stack([first, first, np.ones(n)], axis=1)
    p = np.stack([np.where(first == 1, 0.99, 0.01), np.full(n, 0.5), np.full(n, 0.9)], axis=1)
    p[:, 0] += rng.uniform(-0.005, 0.005, n)
    cost = np.tile([1.0, 2.0, 10.0], (n, 1))
    crossed = Crossed(tuple(map(str, range(n))), tuple("abc"), p, right, cost, cost)
    played = replay(crossed, LookAhead(learn(crossed), 0, 0.03))
    assert set(played.served.tolist()) == {0, 2}
    assert played.accuracy == 1.0
    assert played.mean_cost == pytest.approx(1 + 10 * (1 - first.mean()))


def test_its_rates_span_from_always_asking_on_to_never(world: World) -> None:
    crossed = world(800, 0)
    costs = [replay(crossed, policy).mean_cost for policy in candidates(crossed) if policy.start == 0]
    assert costs[-1] == pytest.approx(crossed.cost[:, 0].mean())
    assert max(costs) > 0.5 * crossed.cost[:, 2].mean()


def test_it_beats_the_random_mix_and_comes_near_the_sweep_on_untouched_questions(world: World) -> None:
    fit, test = world(2_000, 1), world(2_000, 2)
    played = [replay(test, policy) for policy in candidates(fit)]
    ours = mix_accuracy(8.0, np.array([one.mean_cost for one in played]), np.array([one.accuracy for one in played]))
    mixed = mix_accuracy(8.0, test.cost.mean(axis=0), test.right.mean(axis=0))
    swept = sweep(test)
    assert ours > mixed + 0.02
    assert ours > mix_accuracy(8.0, swept.cost, swept.accuracy) - 0.03


def test_no_evidence_always_asks_on_and_a_p_that_never_varies_is_no_view(world: World) -> None:
    blind = world(300, 3)
    p = blind.p.copy()
    p[:, 0] = 0.5
    p[:5, 0] = np.nan
    crossed = Crossed(blind.questions, blind.tiers, p, blind.right, blind.cost, blind.seconds)
    views = learn(crossed)
    assert views.benefits[0, 1].calibrator is None
    played = replay(crossed, LookAhead(views, 0, 10.0))
    assert played.served[:5].min() > 0
    assert (played.served[5:] == 0).all()
    assert learn(blind).benefits[0, 2].predict(np.array([np.nan, 0.5])).shape == (2,)
