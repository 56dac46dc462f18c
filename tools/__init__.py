"""Developers' tools: `python -m tools.cuda_compile`, `python -m tools.gpu_check`."""
