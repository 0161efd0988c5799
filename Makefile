# The book's commands. `make` alone lists them.
# Recipes use relative paths and `python -m`, so a clone may lie under any path, spaces included.

PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/ready
# The version that the recorded CPU results were made with; `make lock` keeps it.
TORCH := 2.13.0

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A user's own Jupyter, IPython and matplotlib settings must not change the book's results.
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_CONFIG_DIR := $(CURDIR)/.venv/home/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/.venv/home/jupyter-data
export IPYTHONDIR := $(CURDIR)/.venv/home/ipython
export MPLCONFIGDIR := $(CURDIR)/.venv/home/matplotlib
export PYTHONNOUSERSITE := 1
export PYTHONDONTWRITEBYTECODE :=
unexport PYTHONPATH PYTHONHOME MPLBACKEND JUPYTER_PATH

# The chapters' steps are too small to be worth sharing: two threads are a tenth faster alone, and ten times slower
# beside another busy program, because each waits for the other.
book test run solutions chapter kernels colab oldest newest times: export OMP_NUM_THREADS := 1

# One thread each, and a file on every core, up to four.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile

# A page waits more than it works, so two at a time.
BROWSE := -m pytest -q -n 2 --dist worksteal tests/browser_site.py

# Whose spelling is checked.
SPELLED := *.md *.yml Makefile .github book chapters data seqgan_lib tests

.PHONY: help book test site run solutions sync chapter address lab bench gpu kernels colab browser oldest newest times figure lock clean

help: ## List the commands
	@echo "SeqGAN Step by Step: make COMMAND"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-11s %s\n", $$1, $$2 }'

book: $(READY) ## Execute every chapter, build the site and print where it is
	@$(PY) book/build.py book

test: $(READY) ## Lint, spelling, unit tests, the chapters' files and outputs, and the site in a browser
	@echo "== 1/5 lint and spelling"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m codespell_lib $(SPELLED)
	@echo "== 2/5 unit tests"
	@$(PY) -m pytest -q $(SIDE_BY_SIDE) --ignore=tests/test_book.py --cov=seqgan_lib --cov-report=term-missing:skip-covered --cov-fail-under=95 tests
	@echo "== 3/5 the book's files: pairs, first cells, alt text, skeleton"
	@$(PY) -m pytest -q tests/test_book.py
	@echo "== 4/5 every chapter is executed and its outputs compared with the stored ones; then its exercises' solutions"
	@$(PY) -m pytest -q $(SIDE_BY_SIDE) --nbval --nbval-cell-timeout=600 -p tests.nbval_chapters --durations=5 chapters
	@echo "== 5/5 the site, opened in a browser where there is one"
	@$(PY) book/build.py site
	@$(PY) $(BROWSE)

site: $(READY) ## Build the site from the stored outputs, executing nothing
	@$(PY) book/build.py site

run: $(READY) ## Execute chapters and store their outputs: make run CHAPTER=02 (all without CHAPTER)
	@$(PY) book/build.py run $(CHAPTER)

solutions: $(READY) ## Execute a chapter and then the solutions of its exercises: make solutions CHAPTER=02 (or all)
	@$(PY) book/build.py solutions $(CHAPTER)

sync: $(READY) ## After editing one of a chapter's .md and .ipynb, update the other
	@$(PY) book/build.py sync

chapter: $(READY) ## Start a chapter from the template: make chapter NAME=attention, or NAME=16_attention
	@$(PY) book/build.py chapter '$(NAME)'

times: $(READY) ## As solutions; then write how long each took into the README's table (CHAPTER=02, or all)
	@$(PY) book/build.py times $(CHAPTER)

figure: $(READY) ## Draw the README's figure again from the recorded runs
	@$(PY) book/result.py

address: $(READY) ## Rewrite the badges and first cells from the repository's address in pyproject.toml
	@$(PY) book/build.py address

lab: $(READY) ## Open JupyterLab on the chapters
	@# JupyterLab keeps the stored players and the quiz dead in notebooks that it was not told to trust.
	@$(PY) -m jupyter trust chapters/*.ipynb > /dev/null
	@# From the clone's root, where jupytext finds its settings.
	@$(PY) -m jupyterlab $$([ "$$(id -u)" = 0 ] && echo --allow-root) --LabApp.default_url=/lab/tree/chapters # root: in a container

bench: $(READY) ## Time the library against the usual loops
	@$(PY) tests/bench.py

# The book's environment where it is there, or the machine's own Python: a rented GPU may have no way to install one.
GPU_PY = $(if $(wildcard $(READY)),$(PY),$(PYTHON))
GPU_SEEDS := 0-2
# How many runs share the GPU, each in a process of its own.
GPU_JOBS := 1
MINUTES := 6

gpu: export PYTHONPATH := .
gpu: ## On a GPU: test, benchmark and run the paper's scale, a part in each call of under ten minutes (MINUTES=6)
	@$(GPU_PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: PyTorch sees no GPU here")'
	@mkdir -p _build
	@test -f _build/gpu-tests.txt || { $(GPU_PY) -m pytest -q -m cuda --ignore=tests/test_book.py tests | tee _build/gpu-tests.part \
	    && mv _build/gpu-tests.part _build/gpu-tests.txt; }
	@test -f _build/gpu-benchmark || { $(GPU_PY) tests/bench.py --device cuda --out data/results/benchmark-cuda.json \
	    && touch _build/gpu-benchmark; }
	@$(GPU_PY) -m seqgan_lib run seqgan-paper mle-paper pg-bleu-paper scheduled-sampling-paper --seeds $(GPU_SEEDS) --jobs $(GPU_JOBS) \
	    --folder data/results --minutes $(MINUTES) --no-tensorboard || { \
	    [ $$? = 75 ] && echo "Saved. 'make gpu' again goes on from there."; }

# A version whose interpreter takes the lock's NumPy, in a folder of its own: nothing else needs it on a CPU.
TRITON := 3.7.1

kernels: $(READY) _build/triton-$(TRITON) ## Test the GPU's kernels on a CPU, in Triton's interpreter
	@CUDA_VISIBLE_DEVICES= PYTHONPATH=_build/triton-$(TRITON) $(PY) -m pytest -q tests/test_kernels.py

_build/triton-$(TRITON): | $(READY)
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --target $@.part triton==$(TRITON)
	@mv $@.part $@

colab: $(READY) ## Play Colab: execute chapters in an environment without the library (CHAPTERS="01 02" or all)
	@$(PY) tests/colab.py $(CHAPTERS)

browser: _build/site/index.html ## Open every page of the site in Chromium without a network (needs chromium)
	@$(PY) $(BROWSE)

_build/site/index.html:
	@$(MAKE) --no-print-directory site

UV := _build/uv/bin/python -m uv pip compile --quiet --cache-dir _build/uv/cache --no-header --no-annotate
# torch itself pins its CUDA packages, and only where a machine takes the CUDA build.
NO_CUDA := grep -vE '^(nvidia-|cuda-|triton=)'
# Not the tests that read the chapters: they need the book's tools, whose versions are the lock's.
READ_CHAPTERS := book evidence project new_chapter planted_bugs recorded_cells
LIBRARY_TESTS := $(filter-out $(READ_CHAPTERS:%=tests/test_%.py), $(wildcard tests/test_*.py))

oldest: ## Run the library's tests with the oldest packages that pyproject.toml allows, beside the same torch
newest: ## Run the library's tests with the newest packages that pyproject.toml allows, beside the same torch
oldest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
oldest newest: _build/uv/ready
	@$(UV) pyproject.toml --extra plot --extra test --resolution $(RESOLUTION) --python-version \
	    $$($(PYTHON) -c 'import platform; print(platform.python_version())') --constraints <(echo torch==$(TORCH)) \
	    | $(NO_CUDA) > _build/$@.txt
	@$(PYTHON) -m venv --clear _build/$@
	@_build/$@/bin/python -m pip install --disable-pip-version-check --quiet -r _build/$@.txt
	@echo "The $@ versions:" $$(grep -E '^(joblib|matplotlib|numpy|pooch|scipy|seaborn|torch|tqdm)=' _build/$@.txt)
	@PYTHONPATH=. _build/$@/bin/python -m pytest -q $(SIDE_BY_SIDE) $(LIBRARY_TESTS)

lock: _build/uv/ready ## Refresh requirements.lock to the newest versions that pyproject.toml allows
	@$(UV) pyproject.toml --universal --python-version 3.10 --upgrade --all-extras --constraints <(echo torch==$(TORCH)) \
	    --output-file _build/lock.txt
	@{ echo "# Made by 'make lock' from pyproject.toml; installed by 'make book' and 'make test'."; \
	   $(NO_CUDA) _build/lock.txt; } > requirements.lock
	@echo "requirements.lock: $$(grep -c == requirements.lock) packages"

_build/uv/ready:
	@$(PYTHON) -m venv _build/uv
	@_build/uv/bin/python -m pip install --disable-pip-version-check --quiet uv
	@touch $@

clean: ## Remove the environment and everything built
	rm -rf .venv _build

# The environment. The stamp is written last, so an interrupted installation is taken up again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "This book needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
	    echo "Install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv) or name it: make PYTHON=python3.12 ..."; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Setting up .venv: $$(grep -c == requirements.lock) packages from requirements.lock, once."
	@echo "About 1.8 GB on disk with the CPU build of PyTorch; on Linux with CUDA several GB more."
	@echo "A few minutes; the large ones are named as they come:"
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@set -o pipefail; PYTHONUNBUFFERED=1 $(PY) -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock \
	    | sed -u -n -E 's/^ *(Downloading|Using cached) (.* \(([0-9]{2,}[.0-9]* M|[.0-9]+ G)B\))$$/  \2/p; s/^Installing.*/  now installing, a minute or two.../p'
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable .
	@$(PY) -c 'import matplotlib.font_manager' # builds the font cache now, not inside a chapter
	@touch $(READY)
