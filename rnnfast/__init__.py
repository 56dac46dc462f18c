"""rnnfast: RNN, GRU and LSTM layers that replace those of torch.nn, from fused kernels.

Write ``rnnfast.GRU`` for ``torch.nn.GRU``, or ``rnnfast.convert(model)``. See the README.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rnnfast import _folder

__path__ = [str(_folder.find(Path(__file__).parent))]
__file__ = str(Path(__path__[0], "__init__.py"))

from rnnfast import functional, ops
from rnnfast.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.convert import convert, revert
from rnnfast.diagnose import explain
from rnnfast.freeze import freeze, unfreeze
from rnnfast.patching import patch, patched, unpatch
from rnnfast.routes import export_fused
from rnnfast.scan import scan

if TYPE_CHECKING:
    from rnnfast._typed import GRU, LSTM, RNN
else:
    from rnnfast.modules import GRU, LSTM, RNN

try:
    __version__ = version("rnnfast")
except PackageNotFoundError:  # built in place, not installed
    __version__ = "unknown"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "convert",
    "explain",
    "export_fused",
    "freeze",
    "functional",
    "ops",
    "patch",
    "patched",
    "revert",
    "scan",
    "unfreeze",
    "unpatch",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]
