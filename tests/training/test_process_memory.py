"""Memory of this process."""

from keras_wsl.training.process_memory import held_mib, peak_mib


def test_peak_is_at_least_the_current_memory():
    assert 10 < held_mib() <= peak_mib() * 1.01 < 10**6
