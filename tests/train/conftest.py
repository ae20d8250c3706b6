"""Fixtures of the tests of scripts."""

import pytest

from keras_wsl.training import runner


def _leave_out_exports(patch):
    patch.setattr(runner.export, "saved_model", lambda *args, **kwargs: None)
    patch.setattr(runner.curves, "plot", lambda *args, **kwargs: None)


@pytest.fixture(scope="module", autouse=True)
def _exports(request):
    """Leave out a run's SavedModel and picture, half the time of so small a run, unless a module has `EXPORTS`."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "EXPORTS", False):
            _leave_out_exports(patch)
        yield


@pytest.fixture
def without_exports(monkeypatch):
    """Leave them out in one test of a module that has `EXPORTS`."""
    _leave_out_exports(monkeypatch)
