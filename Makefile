# Every target sets up what it needs: `python3 -m venv` and a package index are enough.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check
RUN := TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python
# Two processes, each of which takes whole files: half the time on two cores.
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile
# What most changes break, in files that start no process and train little.
FAST := $(addprefix tests/,test_architecture.py test_bad_inputs.py test_files.py test_inputs.py test_optimizers.py \
	test_safe_loading.py test_several_teachers.py test_top_k.py test_untrusted.py test_weighting.py \
	analysis/test_calibration.py analysis/test_fidelity.py analysis/test_regularization_sample_rates.py \
	callbacks/test_raise_on_non_finite.py callbacks/test_regularization_samples.py data/test_seeded.py losses/test_golden.py \
	losses/test_logit.py losses/test_misuse.py losses/test_precision.py soft_labels/test_store.py \
	train/test_bad_inputs_of_scripts.py train/reproduction/test_launcher.py training/test_artifacts.py)

.PHONY: help quickstart test test-fast test-slow test-jax test-torch bench faults lint clean

help:
	@echo "make quickstart   teacher, labels, KD and WSL on digits: a table in under three minutes"
	@echo "make test         lint and the default tests (TensorFlow)"
	@echo "make test-fast    lint and a part of them, in two minutes"
	@echo "make test-slow    the longer tests"
	@echo "make test-jax     the default tests on JAX;  make test-torch: on Torch"
	@echo "make faults       attempts to break runs, files and inputs: half an hour or more"
	@echo "make bench        the step against its alternatives: half an hour or more on two cores that do nothing else"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/installed-torch: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt torch
	touch $@

quickstart: $(VENV)/installed
	rm -rf runs/quickstart
	$(RUN) train/quickstart.py --output_dir=runs/quickstart

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	KERAS_BACKEND=tensorflow $(PYTEST)

test-fast: lint
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow and not child" $(FAST)

test-slow: $(VENV)/installed
	KERAS_BACKEND=tensorflow $(RUN) -m pytest -m slow

test-jax: $(VENV)/installed
	KERAS_BACKEND=jax $(PYTEST)

test-torch: $(VENV)/installed-torch
	KERAS_BACKEND=torch $(PYTEST)

# BENCH="--only=step,kd --rounds=3" measures less.
bench: $(VENV)/installed-torch
	KERAS_BACKEND=$${KERAS_BACKEND:-tensorflow} $(RUN) train/benchmark.py --suite=speed $(BENCH)

# FAULTS="--only=disks,sigterm" makes some attempts alone.
faults: $(VENV)/installed
	KERAS_BACKEND=tensorflow $(RUN) train/benchmark.py --suite=faults --output_dir=runs/faults $(FAULTS)

clean:
	rm -rf $(VENV) runs build dist *.egg-info
