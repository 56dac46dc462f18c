"""What a GPU's primitives cost, of which the kernels are made: `python -m benchmarks.micro`."""
