"""Benchmarks of rnnfast against torch.nn: `python -m benchmarks --help`, `pytest benchmarks`."""
