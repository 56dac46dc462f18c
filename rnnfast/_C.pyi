# ruff: noqa: N999
from typing import TypedDict

class CellFacts(TypedDict):
    name: str
    gates: int
    states: int
    reserve: int

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
    vector_width: int

def build_info() -> BuildInfo: ...
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
) -> Plan: ...
