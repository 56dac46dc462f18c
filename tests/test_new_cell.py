"""A cell that torch has not, put in as CONTRIBUTING.md says, runs and trains on every backend.

Catches a cell's facts kept in another place than the two tables, and kernels, plans or Python that
know torch's four cells only.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import twin

pytestmark = [
    pytest.mark.exhaustive,  # compiles for two minutes
    pytest.mark.xdist_group("new_cell"),
    pytest.mark.skipif(
        twin.COMPILER is None or twin.NINJA is None or not (twin.ROOT / "csrc").is_dir(),
        reason="needs a C++ compiler, ninja and the sources",
    ),
]

STRUCT = """\
// Collins et al. 2017 (arXiv 1611.09913): c = tanh(x_c + h_c)   g = sigmoid(x_g + h_g)
// h' = g h + (1 - g) c
struct Ugrnn {
  static constexpr const char* kName = "ugrnn";
  static constexpr int kGates = 2, kStates = 1, kReserve = 2;  // gates and reserve c g
  static constexpr bool kWholeSequence = false;
  static constexpr int kSharedGates = 2;
  static constexpr bool kReadsH = true;
  static constexpr bool kReadsBefore = true, kReadsAfter = false;
  static constexpr bool kEmits = false;

  template <class V>
  static RNNFAST_FN void forward(const V* x, const V* h, V* s, V* q) {
    const V c = tanh(x[0] + h[0]), g = sigmoid(x[1] + h[1]);
    s[0] = fma(g, s[0] - c, c);
    q[0] = c, q[1] = g;
  }
  template <class V>
  static RNNFAST_FN void backward(const V* q, const V* p, const V*, V* ds, V* dx, V* dh) {
    const V c = q[0], g = q[1];
    dx[0] = dh[0] = ds[0] * (V(1) - g) * fma(V(0) - c, c, V(1));
    dx[1] = dh[1] = ds[0] * (p[0] - c) * (g * (V(1) - g));
    ds[0] = ds[0] * g;
  }
};

"""
STEP = '''\
def ugrnn(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Collins et al. 2017, the update gate RNN."""
    c, g = (x_gates + h_gates).chunk(2, -1)
    c, g = torch.tanh(c), torch.sigmoid(g)
    return (c + g * (states[0] - c),)


'''
PLACES = [  # file, where, what is put in front of it
    ("csrc/cells.h", "struct CellFacts {", STRUCT),
    ("csrc/cells.h", ">;\n\ninline constexpr auto& kCells", ", Ugrnn"),
    ("rnnfast/spec.py", "_STEPS: dict", STEP),
    ("rnnfast/spec.py", '"rnn_tanh": rnn_tanh', '"ugrnn": ugrnn, '),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the cell, its CPU kernels built for any CPU into `built`."""
    folder = tmp_path_factory.mktemp("new_cell")
    hidden = shutil.ignore_patterns("*.so", "__pycache__", "_build.py")
    for name in ("csrc", "rnnfast", "tools"):
        shutil.copytree(twin.ROOT / name, folder / name, ignore=hidden)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(twin.ROOT / name, folder)
    for name, where, what in PLACES:
        text = (folder / name).read_text("utf-8")
        assert text.count(where) == 1, (name, where)
        (folder / name).write_text(text.replace(where, what + where), "utf-8")
    settings = {"RNNFAST_CPU": "default", "RNNFAST_CUDA": "0", "RNNFAST_OPTIMIZE": "-O0"}
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "built"]
    run(command, folder, **settings)
    return folder


def run(command: list[str], folder: Path, **settings: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder / "built"), **settings}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_it_trains_on_the_cpu(sources: Path) -> None:
    run([sys.executable, str(Path(__file__).parent / "new_cell.py"), "cpu"], sources)


def test_it_trains_on_a_gpu_step_by_step(sources: Path, tmp_path: Path) -> None:
    """The emulated one; without kernels of whole sequences, which take minutes to compile."""
    csrc = shutil.copytree(sources / "csrc", tmp_path / "csrc")
    of_steps = {csrc / "cuda" / name for name in ("step.cu", "rows.cu")}
    for kernel in set((csrc / "cuda").glob("*.cu")) - of_steps:
        kernel.unlink()
    cells = (csrc / "cells.h").read_text("utf-8")
    (csrc / "cells.h").write_text(cells.replace("kWholeSequence = true", "kWholeSequence = false"))
    library = emulated.build(tmp_path / "built", csrc)
    run([sys.executable, str(Path(__file__).parent / "new_cell.py"), str(library)], sources)
