"""What the fake kernels of all ops share."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

# This module may be imported again, after a `del sys.modules[...]`.
register_fake = functools.partial(torch.library.register_fake, allow_override=True)


def check_devices(
    op: str, x: Tensor, batch_sizes: Tensor | None, others: Sequence[Tensor | None]
) -> None:
    """Tensors of the meta device among others: the dispatcher brings such a call here."""
    for t in others:
        if t is not None and t.device != x.device:
            raise RuntimeError(
                f"{op}: all tensors must be on the device of x, {x.device}, got {t.device}"
            )
    if batch_sizes is None or (x.dim() == 3 and batch_sizes.device == x.device):
        return
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"{op}: batch_sizes must be on the CPU, got {batch_sizes.device}")
