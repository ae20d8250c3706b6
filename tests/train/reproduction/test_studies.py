"""The papers' numbers, and names that studies refer to."""

import itertools

import pytest

from reproduction import studies
from reproduction.variants import BERT, TO_16_2, TO_40_1, TO_MOBILENET, TO_RESNET20


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_names_its_own_arms(name):
    study = studies.STUDIES[name]
    for _, variants in itertools.groupby(
        sorted(study.variants, key=lambda variant: variant.pair), key=lambda variant: variant.pair
    ):
        names = [variant.name for variant in variants]
        assert len(set(names)) == len(names)
    names = {variant.name for variant in study.variants}
    assert {name for claim in study.claims for name in claim[:2]} <= names and study.baseline in names
    assert all(variant.paper is None or 40 < variant.paper < 80 for variant in study.variants)


def test_numbers_of_the_papers():
    """A few of each table, read again from the paper's."""
    found = {
        (name, variant.pair, variant.name): variant.paper
        for name, study in studies.STUDIES.items()
        for variant in study.variants
    }
    assert found["3", TO_RESNET20, "WSL"] == 72.15 and found["3", ("resnet32x4", "resnet8x4"), "CRD"] == 75.51
    assert ("3", TO_40_1, "FSP") not in found and found["4", TO_MOBILENET, "Overhaul"] == 71.33
    assert found["7", TO_16_2, "WSL, 25 % of other samples left out"] == 75.53
    assert found["5", TO_16_2, "WSL, regularization samples left out"] == 75.35
    assert found["8", TO_40_1, "RKD + WSL's weights"] == 73.89 and found["8", TO_40_1, "DKD"] is None
    assert found["9", TO_40_1, "sigmoid, α = 3"] == 73.97 and found["11", BERT, "WSL"] == 76.28
    # Several tables have the same run: their numbers must be the same, where the paper's are.
    assert {
        found["2", TO_16_2, "KD"],
        found["5", TO_16_2, "KD"],
        found["6", TO_16_2, "KD, τ = 4"],
    } == {74.92}
    assert found["10", TO_40_1, "α = 2.25"] == found["3", TO_40_1, "WSL"]
