"""Benchmarks with exact graders and intervals; sees only the Sampler protocol."""
