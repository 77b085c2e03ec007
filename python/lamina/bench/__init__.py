"""Benchmarks of every op against what a user could run instead; see docs/benchmarking.md."""
