"""rnnfast, rnnfast after `freeze`, torch.nn, and torch.nn under torch.compile.

torch.compile breaks its graph at torch.nn's recurrent layers: what is measured is torch.nn behind
it.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from benchmarks.peers.side import Side, Unavailable
from benchmarks.workloads import Workload, make_pass, values
from rnnfast import freeze


def rnnfast(workload: Workload, name: str) -> Side:
    return _side(workload, workload.candidate, name)


def rnnfast_frozen(workload: Workload, name: str) -> Side:
    if name != "inference":
        raise Unavailable("freezing is for inference")
    return _side(workload, freeze(copy.deepcopy(workload.candidate)), name)


def torch_nn(workload: Workload, name: str) -> Side:
    return _side(workload, workload.baseline, name)


def torch_compile(workload: Workload, name: str) -> Side:
    torch._dynamo.reset()  # else it gives up after some layers
    layer = copy.deepcopy(workload.baseline)
    layer.compile()
    return _side(workload, layer, name)


def _side(workload: Workload, layer: nn.Module, name: str) -> Side:
    return Side(
        make_pass(workload, layer, name),
        lambda: values(layer, workload.x, workload.grad_output, name),
    )
