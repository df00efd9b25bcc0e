"""The verdict on a run: one function of a few numbers, its thresholds against their closed forms."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from enkg_ref.run import verdict
from enkg_ref.run.verdict import Evidence, judge

GOOD = Evidence(size=50, particles=64, mean=0.8, typical=1.0, best=0.7, earlier=0.9, spread=10.0, resolved=12.0)


def test_that_the_largest_misfit_of_fitted_data_is_the_quantile_of_chi_squared_or_what_is_forgiven():
    for m in (1, 3, 12, 40, 2000):
        quantile = stats.chi2.isf(verdict.RARE, m) / m
        assert verdict.allowed(m) == pytest.approx(max(quantile, verdict.FIT_FACTOR), rel=1e-6)
        assert verdict.allowed(m, assumed=True) == pytest.approx(
            max(quantile, verdict.FIT_FACTOR) * verdict.ASSUMED_FACTOR / verdict.FIT_FACTOR, rel=1e-6)
        assert verdict.chance(1.3, m) == pytest.approx(stats.chi2.sf(1.3 * m, m))


@pytest.mark.parametrize("change, kind, words", [
    ({}, verdict.FITTED, ""),
    ({"failed": 0.3}, verdict.FAILURES, "30% of the forward calls"),
    ({"mean": None, "typical": None, "lost": 1.0}, verdict.FAILURES, "100% of the last predictions"),
    ({"mean": 20.0, "typical": 20.0, "best": 0.02, "spread": 0.01}, verdict.NOT_FITTED, "0.02 was reached on the way"),
    ({"mean": 20.0, "typical": 20.0, "best": 20.0, "spread": 0.01}, verdict.NOT_FITTED, "collapsed before"),
    ({"mean": 20.0, "typical": 20.0, "best": 20.0, "earlier": 20.0, "budget": 30.0}, verdict.NOT_FITTED, "collapsed"),
    ({"mean": 9.0, "typical": 99.0, "best": 9.0, "earlier": 9.0, "spread": 80.0}, verdict.NOT_FITTED, "still differ"),
    ({"mean": 9.0, "typical": 10.0, "best": 9.0, "earlier": 30.0}, verdict.NOT_FITTED, "still falling"),
    ({"mean": 9.0, "typical": 9.2, "best": 9.0, "earlier": 9.0}, verdict.UNEXPLAINED, "misfit per datum 9, expected 1"),
    ({"mean": 0.1, "typical": 0.2}, verdict.OVER_FITTED, "misfit per datum 0.2"),
    ({"mean": 0.1, "typical": 0.2, "assumed": True}, verdict.FITTED, ""),
    ({"mean": 9.0, "typical": 9.2, "assumed": True}, verdict.FITTED, ""),
    ({"spread": 0.5}, verdict.DOUBTFUL, "collapsed"),
    ({"typical": 8.0}, verdict.DOUBTFUL, "the particles do not"),
    ({"separation": 1.4}, verdict.DOUBTFUL, "further apart"),
    ({"kappa": 5.0}, verdict.DOUBTFUL, "surprised"),
    ({"particles": 1, "spread": 0.0}, verdict.DOUBTFUL, "one chain has no spread"),
])
def test_that_each_way_to_fail_has_its_verdict_and_something_to_try(change, kind, words):
    found = judge(dataclasses.replace(GOOD, **change))
    assert found.kind == kind and words in found.why
    assert bool(found.advice) == (kind != verdict.FITTED) and str(found).startswith(kind) and "\n" not in str(found)


def test_that_few_data_are_not_called_over_fitted_by_chance():
    """Three data have a misfit below 0.5 a datum in one case of three."""
    few = Evidence(size=3, particles=64, mean=0.1, typical=0.3, best=0.1, spread=2.5, resolved=2.9)
    assert judge(few).kind == verdict.FITTED


@pytest.mark.parametrize("m, d", [(3, 20), (40, 20), (300, 20)])
def test_that_exact_posterior_ensembles_of_linear_problems_are_called_good(m, d):
    """y = H x + e, x ~ N(0, 1): 60 posteriors sampled exactly; at most 5 % may carry a warning."""
    rng, warned = np.random.default_rng(m), 0
    for _ in range(60):
        H, noise = rng.standard_normal((m, d)) / np.sqrt(d), 0.3
        y = H @ rng.standard_normal(d) + noise * rng.standard_normal(m)
        P = np.linalg.inv(np.eye(d) + H.T @ H / noise**2)
        x = (P @ H.T @ y / noise**2)[None] + rng.standard_normal((64, d)) @ np.linalg.cholesky(P).T
        g, prior = x @ H.T, rng.standard_normal((64, d)) @ H.T
        white = (g - y) / noise
        eigenvalues = np.linalg.eigvalsh(np.cov(prior.T / noise, bias=True))
        evidence = Evidence(
            m, 64, mean=float(np.mean(white.mean(axis=0) ** 2)), typical=float(np.median(np.mean(white**2, axis=1))),
            best=None, spread=float(np.sum(np.var(g / noise, axis=0))),
            resolved=float(np.sum(eigenvalues / (1 + eigenvalues))))
        warned += judge(evidence).kind != verdict.FITTED
    assert warned <= 3


@pytest.mark.parametrize("shrink, wrong", [(0.05, 0.0), (1.0, 4.0)])
def test_that_collapsed_ensembles_and_wrong_noise_are_warned_of(shrink, wrong):
    """The spread shrunk to a twentieth, or data with five times the noise that is stated: 95 % are warned of."""
    rng, warned, m, d, noise = np.random.default_rng(7), 0, 40, 20, 0.3
    for _ in range(60):
        H = rng.standard_normal((m, d)) / np.sqrt(d)
        y = H @ rng.standard_normal(d) + (1 + wrong) * noise * rng.standard_normal(m)
        P = np.linalg.inv(np.eye(d) + H.T @ H / noise**2)
        x = (P @ H.T @ y / noise**2)[None] + shrink * rng.standard_normal((64, d)) @ np.linalg.cholesky(P).T
        g = x @ H.T
        white = (g - y) / noise
        warned += judge(Evidence(
            m, 64, mean=float(np.mean(white.mean(axis=0) ** 2)), typical=float(np.median(np.mean(white**2, axis=1))),
            spread=float(np.sum(np.var(g / noise, axis=0))), resolved=15.0)).kind != verdict.FITTED
    assert warned >= 57
