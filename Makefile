# Two commands do everything on a machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
SAMPLE := workflows/configs/sample.yaml

.PHONY: demo serve test test-full quick bench lint setup clean
.DEFAULT_GOAL := demo

# What the demo's programs write beside their products lies below .demo/ as well; where its path is too long for the
# sockets of Ray (107 characters), that part stays in the system's folder for temporary files.
TMP := $(CURDIR)/.demo/tmp
HERE := MPLCONFIGDIR=$(TMP) HF_HOME=$(TMP) XDG_CACHE_HOME=$(TMP) $(shell t="$(TMP)"; [ $${#t} -le 38 ] && echo RAY_TMPDIR=$$t)

demo: setup  ## the whole workflow on generated articles: images and captions to a server that answers
	mkdir -p $(TMP)
	$(PY) -m biomedclip_ray.sample .demo/bucket
	$(HERE) $(PY) workflows/biomedclip.py $(SAMPLE)

serve: setup  ## put the demo's model up again and keep it up until Ctrl-C
	mkdir -p $(TMP)
	$(HERE) $(PY) workflows/biomedclip.py $(SAMPLE) --only deploy --hold

# Three processes: one driver cannot be in two Ray clusters, so tests that start clusters of their own need one that is in none.
# The tests that need no Ray run beside those that do: a test waits for processes to start more than it computes.
test: lint  ## lint, types and every test but the long loops of faults
	sh tests/run.sh $(PY)

test-full: lint  ## the long loops too
	sh tests/run.sh $(PY) -m ""

quick: lint  ## lint, types and the tests that need no Ray
	$(PY) -m pytest tests --ignore=tests/cluster --ignore=tests/ray

bench: setup .venv/.benchmarks  ## every benchmark, with what it is compared with installed; a table at the end
	$(PY) benchmarks/bench.py

# Daft wants an older pyarrow than ours, and pubmed_parser brings a package named tests, which hides our own from Ray's workers:
# they have an environment of their own, which falls back on ours for all else. infinity-emb wants an older numpy and
# transformers, which nothing of ours can fall back beside: it and LitServe have a whole environment (5 GB), with our torch. It takes
# images by aiohttp, which none of its extras installs (findings/infinity_images_want_aiohttp.sh).
.venv/.benchmarks: .venv/.installed
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev,benchmark]'
	rm -rf .venv-peers && $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet 'daft==0.7.26' 'pyarrow<26' pubmed_parser==0.5.1
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"), "$(CURDIR)", sep="\n")' \
		> $$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	$(PYTHON) -m venv --clear .venv-infinity
	.venv-infinity/bin/pip install --quiet 'infinity-emb[server,torch,vision]==0.0.78' aiohttp litserve==0.2.19 \
		"torch==$$($(PY) -c 'from importlib.metadata import version; print(version("torch"))')"
	touch $@

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

setup: .venv/.installed  ## the environment, built anew only when its pins change

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into .venv: about 3 minutes and 8 GB, most of it torch"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove the environment, the demo and every cache
	rm -rf .venv .venv-peers .venv-infinity .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
