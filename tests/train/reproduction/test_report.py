"""Rows of results and of claims."""

from scipy import stats

from reproduction import report, studies


def _result(name, accuracies, pair=("resnet20", "resnet8"), study="5"):
    variant = next(variant for variant in studies.STUDIES[study].variants if variant.name == name)
    rows = {
        seed: {
            "test_accuracy": a / 100,
            "best_accuracy": a / 100 + 0.01,
            "best_epoch": 3,
            "regularization_sample_rate": 0.25,
            "run": f"{name}-1a2b3c-{seed}",
        }
        for seed, a in enumerate(accuracies)
    }
    return report.VariantResult(variant, pair, rows)


def test_a_table_has_both_numbers_and_their_differences():
    lines = [_result("KD", [50.0, 52.0]), _result("WSL", [51.0, 54.0])]
    kd, wsl = report.result_rows(lines, studies.STUDIES["5"])
    assert (kd["paper"], kd["ours, last epoch"], kd["n"], kd["over KD: ours"]) == ("74.92", "51.00 ± 1.41", "2", "")
    assert kd["best epoch"] == "52.00 ± 1.41 (3 ± 0)" and kd["ours - paper"] == "-23.92"
    assert (wsl["over KD: paper"], wsl["over KD: ours"]) == ("+0.86", "+1.50")
    assert wsl["runs"] == "`WSL-1a2b3c-{0,1}`"
    assert "samples, %: paper" not in wsl


def test_counts_are_shown_where_the_paper_has_them():
    lines = [_result("KD, τ = 4", [50.0], study="1"), _result("KD, τ = 4, smoothed teacher", [49.0], study="1")]
    rows = report.result_rows(lines, studies.STUDIES["1"])
    assert [row["samples, %: paper"] for row in rows] == ["35.4", "49.5"] and rows[0]["samples, %: ours"] == "25.0"
    more, better = report.claim_rows(report.evaluate_claims(lines, studies.STUDIES["1"]))
    assert more["paper"] == "+14.13" and more["ours"] == "+0.00" and more["claim"].endswith("regularization samples")
    assert better["ours"] == "+1.00" and better["p, Holm"] == "" and better["verdict"] == "one seed: no test"


def test_claims_are_tested_together():
    kept = "KD, regularization samples left out"
    lines = [_result("KD", [50.0, 51.0, 52.0]), _result(kept, [49.0, 49.8, 51.1]), _result("WSL", [60.0, 61.0, 62.0])]
    (claim,) = report.claim_rows(report.evaluate_claims(lines, studies.STUDIES["5"]))  # The other variants have no run.
    p = stats.ttest_rel([50.0, 51.0, 52.0], [49.0, 49.8, 51.1]).pvalue
    assert claim["p, Holm"] == f"{p:.3f}" and claim["verdict"] == "holds" and claim["paper"] == "+0.33"
