"""Objectives: exact gradients, the limits, the extremes, and the table of science 3.3."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrators import objectives
from calibrators._linear import task
from calibrators.base import BadObjective, BadSlices, FitData, logit, sigmoid
from calibrators.minimise import newton
from calibrators.objectives import effective_share
from calibrators.objectives.chi_square import ChiSquare
from calibrators.objectives.cvar import Cvar
from calibrators.objectives.erm import Erm
from calibrators.objectives.group_dro import GroupDro
from calibrators.objectives.group_tilt import GroupTilt
from calibrators.objectives.importance import Importance, domain_ratios
from calibrators.objectives.robust_filtered import RobustFiltered
from calibrators.objectives.tilt import Tilt
from calibrators.objectives.tilt_selfnorm import TiltSelfnorm

RNG = np.random.default_rng(3)
LOSSES = RNG.gamma(1.0, 0.7, size=30)
SLICES = RNG.integers(0, 4, size=30)
BASE = RNG.dirichlet(np.ones(30))
losses_of_any_size = hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 20))


def differences(objective, losses, slices=SLICES, base=BASE, width=1e-6):
    """d value / d losses by central differences."""
    out = np.empty_like(losses)
    for i in range(len(losses)):
        ahead, behind = losses.copy(), losses.copy()
        ahead[i] += width
        behind[i] -= width
        out[i] = (objective(ahead, slices, base)[0] - objective(behind, slices, base)[0]) / (2 * width)
    return out


@pytest.mark.parametrize("objective", [Erm(), Tilt(0.5), Tilt(2.0), GroupTilt(3.0), GroupTilt(10.0)], ids=repr)
def test_the_weights_are_the_exact_derivative_of_the_value(objective):
    _, weights = objective(LOSSES, SLICES, BASE)
    assert weights == pytest.approx(differences(objective, LOSSES), abs=1e-8)
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0


def test_the_tilts_weights_are_the_softmax_of_the_losses():
    softmax = np.exp(2.0 * LOSSES) / np.exp(2.0 * LOSSES).sum()
    value, weights = Tilt(2.0)(LOSSES)
    assert weights == pytest.approx(softmax)
    assert value == pytest.approx(np.log(np.exp(2.0 * LOSSES).mean()) / 2.0)


@pytest.mark.parametrize("kind", [Tilt, GroupTilt])
def test_no_tilt_and_next_to_no_tilt_are_the_plain_mean(kind):
    mean, base = Erm()(LOSSES, SLICES, BASE)
    for eta in (0.0, 1e-9):
        value, weights = kind(eta)(LOSSES, SLICES, BASE)
        assert value == pytest.approx(mean, rel=1e-8)
        assert weights == pytest.approx(base, rel=1e-6)


@pytest.mark.parametrize("spec", ["erm", "tilt(eta=2)", "group_tilt(eta=10)"])
def test_a_loss_of_ten_thousand_overflows_nothing(spec):
    losses = np.array([1e4, 0.0, 3.0, 1e4])
    value, weights = objectives.find(spec)(losses, np.array([0, 0, 1, 1]))
    assert np.isfinite(value)
    assert value <= 1e4 + 1e-9
    assert weights.sum() == pytest.approx(1.0)
    assert np.isfinite(weights).all()


@given(losses_of_any_size, st.floats(0.01, 5), st.floats(1.1, 10))
def test_a_stronger_tilt_is_worth_more_and_never_lightens_the_worst_example(losses, eta, factor):
    weak, strong = Tilt(eta)(losses), Tilt(eta * factor)(losses)
    assert losses.mean() - 1e-9 <= weak[0] <= strong[0] + 1e-9 <= losses.max() + 1e-8
    assert strong[1][losses.argmax()] >= weak[1][losses.argmax()] - 1e-12


@given(losses_of_any_size, st.floats(0.01, 5), st.integers(0, 2**32 - 1))
def test_the_tilt_is_the_worst_case_with_a_price_on_distance(losses, eta, seed):
    """Donsker-Varadhan: no distribution scores higher than the tilt's own weights, which reach the value."""
    value, q = Tilt(eta)(losses)

    def priced(q):
        inside = q[q > 0]
        return q @ losses - (inside * np.log(inside * len(losses))).sum() / eta

    assert priced(q) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert priced(np.random.default_rng(seed).dirichlet(np.ones(len(losses)))) <= value + 1e-9


def test_a_tilt_over_slices_leaves_the_examples_inside_a_slice_their_own_shares():
    _, weights = GroupTilt(5.0)(LOSSES, SLICES, BASE)
    for code in range(4):
        inside = np.equal(SLICES, code)
        ratio = weights[inside] / BASE[inside]
        assert ratio == pytest.approx(ratio[0])


def test_one_slice_makes_the_group_tilt_erm():
    value, weights = GroupTilt(10.0)(LOSSES, np.zeros(30, dtype=np.int64), BASE)
    assert value == pytest.approx(BASE @ LOSSES)
    assert weights == pytest.approx(BASE)


def test_a_slice_without_weight_does_not_count():
    base = np.where(SLICES == 2, 0.0, BASE)
    base /= base.sum()
    kept = SLICES != 2
    value, weights = GroupTilt(3.0)(np.where(kept, LOSSES, 1e4), SLICES, base)
    assert value == pytest.approx(GroupTilt(3.0)(LOSSES[kept], SLICES[kept], base[kept])[0])
    assert weights[~kept] == pytest.approx(0.0)


def test_slices_are_asked_for_when_an_objective_needs_them():
    with pytest.raises(BadSlices, match=r"FitData\.slices"):
        GroupTilt()(LOSSES)


@pytest.mark.parametrize("losses", [np.array([]), np.array([np.nan]), np.array([np.inf, 1.0]), np.ones((2, 2))])
def test_losses_that_are_no_finite_row_of_numbers_are_refused(losses):
    with pytest.raises(BadObjective, match="finite losses"):
        Erm()(losses)


def test_a_wrong_name_lists_the_right_ones_and_a_wrong_parameter_too():
    with pytest.raises(BadObjective, match=r"erm.*group_tilt.*tilt"):
        objectives.find("tild")
    with pytest.raises(BadObjective, match="eta"):
        objectives.find("tilt(alpha=1)")
    with pytest.raises(BadObjective, match=">= 0"):
        objectives.find("tilt(eta=-1)")


def test_a_spec_binds_its_parameters():
    assert objectives.find("group_tilt(eta=10)") == GroupTilt(10.0)
    assert objectives.find("erm") == Erm()


# Science 3.3: what the tilted losses' minimisers report where the truth is pi.

TABLE = {
    0.80: (0.779, 0.752, 0.716, 0.667, 0.614),
    0.90: (0.881, 0.853, 0.812, 0.750, 0.675),
    0.99: (0.985, 0.975, 0.955, 0.909, 0.822),
}
ETAS = (0.1, 0.25, 0.5, 1.0, 2.0)
CELLS = [(pi, eta, p) for pi, row in TABLE.items() for eta, p in zip(ETAS, row, strict=True)]


def best_p(objective, pi):
    """The p that minimises the objective's log-loss when a share pi of the answers is right."""
    data = FitData(np.zeros((2, 1)), np.array([1.0, 0.0]), weights=np.array([pi, 1 - pi]))
    (z,) = task(data, np.ones((2, 1))).solve(objective)
    return float(sigmoid(z))


@pytest.mark.parametrize(("pi", "eta", "printed"), CELLS)
def test_the_tilt_reports_what_the_table_says(pi, eta, printed):
    p = best_p(Tilt(eta), pi)
    assert f"{p:.3f}" == f"{printed:.3f}"
    assert logit(np.array(p)) == pytest.approx(logit(np.array(pi)) / (1 + eta), rel=1e-6)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("pi", TABLE)
def test_the_tilted_brier_score_shifts_the_logit_by_eta_times_one_minus_two_p(pi, eta):
    def value_and_gradient(theta):
        p = sigmoid(theta)[0]
        value, weights = Tilt(eta)(np.array([(1 - p) ** 2, p**2]), None, np.array([pi, 1 - pi]))
        return value, np.array([(weights @ [-2 * (1 - p), 2 * p]) * p * (1 - p)])

    z = newton(value_and_gradient, np.zeros(1))
    assert z[0] == pytest.approx(np.log(pi / (1 - pi)) + eta * (1 - 2 * sigmoid(z)[0]), abs=1e-6)


@pytest.mark.parametrize(("pi", "others"), [(0.8, 0.6), (0.9, 0.75)])
def test_the_tilt_over_slices_stays_calibrated_when_slices_agree_on_the_truth(pi, others):
    """Two slices with the same P(Y|x) at each of two x, mixed differently: every L_g has the same minimiser."""
    design = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]] * 2)
    y = np.array([1.0, 0, 1, 0] * 2)
    truth = np.array([pi, 1 - pi, others, 1 - others] * 2)
    mix = np.array([0.4, 0.4, 0.1, 0.1, 0.1, 0.1, 0.4, 0.4])
    data = FitData(np.zeros((8, 1)), y, weights=truth * mix, slices=np.repeat([0, 1], 4))
    z = task(data, design).solve(GroupTilt(10.0))
    assert sigmoid(z) == pytest.approx([pi, others], abs=1e-6)


# The comparators

SELFNORM = TiltSelfnorm(2.0)
OTHERS = [
    SELFNORM,
    GroupDro(),
    GroupDro(adjust=0.5),
    Cvar(0.3),
    Cvar(0.3, sharpness=5.0),
    ChiSquare(0.5),
    ChiSquare(5.0),
]
ROW_BOUND = [Importance(RNG.gamma(1.0, size=30)), RobustFiltered(RNG.random((30, 4)) < 0.4)]


@pytest.mark.parametrize("objective", [*OTHERS, *ROW_BOUND], ids=lambda o: type(o).__name__)
def test_every_objectives_weights_are_its_exact_derivative(objective):
    _, weights = objective(LOSSES, SLICES, BASE)
    assert weights == pytest.approx(differences(objective, LOSSES), abs=1e-6)
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0 or objective is SELFNORM


@pytest.mark.parametrize(
    "objective", [*OTHERS, Importance(np.ones(4)), RobustFiltered(np.eye(4, dtype=bool))], ids=repr
)
@pytest.mark.parametrize("losses", [[1e4, 0.0, 3.0, 1e4], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 1e4]])
def test_every_objective_is_finite_and_between_mean_and_maximum_for_extreme_and_equal_losses(objective, losses):
    losses = np.array(losses)
    value, weights = objective(losses, np.array([0, 0, 1, 1]))
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1.0)
    assert (
        losses.mean() - 0.01 <= value <= losses.max() + 0.8
    )  # 0.8: group DRO's C / sqrt(n) = 0.35; rounding below 0.01


def test_the_self_normalised_tilt_has_the_gradient_of_the_paper_and_pays_for_making_easy_examples_worse():
    softmax = Tilt(2.0)(LOSSES)[1]
    value, weights = SELFNORM(LOSSES)
    assert value == pytest.approx(softmax @ LOSSES)
    assert weights == pytest.approx(softmax * (1 + 2.0 * (LOSSES - value)))
    assert ((weights < 0) == (value - 0.5 > LOSSES)).all()
    assert (weights < 0).any()
    divergence = (softmax * np.log(softmax * len(LOSSES))).sum()
    assert value == pytest.approx(Tilt(2.0)(LOSSES)[0] + divergence / 2.0)


def test_the_self_normalised_tilt_shrinks_ninety_percent_further_than_the_tilt_does():
    """To .6156: found by a grid over p as well. Science 3.3 prints .614."""

    def j(p):
        w = np.array([0.9 * p**-2.0, 0.1 * (1 - p) ** -2.0])
        return -(w @ np.log([p, 1 - p])) / w.sum()

    def value_and_gradient(theta):
        losses = np.logaddexp(0, theta[0]) - np.array([theta[0], 0.0])
        value, weights = SELFNORM(losses, None, np.array([0.9, 0.1]))
        return value, np.array([weights @ (sigmoid(theta) - np.array([1.0, 0.0]))])

    p = float(sigmoid(newton(value_and_gradient, np.zeros(1)))[0])
    grid = np.linspace(0.5, 0.95, 4501)
    assert p == pytest.approx(grid[np.argmin([j(q) for q in grid])], abs=1e-4)
    assert p == pytest.approx(0.6156, abs=5e-5)


def test_group_dro_is_the_worst_slice_and_small_slices_are_told_to_do_better():
    slices = np.repeat([0, 1], [25, 5])
    means = np.array([LOSSES[:25].mean(), LOSSES[25:].mean()])
    assert GroupDro()(LOSSES, slices)[0] == pytest.approx(means.max(), abs=1e-3)
    adjusted = means + 9.0 / np.sqrt([25, 5])
    value, weights = GroupDro(adjust=9.0)(LOSSES, slices)
    assert value == pytest.approx(adjusted.max(), abs=1e-3)
    assert weights[25:].sum() > 0.99


def test_group_dro_brings_the_slices_to_the_same_loss():
    rng = np.random.default_rng(0)
    data = FitData(
        np.zeros((400, 1)), rng.permutation(np.arange(400) % 5 > 0).astype(float), slices=np.arange(400) // 300
    )
    (z,) = task(data, np.ones((400, 1))).solve(GroupDro())
    losses = np.logaddexp(0, z) - z * data.y
    worst = max(losses[data.slices == s].mean() for s in (0, 1))
    assert (
        worst
        <= min(
            max((np.logaddexp(0, t) - t * data.y)[data.slices == s].mean() for s in (0, 1))
            for t in np.linspace(-1, 3, 400)
        )
        + 2e-3
    )


@pytest.mark.parametrize("alpha", [0.1, 0.33, 0.5, 1.0])
def test_cvar_is_the_mean_of_the_worst_share(alpha):
    grid = np.linspace(0, LOSSES.max(), 20_001)
    excess = np.maximum(LOSSES[None, :] - grid[:, None], 0).mean(axis=1)
    exact = (grid + excess / alpha).min()  # Rockafellar and Uryasev's form
    value, weights = Cvar(alpha)(LOSSES)
    assert value == pytest.approx(exact, abs=np.log(1 / alpha) / 1000 + 1e-6)
    assert weights.max() <= 1 / (alpha * 30) + 1e-9


def test_cvar_on_log_loss_degenerates_to_one_half():
    rng = np.random.default_rng(0)
    z = rng.normal(size=500)
    data = FitData(z[:, None], rng.random(500) < sigmoid(2 * z + 1))
    theta = task(data, np.column_stack([z, np.ones(500)])).solve(Cvar(0.3, sharpness=100.0))
    assert sigmoid(np.column_stack([z, np.ones(500)]) @ theta) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0, 100.0])
def test_chi_square_is_the_infimum_over_its_dual_variable(rho):
    grid = np.linspace(-60, LOSSES.max() - 1e-9, 200_001)
    dual = np.sqrt(1 + 2 * rho) * np.sqrt(np.mean([np.maximum(x - grid, 0) ** 2 for x in LOSSES], axis=0)) + grid
    assert ChiSquare(rho, sharpness=1e7)(LOSSES)[0] == pytest.approx(dual.min(), abs=1e-4)


def test_importance_weights_recover_the_target_distribution():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(6000, 1)), rng.normal(size=(6000, 1)) + 0.7
    data = FitData(source, rng.random(6000) < 0.5)
    ratios = domain_ratios(data, target)
    _, weights = Importance(ratios)(np.ones(6000))
    assert weights @ source[:, 0] == pytest.approx(0.7, abs=0.06)
    assert domain_ratios(data, target + 1).max() == 10.0
    with pytest.raises(BadObjective, match="ratios for 6000"):
        Importance(ratios)(np.ones(3))


def test_an_objective_bound_to_rows_cannot_be_named_in_a_configuration():
    with pytest.raises(BadObjective, match=r"importance needs ratios.*Python"):
        objectives.find("importance")


def test_effective_share_counts_how_many_rows_carry_the_weight():
    assert effective_share(np.full(8, 1 / 8)) == pytest.approx(1.0)
    assert effective_share(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
