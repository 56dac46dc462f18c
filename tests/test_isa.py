"""Every instruction set that was built: parity, edges and gradients, each in its own process.

torch chooses by ``ATEN_CPU_CAPABILITY`` at its start, and so do we; left to itself, AVX-512 comes
with products of bfloat16, and those by tiles, where the CPU has them. Catches a library that only
works at one width, and a choice that does not follow torch's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnnfast import _library

ORDER = ("default", "avx2", "avx512")
BEST = _library.INSTRUCTION_SET
BELOW = ORDER[: ORDER.index(BEST)] if BEST in ORDER else ORDER
CORE = [
    "test_functional.py::test_edges_match_torch",
    "test_functional.py::test_any_configuration_matches_torch_in_float32",
    "test_functional.py::test_half_types_are_stored_but_not_computed_in",
    "test_ops.py::test_backward_gives_what_is_needed",
    "test_numerics.py::test_saturated_gates_stay_finite",
    "test_numerics.py::test_nan_and_infinity_pass_as_in_torch",
    "test_bfloat16.py::test_batch_first_and_odd_addresses",
    "test_bfloat16.py::test_nan_and_infinity_stay_in_their_row",
    "test_bfloat16.py::test_a_call_repeats_bit_by_bit_and_changes_nothing",
    "test_isa.py::test_library_follows_torch",
]


def test_library_follows_torch() -> None:
    wanted = os.environ.get("ATEN_CPU_CAPABILITY")
    capability = torch.backends.cpu.get_cpu_capability().lower()
    if wanted is not None:
        assert capability == wanted
    expected = capability if capability in ORDER else "default"
    if expected == "avx512" and wanted is None and torch.cpu._is_avx512_bf16_supported():
        expected = "avx512amx" if _library._C.has_bfloat16_tiles() else "avx512bf16"
    assert expected == _library.INSTRUCTION_SET


@pytest.mark.parametrize("named", ["", "best"])
def test_what_names_no_capability_leaves_the_best(named: str) -> None:
    program = "from rnnfast import _library; print(_library.INSTRUCTION_SET)"
    found = []
    for extra in ({}, {"ATEN_CPU_CAPABILITY": named}):
        environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
        found.append(
            subprocess.check_output(
                [sys.executable, "-W", "ignore", "-c", program],
                env=environment | extra,
                cwd=Path(__file__).parents[1],
                text=True,
                stderr=subprocess.DEVNULL,
            )
        )
    assert found[0] == found[1] != ""


@pytest.mark.parametrize("capability", ORDER)
def test_core_on(capability: str) -> None:
    if capability not in BELOW:
        pytest.skip(f"{capability} is what this process runs, or more than this machine has")
    if _library._find(f"_cpu_{capability}") is None:
        pytest.skip(f"{capability} is not built")
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x"]
    command += ["-k", "not emulator"]
    result = subprocess.run(
        [*command, *(str(folder / test) for test in CORE)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        cwd=folder.parent,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
