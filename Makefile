# Everything a person does with Lamina. `make demo` and `make test` work alone in a fresh clone.

PYTHON ?= python3
VENV ?= .venv
# Plain `torch` brings gigabytes of CUDA packages onto a machine without a GPU; a torch that
# $(PYTHON) already has is used as it is.
TORCH ?= torch==2.13.0
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
BUILD_TOOLS = "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.25" ninja
# Options of the build itself, as -C pairs of pip: make test BUILD="-C cmake.define.LAMINA_CUDA=ON"
BUILD ?=

.PHONY: demo test bench compare limits figures lint format sanitize gpu cuda-check triton-check arm-check wheels clean
.DEFAULT_GOAL := demo

demo: $(VENV)/demo
	$(VENV)/bin/lamina demo $(ARGS)

test: $(VENV)/test
	$(VENV)/bin/python -m pytest $(ARGS)

bench: $(VENV)/demo
	$(VENV)/bin/lamina bench $(ARGS)

# Two versions against each other: make compare ARGS="HEAD~1 linear --shapes '128x*'"
compare: $(VENV)/demo
	$(VENV)/bin/python benchmarks/compare.py $(ARGS)

# How far each pass of an op is from its limit: make limits ARGS="conv2d --shapes '8x64x56²*'"
limits: $(VENV)/demo
	$(VENV)/bin/python benchmarks/limits.py $(ARGS)

# The README's table and picture, from benchmarks/results.
figures: $(VENV)/demo
	$(VENV)/bin/python benchmarks/figures.py

lint: $(VENV)/lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP_FILES)

# AddressSanitizer and UndefinedBehaviorSanitizer over everything that the C++ ops are tested with.
SANITIZED = (cpp or test_first_layers or test_linear or test_threshold or test_im2col or \
  test_dynamic_routing or test_routing_shapes) and not (compile or cuda or triton)
sanitize: $(VENV)/test
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DLAMINA_SANITIZE=ON -DLAMINA_CUDA=OFF \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python \
	  -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir) \
	  -DLAMINA_TORCH=$$($(VENV)/bin/python -c 'import torch; print(*torch.__path__)')
	$(VENV)/bin/cmake --build build/sanitize
	LAMINA_MODULES=build/sanitize LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(VENV)/bin/python -m pytest --capture=sys -k "$(SANITIZED)" $(ARGS)

# On a machine with a GPU: its own python, torch, triton and nvcc, nothing fetched. Compiled for the
# GPU that is there alone, which takes a third of the time.
gpu:
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --no-index --upgrade \
	  --target build/gpu -C cmake.define.LAMINA_CUDA=ON \
	  -C cmake.define.LAMINA_CUDA_ARCHITECTURES=native $(BUILD) .
	PYTHONPATH=build/gpu $(PYTHON) benchmarks/gpu.py $(ARGS)

cuda-check: $(VENV)/test
	$(VENV)/bin/python tests/cuda_report.py $(ARGS)

triton-check: $(VENV)/test
	$(VENV)/bin/python tests/triton_compile.py $(ARGS)

arm-check: $(VENV)/test
	$(VENV)/bin/python tests/arm_compile.py

# Every way to install: wheel, sdist -> wheel, editable, without a compiler, on two torch versions.
wheels: $(VENV)/test
	$(PIP) install --quiet build
	$(VENV)/bin/python tests/install_ways.py $(ARGS)

clean:
	rm -rf build dist out $(VENV)

CPP_FILES = $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

$(VENV)/torch:
	@if $(PYTHON) -c 'import torch' 2>/dev/null; \
	then $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV) && $(PIP) install --quiet "$(TORCH)"; fi
	$(PIP) install --quiet $(BUILD_TOOLS)
	touch $@

$(VENV)/lint: pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $$(sed -n 's/^lint = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

# Built anew, incrementally, whenever something changed that is compiled.
SOURCES := $(shell git ls-files csrc CMakeLists.txt setup.py pyproject.toml)
$(VENV)/demo $(VENV)/test: $(VENV)/%: $(VENV)/torch $(SOURCES)
	$(PIP) install --quiet --no-build-isolation $(BUILD) -e ".[$*]"
	touch $@
