"""The rate of a mode in DROO's model against the published equations, and the proven optimum against enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.exact import all_modes, best_modes
from aecnn_deploy.offloading.droo.physics import (
    Floats,
    Modes,
    alternating_weights,
    computation_rate,
    log_one_plus_snr,
)
from aecnn_deploy.offloading.droo.rules import (
    coordinate_descent,
    order_preserving,
    pick,
    random_modes,
    threshold_modes,
)
from aecnn_deploy.offloading.droo.samples import draw_gains, generate_samples, mean_gains


def bisected_rate(gains: Floats, modes: Modes, weights: Floats) -> float:
    """The paper's equations as they stand, one mode at a time: v by bisection, Lambert's W at each step of it."""
    eta1 = (3 * 0.7) ** (1 / 3) / 100
    eta2 = 0.7 * 3 / 1e-10
    epsilon = 2e6 / (1.1 * np.log(2))
    local = sum(w * eta1 * (h / 1e-26) ** (1 / 3) for h, w, x in zip(gains, weights, modes, strict=True) if not x)
    sending = [(h, w) for h, w, x in zip(gains, weights, modes, strict=True) if x]

    def phi(v: float, w: float) -> float:
        return float(1 / (-1 - 1 / lambertw(-np.exp(-1 - v / (w * epsilon))).real))

    def energy_share(v: float) -> float:
        return 1 / (1 + eta2 * sum(h * h * phi(v, w) for h, w in sending))

    low, high = 0.0, 1e9
    while high - low > 1e-4:
        v = (low + high) / 2
        slope = local * energy_share(v) ** (-2 / 3) / 3 - v
        slope += epsilon * eta2 * sum(w * h * h / (1 + 1 / phi(v, w)) for h, w in sending)
        low, high = (v, high) if slope > 0 else (low, v)
    a = energy_share(v)
    shares = [eta2 * h * h * a * phi(v, w) for h, w in sending]
    sent = sum(
        w * epsilon * share * np.log(1 + eta2 * h * h * a / share)
        for (h, w), share in zip(sending, shares, strict=True)
    )
    assert a + sum(shares) == pytest.approx(1, abs=1e-6)
    return float(local * a ** (1 / 3) + sent)


class TestRate:
    @pytest.mark.parametrize("devices", [1, 2, 5, 10, 30])
    def test_it_equals_the_published_bisection(self, devices: int) -> None:
        rng = np.random.default_rng(devices)
        gains = draw_gains(rng, 12, mean_gains(devices))
        modes = random_modes(rng, 12, 1, devices)[:, 0]
        modes[0], modes[1] = False, True
        weights = alternating_weights(devices)
        wanted = [bisected_rate(h, x, weights) for h, x in zip(gains, modes, strict=True)]
        np.testing.assert_allclose(computation_rate(gains, modes, weights), wanted, rtol=1e-9)

    def test_weights_of_each_sample_give_what_each_sample_gives_alone(self) -> None:
        rng = np.random.default_rng(3)
        gains, weights = draw_gains(rng, 9, mean_gains(6)), rng.uniform(0.2, 4, (9, 6))
        modes = random_modes(rng, 9, 1, 6)[:, 0]
        alone = [computation_rate(h, x, w) for h, x, w in zip(gains, modes, weights, strict=True)]
        np.testing.assert_allclose(computation_rate(gains, modes, weights), alone, rtol=1e-12)

    def test_a_strong_channel_is_solved_too(self) -> None:
        # Where Newton's steps leave the interval that holds the root.
        gains = np.array([[5.6e-5, 7e-7, 3.7e-6, 2e-6, 3.3e-6, 1.4e-8], [1e-2, 1e-9, 1e-3, 1e-5, 1e-8, 1e-2]])
        weights = np.array([1.0, 1.5, 0.5, 3.0, 1.0, 1.0])
        for modes in ([1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1]):
            offloads = np.array(modes, np.bool_)
            wanted = [bisected_rate(h, offloads, weights) for h in gains]
            np.testing.assert_allclose(computation_rate(gains, offloads, weights), wanted, rtol=1e-7)

    @given(st.floats(-12, 2.8))
    def test_the_logarithm_of_the_snr_solves_its_equation(self, exponent: float) -> None:
        u = 10**exponent
        t = float(log_one_plus_snr(np.array(u)))
        assert t + np.expm1(-t) == pytest.approx(u, rel=1e-8)

    @given(st.integers(0, 2**32 - 1), st.integers(2, 12))
    def test_no_allocation_of_the_frame_is_better(self, seed: int, devices: int) -> None:
        rng = np.random.default_rng(seed)
        gains, weights = draw_gains(rng, 1, mean_gains(devices))[0], rng.uniform(0.5, 2, devices)
        modes = rng.random(devices) < 0.5
        shares = rng.dirichlet(np.ones(1 + modes.sum()))
        a, tau = shares[0], np.maximum(shares[1:], 1e-12)
        local = (weights * (0.7 * 3) ** (1 / 3) / 100 * (gains / 1e-26) ** (1 / 3))[~modes].sum() * a ** (1 / 3)
        snr = 0.7 * 3 / 1e-10 * gains[modes] ** 2 * a / tau
        sent = (weights[modes] * 2e6 / (1.1 * np.log(2)) * tau * np.log1p(snr)).sum()
        assert computation_rate(gains, modes, weights) >= (local + sent) * (1 - 1e-9)

    @given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
    def test_it_follows_the_devices_order_and_the_weights_scale(self, seed: int, scale: float) -> None:
        rng = np.random.default_rng(seed)
        gains, weights = draw_gains(rng, 1, mean_gains(7))[0], rng.uniform(0.5, 2, 7)
        modes, order = rng.random(7) < 0.5, rng.permutation(7)
        rate = float(computation_rate(gains, modes, weights))
        assert computation_rate(gains[order], modes[order], weights[order]) == pytest.approx(rate, rel=1e-11)
        assert computation_rate(gains, modes, weights * scale) == pytest.approx(rate * scale, rel=1e-9)

    def test_shapes_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="the last axis of each is the devices"):
            computation_rate(np.ones((4, 3)), np.zeros((4, 2), np.bool_), np.ones(3))
        with pytest.raises(SettingsError, match="at least one device"):
            computation_rate(np.ones((4, 0)), np.zeros((4, 0), np.bool_), np.ones(0))


class TestOptimum:
    @pytest.mark.parametrize("weights", [alternating_weights(8), np.array([0.3, 2, 1, 1, 5, 0.7, 1.1, 0.9])])
    @pytest.mark.parametrize("spread", ["published", "wide"])
    def test_it_is_what_evaluating_every_mode_finds(self, weights: Floats, spread: str) -> None:
        rng = np.random.default_rng(8)
        gains = draw_gains(rng, 60, mean_gains(8)) if spread == "published" else 10 ** rng.uniform(-8, -3, (60, 8))
        every = np.array(list(itertools.product([False, True], repeat=8)))
        rates = computation_rate(gains[:, None], every, weights)
        modes, optimum = best_modes(gains, weights)
        np.testing.assert_allclose(optimum, rates.max(1), rtol=1e-12)
        np.testing.assert_allclose(computation_rate(gains, modes, weights), optimum, rtol=1e-12)
        # Thresholds alone miss it somewhere: the bound is not what finds it by chance.
        assert (pick(gains, weights, threshold_modes(gains, weights))[1] < optimum * (1 - 1e-6)).any()

    def test_more_devices_than_are_enumerated_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="for 1 to 14 devices; got 15"):
            all_modes(15)


class TestRules:
    def test_thresholds_offload_the_strongest_by_gain_times_root_of_weight(self) -> None:
        modes = threshold_modes(np.array([3.0, 2.9, 1.0]), np.array([1.0, 1.5, 1.0]))
        assert modes.astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]]

    def test_order_preserving_candidates_are_the_papers(self) -> None:
        # The paper's example of equation 9: probabilities 0.2, 0.4, 0.7, 0.9.
        probabilities = np.array([0.2, 0.4, 0.7, 0.9])
        modes = order_preserving(np.log(probabilities / (1 - probabilities)), 4)
        assert modes.astype(int).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]

    @given(st.lists(st.floats(-9, 9), min_size=1, max_size=9, unique=True))
    def test_candidates_preserve_the_order_and_begin_with_fewer_ones(self, values: list[float]) -> None:
        scores = np.array(values)
        every = order_preserving(scores, len(values) + 1)
        for count in range(1, len(values) + 1):
            assert (order_preserving(scores, count) == every[:count]).all()
        for mode in every:
            assert not mode.any() or mode.all() or scores[mode].min() > scores[~mode].max()

    @pytest.mark.parametrize("count", [0, 5])
    def test_a_number_of_candidates_that_scores_cannot_give_is_refused(self, count: int) -> None:
        with pytest.raises(SettingsError, match="1 to 4 for 3 devices"):
            order_preserving(np.zeros(3), count)

    def test_coordinate_descent_ends_where_no_single_change_helps(self) -> None:
        samples = generate_samples(40, 7, seed=5)
        start = random_modes(np.random.default_rng(1), 40, 1, 7)[:, 0]
        modes, rates, evaluations = coordinate_descent(samples.gains, samples.weights, start)
        neighbours = modes[:, None] ^ np.eye(7, dtype=np.bool_)
        assert (computation_rate(samples.gains[:, None], neighbours, samples.weights) <= rates[:, None]).all()
        np.testing.assert_allclose(computation_rate(samples.gains, modes, samples.weights), rates, rtol=1e-12)
        assert ((evaluations - 1) % 7 == 0).all()
        assert evaluations.min() >= 8
        assert (rates <= samples.optimum * (1 + 1e-12)).all()
