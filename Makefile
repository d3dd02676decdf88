# The two commands of a fresh clone are make lab and make test; the work itself is done by the qlab command, which needs no make.

PYTHON ?= python3
QLAB = .venv/bin/qlab
VENV_PYTHON = .venv/bin/python
ifeq ($(OS),Windows_NT)
QLAB = .venv/Scripts/qlab
VENV_PYTHON = .venv/Scripts/python
endif

ifneq ($(filter-out cpu cuda,$(TORCH)),)
$(error TORCH is $(TORCH), and may be cpu or cuda)
endif

.PHONY: help setup setup-test lab lecture demo site test check browser bench zoo notebooks lint pins doctor build grade release tflite-keras clean

help:
	@echo "make lab        open the course in JupyterLab            make lab PORT=8890, make lab ARGS=02"
	@echo "make lecture    show a page as slides, live                make lecture ARGS=02; the first time it installs what that needs"
	@echo "make demo       show a page's live figure alone, large     make demo ARGS=02; without ARGS it lists them"
	@echo "make site       build the course as a website in site/"
	@echo "make test       run all tests, notebooks included        make test ARGS='-k log'"
	@echo "make check      lint and the quick tests, under a minute  make check ARGS=02: that page, its demos and its exercises too"
	@echo "make browser    use every notebook in a real browser     make browser ARGS='02 09'; needs the extra browser and chromium"
	@echo "make setup      make .venv and install the course        make setup PYTHON=python3.12 TORCH=cpu, or TORCH=cuda"
	@echo "make setup-test the same, and what the tests need"
	@echo "make doctor     say what this machine can do, and whether everything is in place"
	@echo "make bench      measure speeds and write the record      make bench ARGS='tokens --renew': a part of it"
	@echo "make zoo        train the networks again                 make zoo ARGS=cnn"
	@echo "make notebooks  execute the notebooks and store their outputs"
	@echo "make build      make exercises/ and the grader's bundles from solutions/"
	@echo "make grade      grade what was handed in                 make grade ARGS='submitted --assignment 02'"
	@echo "make release    make a zip for students                  make release ARGS=students.zip"
	@echo "make tflite-keras  run the source document's TensorFlow Lite code in an environment of its own (1.5 GB), and write its record"
	@echo "make lint       check the code's style"
	@echo "make pins       show that the pins resolve on every Python and platform; make pins ARGS=--write renews them"
	@echo "make clean      remove caches; .venv stays"

test check browser: tests  # first: a students' copy has none, and needs nothing installed to say so
tests:
	@echo "qlab: tests are not part of this copy of the course; they are in the repository that it was made from." >&2; exit 1

setup setup-test:
	@command -v "$(PYTHON)" >/dev/null || { echo "qlab: there is no $(PYTHON) here: install Python 3.11 to 3.14, or name yours, as in make PYTHON=python3.12 lab." >&2; exit 1; }
	@"$(PYTHON)" -m qlab.bootstrap $(if $(filter setup-test,$@),test) $(if $(TORCH),--$(TORCH))

lab: setup
	@$(QLAB) lab $(if $(PORT),--port $(PORT)) $(ARGS)

lecture demo: EXTRA = lecture
site: EXTRA = site
lecture demo site: setup
	@"$(PYTHON)" -m qlab.bootstrap course $(EXTRA)
	@$(QLAB) $@ $(ARGS)

zoo doctor release: setup
	@$(QLAB) $@ $(ARGS)

test check browser bench notebooks lint pins build grade: setup-test
	@$(QLAB) $@ $(ARGS)

tflite-keras: KERAS_PYTHON = $(VENV_PYTHON:.venv/%=.venv-keras/%)
tflite-keras: setup
	@test -x $(KERAS_PYTHON) || "$(PYTHON)" -m venv .venv-keras
	@$(KERAS_PYTHON) -m pip install -q tensorflow-cpu==2.21.0
	@$(VENV_PYTHON) -m qlab.lab.experiments.tflite_keras $(KERAS_PYTHON)

clean:
	@find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@rm -rf build dist .pytest_cache .hypothesis .ruff_cache
