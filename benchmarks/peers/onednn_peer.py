"""oneDNN's own RNN primitives: `vanilla_rnn`, `lbr_gru`, `lstm`, through onednn.cpp.

The library is the one beside this Python, from the package `onednn-devel-cpu-gomp`, built for the
OpenMP that torch has, so that both use the same threads. ONEDNN_ROOT names the folder (`include`,
`lib`) of another one that runs in its place: two in one process share what they must not.
Its backward pass always computes the gradient of x as well, which the others are not asked for:
that is how the primitive is made, and part of its time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import native
from benchmarks.peers.side import Side, Unavailable, parameters, reorder_gates
from benchmarks.workloads import Workload

CELLS = {"rnn_tanh": (0, (0,)), "gru": (1, (1, 0, 2)), "lstm": (2, (0, 1, 2, 3))}
"""Cell -> its number in onednn.cpp, where oneDNN's gates stand in torch.nn's order."""

DST_LAYER, DST_ITER, DST_ITER_C = 17, 18, 19
DIFF_WEIGHTS_LAYER, DIFF_WEIGHTS_ITER, DIFF_BIAS = 161, 162, 169
"""`DNNL_ARG_*`."""


class Problem(ctypes.Structure):
    """As in onednn.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("cell", "training", "bfloat16", "T", "B", "I", "H")),
        *((name, ctypes.c_void_p) for name in ("x", "w_ih", "w_hh", "bias", "grad_output")),
    ]


@cache
def library() -> ctypes.CDLL:
    """onednn.cpp, compiled. Raises Unavailable where there is no oneDNN to link with."""
    root = Path(os.environ.get("ONEDNN_ROOT", sys.prefix)).resolve()
    lib = str(root / "lib")
    # Of the libraries that oneDNN needs, too: what ld has called an old tag.
    found = f"-Wl,--disable-new-dtags,-rpath,{lib}"
    flags = (f"-I{root / 'include'}", f"-L{lib}", "-ldnnl", found)
    try:
        made = native.load("onednn.cpp", flags)
    except OSError as error:
        raise Unavailable(str(error)) from error
    made.rnn_prepare.restype = ctypes.c_void_p
    made.rnn_error.restype = ctypes.c_char_p
    return made


def another() -> bool:
    """Whether it is the one that ONEDNN_ROOT names."""
    return "ONEDNN_ROOT" in os.environ


def version() -> str:
    """For example 3.2.0."""
    number = library().rnn_version()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class Layer:
    """A prepared layer of onednn.cpp, with the tensors that it reads."""

    def __init__(self, workload: Workload, training: bool) -> None:
        self.library, self.workload, self.training = library(), workload, training
        number, order = CELLS[workload.cell]
        assert isinstance(workload.x, Tensor)
        given = {key: reorder_gates(value, order) for key, value in parameters(workload).items()}
        H = workload.problem.H
        bias = given["b_ih"] + given["b_hh"]
        if workload.cell == "gru":  # the new gate has two, one on each side of the reset gate
            bias = torch.cat((bias[: 2 * H], given["b_ih"][2 * H :], given["b_hh"][2 * H :]))
        tensors = (workload.x, given["w_ih"], given["w_hh"], bias, workload.grad_output)
        self.tensors = [tensor.float() for tensor in tensors]
        self.dtype = workload.grad_output.dtype
        p, half = workload.problem, self.dtype == torch.bfloat16
        pointers = (tensor.data_ptr() for tensor in self.tensors)
        problem = Problem(number, training, half, p.T, p.B, p.I, p.H, *pointers)
        self.pointer = self.library.rnn_prepare(ctypes.byref(problem))
        if self.pointer is None:
            raise Unavailable(self.library.rnn_error().decode())
        self.run = partial(self.library.rnn_run, ctypes.c_void_p(self.pointer))

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.library.rnn_free(ctypes.c_void_p(self.pointer))

    def read(self, argument: int, *shape: int) -> Tensor:
        """What the last run left in `argument`, brought to float32 and to the layer's dtype."""
        made = torch.empty(shape)
        pointers = (ctypes.c_void_p(self.pointer), argument, ctypes.c_void_p(made.data_ptr()))
        if not self.library.rnn_read(*pointers):
            raise Unavailable(self.library.rnn_error().decode())
        return made.to(self.dtype)

    def values(self) -> dict[str, Tensor]:
        """Of the first run: the gradients of later ones are sums."""
        p = self.workload.problem
        if not self.run():
            raise Unavailable(self.library.rnn_error().decode())
        result = {"output": self.read(DST_LAYER, p.T, p.B, p.H)}
        result["h_n"] = self.read(DST_ITER, 1, p.B, p.H)
        if self.workload.cell == "lstm":
            result["c_n"] = self.read(DST_ITER_C, 1, p.B, p.H)
        return {**result, **self.gradients()} if self.training else result

    def gradients(self) -> dict[str, Tensor]:
        p, (_, order) = self.workload.problem, CELLS[self.workload.cell]
        rows = len(order) * p.H
        back = tuple(order.index(gate) for gate in range(len(order)))
        bias = self.read(DIFF_BIAS, 4 if self.workload.cell == "gru" else len(order), p.H)
        hidden_bias = bias[[0, 1, 3]] if self.workload.cell == "gru" else bias
        found = {
            "weight_ih_l0": self.read(DIFF_WEIGHTS_LAYER, rows, p.I),
            "weight_hh_l0": self.read(DIFF_WEIGHTS_ITER, rows, p.H),
            "bias_ih_l0": bias[: len(order)].flatten(),
            "bias_hh_l0": hidden_bias.flatten(),
        }
        return {f"grad of {key}": reorder_gates(value, back) for key, value in found.items()}


def onednn(workload: Workload, name: str) -> Side:
    layer = Layer(workload, name == "training")
    return Side(layer.run, layer.values)
