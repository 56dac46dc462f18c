"""A user's file, for type checkers: what must pass, and, by its `type: ignore`, what must not.

`mypy --strict` and pyright both complain of an `ignore` under which nothing is wrong.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast

rnn: nn.RNN = rnnfast.RNN(8, 16, nonlinearity="relu")
gru: nn.GRU = rnnfast.GRU(8, 16)
lstm: nn.LSTM = rnnfast.LSTM(8, 16, proj_size=4, device="cpu", dtype=torch.float32)
rnn_cell: nn.RNNCell = rnnfast.RNNCell(8, 16)
gru_cell: nn.GRUCell = rnnfast.GRUCell(8, 16)
lstm_cell: nn.LSTMCell = rnnfast.LSTMCell(8, 16)

rnnfast.RNN(8, 16, hidden=3)  # type: ignore[call-arg]
rnnfast.GRU(8, 16, hidden=3)  # type: ignore[call-arg]
rnnfast.LSTM(8, 16, hidden=3)  # type: ignore[call-arg]
rnnfast.GRU(8)  # type: ignore[call-arg]
rnnfast.GRU("8", 16)  # type: ignore[arg-type]
rnnfast.GRU(8, 16, proj_size=4)  # type: ignore[call-arg]
rnnfast.GRUCell(8, 16, hidden=3)  # type: ignore[call-arg]
wrong: nn.LSTM = rnnfast.GRU(8, 16)  # type: ignore[assignment]


class Model(nn.Module):
    """Both layers, with states, and a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = rnnfast.GRU(8, 16, batch_first=True)
        self.lstm = rnnfast.LSTM(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.gru(x)
        output, (h_n, c_n) = self.lstm(output)
        return output + h_n + c_n

    def packed(self, x: list[Tensor], h_0: Tensor) -> PackedSequence:
        output, h_n = self.gru(pack_sequence(x), h_0)
        h_n.sum()
        return output


class Derived(rnnfast.GRU):
    """A class of the user's own."""


model: Model = rnnfast.convert(Model())
size: int = Derived(8, 16).hidden_size + model.gru.hidden_size
print(rnnfast.explain(model.gru, torch.zeros(3, 2, 8)).layers[0].route)
