"""benchmarks/kolmogorov.py: what its table says of kept runs."""


def _row(method, at, noise, item, l2, spread2=1.0, skill2=1.0, status="done"):
    return {"method": method, "budget": 2496, "time": at, "noise": noise, "item": item, "status": status, "l2": l2,
            "crps": 0.1, "chi2": 1.0, "spread2": spread2, "skill2": skill2, "cpu_seconds": 30.0}


def test_that_an_error_of_enkg_r_above_the_best_published_one_is_bold_and_fields_are_counted(load_benchmark):
    rows = [_row("enkg-r", 1, 0.1, 0, 0.05), _row("enkg-r", 1, 0.1, 1, 0.07), _row("enkg-r", 5, 1.0, 0, 0.5),
            _row("eki", 5, 1.0, 0, 0.9)]
    text = load_benchmark("kolmogorov").table(rows)
    ours, theirs = (next(line for line in text.splitlines() if line.startswith(f"| {name}, 2,496 | relative L2"))
                    for name in ("enkg-r", "eki"))
    assert ours.split(" | ")[2:6] == ["0.060 (2)", "-", "-", "**0.500 (1)**"]  # best published: 0.064 and 0.435
    assert "**" not in theirs


def test_that_the_ratio_of_spread_and_skill_is_pooled_and_failed_runs_are_left_out(load_benchmark):
    cell = load_benchmark("kolmogorov").cell
    rows = [_row("enkg-r", 1, 0.1, 0, 0.1, 1.0, 4.0), _row("enkg-r", 1, 0.1, 1, 0.1, 7.0, 4.0),
            {**_row("enkg-r", 1, 0.1, 2, 9.0), "status": "failed"}]
    assert cell(rows, "ssr") == 1.0 and cell(rows, "l2") == 0.1
    assert cell(rows[2:], "l2") is None
