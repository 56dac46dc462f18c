"""Training with torch.nn and with rnnfast: do the curves lie on each other? docs/convergence.md."""
