"""ONNX Runtime and OpenVINO, on the same ONNX model of one layer. They have no training.

Both keep their input and output tensors from call to call, which spares them copies. ONNX Runtime's
threads spin between calls by default, and so do here: `Budget.settle` lets them fall asleep before
another side is timed. OpenVINO is told to compute in float32: on some processors it would take
bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.side import Side, Unavailable, parameters, reorder_gates
from benchmarks.workloads import Workload

OPERATORS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "rnn_tanh": ("RNN", (0,), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
}
"""Cell -> the operator of ONNX, where its gates stand in torch.nn's order, its attributes."""


def model(workload: Workload) -> bytes:
    """The layer as an ONNX model: `x` [T, B, I] -> `output` [T, 1, B, H], `h_n` (and `c_n`)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    operator, order, attributes = OPERATORS[workload.cell]
    p = workload.problem
    given = {key: reorder_gates(value, order) for key, value in parameters(workload).items()}
    constants = {
        "w": given["w_ih"][None],
        "r": given["w_hh"][None],
        "b": torch.cat((given["b_ih"], given["b_hh"]))[None],
    }
    states = ["h_n", "c_n"] if workload.cell == "lstm" else ["h_n"]
    node = helper.make_node(
        operator, ["x", *constants], ["output", *states], hidden_size=p.H, **attributes
    )
    shapes = {"x": (p.T, p.B, p.I), "output": (p.T, 1, p.B, p.H)}
    infos = {
        name: helper.make_tensor_value_info(
            name, TensorProto.FLOAT, shapes.get(name, (1, p.B, p.H))
        )
        for name in ("x", "output", *states)
    }
    graph = helper.make_graph(
        [node],
        "layer",
        [infos.pop("x")],
        list(infos.values()),
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(made)
    return bytes(made.SerializeToString())


def onnxruntime(workload: Workload, name: str) -> Side:
    _refuse_training(name)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model(workload), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    binding = session.io_binding()
    x = ort.OrtValue.ortvalue_from_numpy(_input(workload).numpy())
    binding.bind_ortvalue_input("x", x)
    for output in session.get_outputs():
        made = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, "float32")
        binding.bind_ortvalue_output(output.name, made)

    def run() -> None:
        session.run_with_iobinding(binding)

    def values() -> dict[str, Tensor]:
        run()
        outputs = map(torch.from_numpy, binding.copy_outputs_to_cpu())
        return _named(workload, dict(zip(names, outputs, strict=True)))

    return Side(run, values)


def openvino(workload: Workload, name: str) -> Side:
    _refuse_training(name)
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(model(workload)),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(_input(workload).numpy(), shared_memory=True))
    names = [output.any_name for output in compiled.outputs]

    def values() -> dict[str, Tensor]:
        request.infer()
        outputs = [torch.from_numpy(request.get_tensor(key).data.copy()) for key in names]
        return _named(workload, dict(zip(names, outputs, strict=True)))

    return Side(request.infer, values)


def _refuse_training(name: str) -> None:
    if name == "training":
        raise Unavailable("no training")


def _input(workload: Workload) -> Tensor:
    assert isinstance(workload.x, Tensor)
    return workload.x


def _named(workload: Workload, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    p = workload.problem
    return {**outputs, "output": outputs["output"].reshape(p.T, p.B, p.H)}
