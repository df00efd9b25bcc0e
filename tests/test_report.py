"""What a summary says in numbers and words."""

import numpy as np
import pytest

from enkg_ref.run import metrics, report


@pytest.mark.parametrize("J", [2, 5, 9, 16, 33])
def test_that_a_calibrated_ensemble_of_any_size_is_shown_as_calibrated(J):
    rng, points = np.random.default_rng(J), 60_000
    found = metrics.calibration(rng.standard_normal((J, points)), rng.standard_normal(points))
    nominal, covered = np.array(found["coverage"]).T
    assert np.all(np.diff(nominal) > 0) and len(nominal) >= min(J // 2, 5)
    assert np.all(np.abs(covered - nominal) < 4.5 * np.sqrt(nominal * (1 - nominal) / points))
    assert abs(found["interval"][0] - 0.9) <= 1.01 / (J + 1) or found["interval"][0] == (J - 1) / (J + 1)
    ranks = found["rank_histogram"]
    assert np.all(np.abs(ranks - 1) < 4.5 * np.sqrt(len(ranks) / points)) and len(ranks) == min(16, J + 1)
    assert found["ssr"] == pytest.approx(1.0, abs=0.03)


def test_that_ensembles_are_pooled_by_how_well_they_fit():
    rng = np.random.default_rng(0)
    good, alike, bad = (rng.normal(mean, 2.0, 400) for mean in (20.0, 20.5, 60.0))
    weights = metrics.weights_by_misfit([good, alike, bad])
    middle = np.median(good)
    scatter = 1.48 * np.median(np.abs(good - middle))
    assert weights[1] / weights[0] == pytest.approx(np.exp(-0.5 * ((np.median(alike) - middle) / scatter) ** 2))
    assert weights.sum() == pytest.approx(1) and weights[2] < 1e-12
    # a non-finite misfit is left out; an ensemble without a finite one counts for nothing, unless none has one
    holes, none = np.append(good, [np.nan, np.inf]), np.full(5, np.nan)
    whole = metrics.weights_by_misfit([good, alike])
    assert metrics.weights_by_misfit([holes, alike, none]) == pytest.approx([*whole, 0])
    assert metrics.weights_by_misfit([none, none]).tolist() == [0.5, 0.5]
    assert metrics.weights_by_misfit([holes]).tolist() == [1.0]
    assert metrics.weights_by_misfit([np.append(good, 1e12), alike]) == pytest.approx(whole, abs=0.05)
    assert metrics.resampled(np.full(7, 1 / 7)).tolist() == list(range(7))
    shares = np.array([0.5, 0.25, 0.25, 0.0])
    assert metrics.resampled(shares).tolist() == [0, 0, 1, 2]
    # two ensembles with means 1 and 3 of norm 2 in the middle are a distance 2 apart
    ensemble = np.array([[0.0], [2.0], [2.0], [4.0]])
    assert metrics.disagreement(ensemble, np.array([0, 0, 1, 1])) == pytest.approx(1.0)
    # and the standard deviation of each is 1
    assert metrics.separation(ensemble, np.array([0, 0, 1, 1])) == pytest.approx(2.0)
    J, d = 50, 4000
    alike, index = rng.standard_normal((2 * J, d)), np.repeat([0, 1], J)
    # the mean square is (2/J)/(1 - 1/J), its relative error (2/d)^1/2
    assert metrics.separation(alike, index) ** 2 == pytest.approx(2 / (J - 1), rel=4 * np.sqrt(2 / d))


def test_that_a_summary_shows_the_range_over_the_ensembles_only_where_there_is_one():
    ledger = {"wall": {"total": 1.0}, "fwd_total": 1, "fwd_seq": 1, "failed_fwd": 0, "den_total": 1, "den_seq": 1}
    summary = {"problem": "p", "method": "enkg", "ensembles": 2, "config": {}, "prior": "g", "seed": 0, "seconds": 1.0,
               "metrics": {"same": 1.0, "other": 2.0, "none": 3.0}, "ledger": ledger,
               "metrics_per_ensemble": [{"same": 1.0, "other": 1.5}, {"same": 1.0 + 1e-9, "other": 2.5}]}
    same, other, none = (line.split() for line in report.text(summary).splitlines()[1:4])
    assert same == ["same", "1"] and none == ["none", "3"]
    assert other == ["other", "2", "(1.5", "..", "2.5", "over", "the", "ensembles)"]


def test_that_errors_come_first_and_skipped_updates_are_told():
    ledger = {"wall": {"total": 1.0}, "fwd_total": 1, "fwd_seq": 1, "failed_fwd": 0, "den_total": 1, "den_seq": 1}
    metrics = {"relative_l2_of_particles": 0.4567, "relative_l2_of_mean": 0.3, "relative_l2_prior_sample": 1.4}
    summary = {"problem": "p", "method": "enkg", "ensembles": 1, "config": {}, "prior": "g", "seed": 0, "seconds": 1.0,
               "metrics": metrics, "metrics_per_ensemble": [metrics], "ledger": ledger, "skipped_updates": 4,
               "trust": {"trust": [0.5]}, "spread": "spread.", "notes": "notes."}
    assert report.caption(summary)[0] == ("M2: relative L2 error of the ensemble mean 0.3; M1: relative L2 error of "
                                          "the particles, averaged 0.457")
    first, second, third = report.text(summary).splitlines()[1:4]
    assert "M1" in first and "M2" in second and "root mean square" in third
    assert "updates skipped                  4 " in report.text(summary)
    assert "skipped" not in report.text({**summary, "skipped_updates": 0})
