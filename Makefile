# demo: the whole way on a small dataset · test: lint, types and the suite · test-all: also what a
# release needs · lint · format · claims: the paper's claims at the demo's size, which takes hours;
# it goes on where it stopped · mutants: which small faults in MODULE its tests do not notice
# Each makes its own virtual environment on first use. PYTHON is the interpreter (3.11–3.14).
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
SEED ?= 0
# The split that scores are reported on; settings are chosen on val.
SPLIT ?= eval
# Further flags of data_prep.scenes, such as --assets=DIR.
SCENES ?=
# Programs of the demo that run at the same time.
JOBS ?= 2
# Of claims: the tables of benchmarks/scores/claims_plan, where they are made, and trainings per row.
TABLES ?= c_registers d_global_token e_mask_ratios a_windows b_frames f_ladder g_aggregations \
	h_tokens i_directions j_negatives k_what_maps_need
CLAIMS ?= runs/claims
SEEDS ?= 3
# Further flags of ablate, such as --dry_run or --config.epochs=1.
ABLATE ?=
CLAIMS_PAGE ?= results/claims.md
# Of mutants: a module, such as training/losses, and how many of ten mutants to try.
MODULE ?=
TENTHS ?= 10
RUN := $(VENV)/bin/python -m
EVAL = --checkpoint=$(DEMO)/train --data=$(DEMO)/data --split=$(SPLIT) --output=$(DEMO)/evals \
	--cache=$(DEMO)/cache
FINETUNE = $(RUN) cavmae_sync_jax.finetune --config=configs/finetune.py:demo \
	--config.seed=$(SEED) --config.data.dir=$(DEMO)/data --config.data.eval_split=$(SPLIT)
PROBE = $(RUN) cavmae_sync_jax.evals.probe --baselines $(EVAL)
# What others wait for comes early, and long ones before short ones.
DEMO_PARTS := $(addprefix demo-,tokens from-scratch finetune segmentation retrieval probe \
	probe-audio probe-visual reconstruction temporal classify)
# JAX's threads in each of them: programs that share all cores take longer.
$(DEMO_PARTS): export NPROC = $(shell echo $$(( $$(nproc) > $(JOBS) ? $$(nproc) / $(JOBS) : 1 )))
export JAX_COMPILATION_CACHE_DIR ?= $(HOME)/.cache/cavmae_sync_jax
# Large pages for what malloc gives: a training on a CPU is faster (results/training_speed.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo $(DEMO_PARTS) claims mutants test test-all lint format

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/testing: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable ".[beam,convert,test]"
	touch $@

$(VENV)/mutating: $(VENV)/testing
	$(VENV)/bin/pip install --quiet --editable ".[mutants]"
	touch $@

demo: $(VENV)/installed
	test ! -e $(DEMO)/data/videos/scenes.json || rm -rf $(DEMO)/train $(DEMO)/evals \
		$(DEMO)/cache $(DEMO)/finetune $(DEMO)/from_scratch
	$(RUN) data_prep.scenes --output=$(DEMO)/data --seed=$(SEED) --overwrite $(SCENES)
	$(RUN) cavmae_sync_jax.train --config=configs/demo.py --config.seed=$(SEED) \
		--config.data.dir=$(DEMO)/data --config.data.eval_split=$(SPLIT) --workdir=$(DEMO)/train
	$(MAKE) --jobs=$(JOBS) --output-sync --no-print-directory $(DEMO_PARTS)
	$(RUN) cavmae_sync_jax.evals.summary $(DEMO)/evals --output=$(DEMO)/results.json \
		--workdir=$(DEMO)/train --report=$(DEMO)/report.html
	@echo "Open $(DEMO)/report.html in a browser. Then try the model on a video of your own:"
	@echo "$(RUN) cavmae_sync_jax.localize VIDEO --checkpoint=$(DEMO)/train --output=$(DEMO)/where"

# What `demo` does with its trained model. One that waits for another finds features in the cache.
demo-classify: demo-finetune demo-from-scratch
	$(RUN) cavmae_sync_jax.evals.classify --checkpoint=$(DEMO)/finetune --data=$(DEMO)/data \
		--split=$(SPLIT) --output=$(DEMO)/evals --from_scratch=$(DEMO)/from_scratch
demo-finetune:
	$(FINETUNE) --config.init_from=$(DEMO)/train --workdir=$(DEMO)/finetune
demo-from-scratch:
	$(FINETUNE) --workdir=$(DEMO)/from_scratch
demo-probe: demo-tokens
	$(PROBE) --config=configs/probe.py:demo
demo-probe-audio demo-probe-visual: demo-probe-%: demo-tokens
	$(PROBE) --config=configs/probe.py:demo,$*
demo-tokens:
	$(RUN) cavmae_sync_jax.evals.tokens --config=configs/probe.py:demo --config.epochs=6 \
		--config.average_from=4 --baselines $(EVAL)
demo-retrieval:
	$(RUN) cavmae_sync_jax.evals.retrieval --baselines $(EVAL)
demo-temporal: demo-retrieval
	$(RUN) cavmae_sync_jax.evals.temporal $(EVAL)
demo-segmentation:
	$(RUN) cavmae_sync_jax.evals.segmentation $(EVAL)
demo-reconstruction:
	$(RUN) cavmae_sync_jax.evals.reconstruction $(EVAL)

# Status 3 says that another process works on a row of the table.
claims: $(VENV)/installed
	test -e $(CLAIMS)/data/summary.json || \
		$(RUN) data_prep.scenes --output=$(CLAIMS)/data --seed=$(SEED) --overwrite $(SCENES)
	for table in $(TABLES); do \
		$(RUN) cavmae_sync_jax.ablate --table=benchmarks/scores/claims_plan/$$table.py --seeds=$(SEEDS) \
			--config=configs/demo.py --config.data.dir=$(CLAIMS)/data --workdir=$(CLAIMS) \
			--split=$(SPLIT) --probe=configs/probe.py:demo $(ABLATE) || test $$? = 3 || exit; \
		$(RUN) benchmarks.scores.claims --workdir=$(CLAIMS) --output=$(CLAIMS_PAGE) || exit; \
	done

mutants: $(VENV)/mutating
	$(RUN) benchmarks.testing.mutants $(MODULE) --tenths=$(TENTHS)

test: lint
	$(RUN) pytest

test-all: lint
	$(RUN) pytest -m ""

lint: $(VENV)/testing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/testing
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
