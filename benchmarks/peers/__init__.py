"""rnnfast beside every other implementation of these layers on a CPU: `make bench-peers`."""
