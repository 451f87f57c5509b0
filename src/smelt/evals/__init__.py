"""Benchmarks and statistics. Sees a model only through the Sampler protocol: ours, or any URL."""
