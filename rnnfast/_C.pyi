# ruff: noqa: N999
from typing import Any, TypedDict

from torch import Tensor, nn
from typing_extensions import NotRequired

class CellFacts(TypedDict):
    name: str
    gates: int
    states: int
    reserve: int
    reads_h: bool

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    openmp: bool

class Plan(TypedDict):
    kernel: str
    split: str
    threads: int
    chunk_steps: int
    panel_groups: int
    block_rows: int
    outer_rows: int
    vector_width: int

class Caches(TypedDict):
    l1: int
    l2: int

class CudaPlan(TypedDict):
    kernel: str
    hidden: NotRequired[int]
    peers: NotRequired[int]
    rows: NotRequired[int]
    tiles: NotRequired[int]
    microseconds: float

def build_info() -> BuildInfo: ...
def has_bfloat16_products() -> bool: ...
def has_bfloat16_tiles() -> bool: ...
def caches() -> Caches: ...
def cells() -> list[CellFacts]: ...
def plan(
    cell: str,
    dtype: str,
    T: int,
    B: int,
    I: int,
    H: int,
    directions: int,
    threads: int,
    uniform: bool = True,
    hand_over: float = 100.0,
    tiles: bool = False,
    l1: int = 32768,
    l2: int = 524288,
) -> Plan: ...
def cuda_kernels() -> list[str]: ...
def cuda_plan(
    cell: str,
    dtype: str,
    T: int,
    B: int,
    H: int,
    directions: int,
    backward: bool,
    tf32: bool,
    arch: int,
    processors: int,
    shared_bytes: int,
    max_cluster: int,
    kernel: str = "auto",
    I: int | None = None,
    resets: bool = False,
) -> list[CudaPlan]: ...
def cell(
    module: nn.RNNCellBase, name: str, input: Any, hx: Any, /
) -> Tensor | tuple[Tensor, Tensor] | None: ...
def layers(
    module: nn.RNNBase, input: Any, batch_sizes: Tensor | None, hx: Any, /
) -> tuple[Tensor, Any] | None: ...
