"""Benchmarks: what a step costs here, beside what it costs elsewhere. `make bench`, see docs/performance.md."""
