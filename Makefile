# `make demo`, `make test` and `make check` make their own environment in .venv; it is installed
# again only when pyproject.toml or the native sources change.
PYTHON ?= python3
# The release that this project is tested with. Where pip should fetch a CPU build, point it to
# PyTorch's own index with PIP_EXTRA_INDEX_URL.
TORCH ?= torch==2.13.0

BIN := .venv/bin
# Processor time that `make fuzz` gives to each target.
SECONDS ?= 600
NATIVE := $(wildcard $(addprefix runtime/native/,*.cpp *.cu *.h operators/*))
PROFILE := samples/profiles/demo-cpu.yaml

.PHONY: demo engines arm64 test check lock release sbom audit faults fuzz clean

.venv/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH) "scikit-build-core>=0.10"
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[export,dev]"
	touch $@

demo: .venv/installed
	$(BIN)/dvt-edge build --profile $(PROFILE)
	$(BIN)/dvt-edge profile --profile $(PROFILE) --duration 3
	$(BIN)/dvt-edge classify --profile $(PROFILE) samples/demo/scenes/test/*/000[01]*.png

# Without a GPU: a portable bundle for Jetson, and TensorRT-RTX engines.
engines: .venv/installed
	$(BIN)/dvt-edge build --profile samples/profiles/jetson-orin.yaml
	$(BIN)/dvt-edge build --profile samples/profiles/rtx.yaml
	$(BIN)/dvt-edge inspect out/rtx

# On 64-bit Arm, emulated. Needs root, and Debian's qemu-user-static and debootstrap.
arm64: .venv/installed
	$(BIN)/dvt-edge build --profile $(PROFILE)
	nice $(BIN)/python scripts/arm64.py

# The quick ones, side by side; `make check` runs all.
test: .venv/installed
	$(BIN)/pytest -n auto -m "not slow"

# All that reads files, messages and addresses of strangers; two hours. A short run is in `make test`.
fuzz: .venv/installed
	$(BIN)/pip install --quiet "atheris>=3"
	nice $(BIN)/python -m fuzz --seconds $(SECONDS)

check: .venv/installed build/typing/.made
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p dvt_edge -p tests
	cmake -S . -B build/werror -DDVT_EDGE_WERROR=ON >/dev/null
	cmake --build build/werror
	$(BIN)/pytest -n auto

# TensorRT's stubs. In .venv they would look like an installed TensorRT, and five of their lines are
# not Python.
build/typing/.made: .venv/installed
	$(BIN)/pip install --quiet --upgrade --no-deps --target build/typing "tensorrt-stubs==10.13.0.35.1"
	sed -i -e 's/ in: list/ in_: list/' -e 's/, channel_axis: int)/, channel_axis: int = ...)/' \
		build/typing/tensorrt_bindings/tensorrt.pyi
	touch $@

# Builds killed at 200 random moments: half an hour.
faults: .venv/installed
	nice $(BIN)/python scripts/kill_builds.py --times 200

# Tools of a release, apart from the environment that is tested.
TOOLS := build/tools
$(TOOLS)/.made:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet "build>=1.2" "cyclonedx-bom>=7" "pip-audit>=2.9" "pip-licenses>=5" "uv>=0.8"
	touch $@

# What CI is known to work with, with hashes: renew it after a change of pyproject.toml.
lock: $(TOOLS)/.made
	echo "$(TORCH)" | $(TOOLS)/bin/uv pip compile - pyproject.toml --quiet --upgrade --universal \
		--python-version 3.10 --extra export --extra dev --extra signing --generate-hashes \
		--custom-compile-command "make lock" --output-file requirements/ci.txt

# Source distribution, the wheel made of it, and what that wheel does alone.
release: $(TOOLS)/.made demo
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist
	$(BIN)/python scripts/check_release.py dist/*.whl
	$(MAKE) sbom

# Of the environment in which that wheel was checked: what somebody who installs it gets.
sbom: $(TOOLS)/.made
	test -d build/wheel-env || { echo "run 'make release' first" >&2; exit 1; }
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file dist/sbom.cdx.json build/wheel-env
	$(TOOLS)/bin/pip-licenses --python build/wheel-env/bin/python --format markdown --with-urls \
		--output-file dist/licences.md

# Known holes in what the lock file names. Needs the network: pip-audit asks a service for each
# package, and fails where one cannot be asked for.
audit: $(TOOLS)/.made
	$(TOOLS)/bin/pip-audit --progress-spinner off --strict --disable-pip --no-deps \
		--requirement requirements/ci.txt

clean:
	rm -rf .venv build out
