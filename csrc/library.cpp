#include <torch/csrc/stable/library.h>

// The namespace alone: every op brings its own schema fragment (csrc/<op>/<op>_cpu.cpp).
STABLE_TORCH_LIBRARY(lamina, m) { (void)m; }
