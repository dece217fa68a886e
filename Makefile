# make demo   set-up, then the dense-against-sparse comparison on scenes that the project draws itself
# make lint   style, types, and that lower floors of the package know nothing of higher ones
# make sanitize   the kernels' tests against a build with AddressSanitizer and UndefinedBehaviorSanitizer
# make test   set-up with every optional part, then lint, types and tests (MARK="" adds the slow ones;
#             JOBS processes run them, each on one thread and in up to 5 GiB of memory)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1 torchvision==0.29.1
MARK ?= not slow
JOBS ?= 2
OUT ?= outputs/demo
RUN := $(VENV)/bin/python

.PHONY: help demo test lint sanitize setup setup-test clean

help:
	@sed -n 's/^# make/make/p; s/^#  /    /p' Makefile

$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --upgrade pip wheel "setuptools<82" ninja
	$(VENV)/bin/pip install $(TORCH)
	$(VENV)/bin/pip install --no-build-isolation -e ".[spconv]"
	touch $@

# torch-scatter is compiled against the installed torch: some minutes, once. The rest is wheels, those
# of the runtimes that the README compares with too (some seconds), so that its commands can be tested.
$(VENV)/.ready-test: $(VENV)/.ready
	@echo "compiling torch-scatter, which takes some minutes the first time ..."
	$(VENV)/bin/pip install --no-build-isolation -e ".[all,sweep,peers,test]"
	touch $@

setup: $(VENV)/.ready

setup-test: $(VENV)/.ready-test

demo: setup
	@echo; echo "== 1/4  Drawing a data set of road scenes"
	$(RUN) -m sparse_dset.data.synthetic --root $(OUT)/data --train 160 --val 80
	@echo; echo "== 2/4  A minute of further training of the checkpoint that ships with the project"
	rm -rf $(OUT)/train
	$(RUN) scripts/train.py experiment=demo train.output_dir=$(OUT)/train data.root=$(OUT)/data
	@echo; echo "== 3/4  The shipped checkpoint, dense against sparse, over keep ratios, on the same images"
	$(RUN) scripts/benchmark.py checkpoint=sparse_dset/weights/nano_roads.pt data=synthetic data.root=$(OUT)/data \
		output_dir=$(OUT)/benchmark
	@echo; echo "== 4/4  One page that says what pruning saved, where, and at what AP"
	$(RUN) scripts/report.py rows=$(OUT)/benchmark output_dir=$(OUT)/report

lint: setup-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy sparse_dset
	$(VENV)/bin/lint-imports

test: setup-test lint
	$(RUN) -m sparse_dset.doctor
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "$(MARK)" -n $(JOBS) --dist loadgroup --durations=15

# A build of its own, so that the ordinary one stays where it is. PyTorch itself is not instrumented:
# what it keeps until the process ends would be reported as leaks.
SANITIZED := build/sanitized

sanitize: setup-test
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -r setup.py pyproject.toml README.md LICENSE conf csrc sparse_dset tests $(SANITIZED)
	cd $(SANITIZED) && SPARSE_DSET_SANITIZE=1 $(abspath $(RUN)) setup.py -q build_ext --inplace --force
	cd $(SANITIZED) && PYTHONPATH=. ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(abspath $(RUN)) -m pytest -q -s -p no:cacheprovider tests/ops/backends/test_cpu.py tests/ops/backends/test_cpu_refusals.py

clean:
	rm -rf $(VENV) outputs runs build *.egg-info
