"""JAX: `lax.scan` over the steps, the projection of all steps before it, everything under `jit`.

Its threads are as many as the processors that the process may run on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.side import Side, parameters
from benchmarks.workloads import Workload

GRADIENTS = {
    "w_ih": "weight_ih_l0",
    "w_hh": "weight_hh_l0",
    "b_ih": "bias_ih_l0",
    "b_hh": "bias_hh_l0",
}


def forward(cell: str, hidden: int, unroll: int) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
    """(weights, x [T, B, I]) -> output [T, B, H] and the final states [B, H]."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from jax import numpy as jnp

    def step(weights: Any, states: tuple[Any, ...], x_gates: Any) -> tuple[Any, ...]:
        h = states[0]
        h_gates = h @ weights["w_hh"].T
        if cell == "rnn_tanh":
            return (jnp.tanh(x_gates + h_gates),)
        if cell == "gru":
            x_r, x_z, x_n = jnp.split(x_gates, 3, axis=-1)
            h_r, h_z, h_n = jnp.split(h_gates, 3, axis=-1)
            r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
            n = jnp.tanh(x_n + r * (h_n + weights["b_hh"][2 * hidden :]))
            return (n + z * (h - n),)
        i, f, g, o = jnp.split(x_gates + h_gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c)

    def layer(weights: Any, x: Any) -> tuple[Any, tuple[Any, ...]]:
        bias = weights["b_ih"] + weights["b_hh"]
        if cell == "gru":  # the bias of the new gate's product stands behind the reset gate
            bias = bias.at[2 * hidden :].set(weights["b_ih"][2 * hidden :])
        zero = jnp.zeros((x.shape[1], hidden), x.dtype)
        states = (zero, zero) if cell == "lstm" else (zero,)

        def scanned(states: tuple[Any, ...], x_gates: Any) -> tuple[tuple[Any, ...], Any]:
            states = step(weights, states, x_gates)
            return states, states[0]

        states, output = jax.lax.scan(scanned, states, x @ weights["w_ih"].T + bias, unroll=unroll)
        return output, states

    return layer


def jax_scan(workload: Workload, name: str, unroll: int = 1) -> Side:
    layer = forward(workload.cell, workload.problem.H, unroll)
    import jax
    from jax import numpy as jnp

    weights = {key: jnp.asarray(value.numpy()) for key, value in parameters(workload).items()}
    assert isinstance(workload.x, Tensor)
    x, grad_output = jnp.asarray(workload.x.numpy()), jnp.asarray(workload.grad_output.numpy())

    def with_gradients(weights: Any, x: Any, grad_output: Any) -> tuple[Any, Any, Any]:
        output, backward, states = jax.vjp(lambda w: layer(w, x), weights, has_aux=True)
        return output, states, backward(grad_output)[0]

    training = name == "training"
    compiled = jax.jit(with_gradients if training else layer)
    arguments = (weights, x, grad_output) if training else (weights, x)

    def run() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def values() -> dict[str, Tensor]:
        output, states, *grads = run()
        named = {"output": output}
        named |= {key: state[None] for key, state in zip(("h_n", "c_n"), states, strict=False)}
        for grad in grads:
            named |= {f"grad of {GRADIENTS[key]}": value for key, value in grad.items()}
        return {key: torch.tensor(jax.device_get(value)) for key, value in named.items()}

    return Side(run, values)
