"""The modules on a GPU beside torch's: packed forms, projections, autocast, torch.compile."""

import copy

import pytest
import torch
from on_gpu import DEVICE, MARKS, flat, groups, rms_error
from problems import MODES, Problem, assert_close, gradients
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast

pytestmark = MARKS


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_runs_in_cudnn() -> None:
    theirs = nn.LSTM(5, 12, proj_size=4, device=DEVICE)
    ours = rnnfast.convert(copy.deepcopy(theirs))
    x = torch.randn(6, 3, 5, device=DEVICE)
    assert rnnfast.explain(ours, x).layers[0].route == "torch"
    assert_close(flat(ours(x)), flat(theirs(x)), 1e-6)


def test_tensors_on_two_devices_raise_torchs_error() -> None:
    other = "cpu" if DEVICE == "cuda" else "meta"
    with pytest.raises(RuntimeError):
        rnnfast.GRU(3, 4, device=DEVICE)(torch.randn(2, 2, 3, device=other)).cpu()


AUTOCAST = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.bfloat16]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("low", AUTOCAST, ids=str)
@pytest.mark.parametrize("lengths", [None, (5, 3, 1)], ids=["dense", "packed"])
def test_autocast(mode: str, low: torch.dtype, lengths: tuple[int, ...] | None) -> None:
    problem = Problem(
        mode, T=5, B=3, H=40, lengths=lengths, dtype=torch.float32, device=DEVICE, layers=2
    )
    with torch.autocast(DEVICE, dtype=low):
        ours, theirs = problem.rnnfast(), problem.torch()
    assert [v.dtype for v in ours] == [v.dtype for v in theirs]
    ours, theirs = (groups(problem, values) for values in (ours, theirs))
    for name, values in theirs.items():
        assert rms_error(ours[name], [v.double().cpu() for v in values]) < 2**-6, name


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles(backend: str) -> None:
    layer = rnnfast.GRU(16, 64, 2, bidirectional=True, device=DEVICE)
    x = torch.randn(7, 3, 16, device=DEVICE, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    leaves = [x, *layer.parameters()]
    ours, expected = flat(compiled(x)), flat(layer(x))
    assert_close(ours, expected, 1e-5)
    assert_close(gradients(ours, leaves), gradients(expected, leaves), 1e-5)


class Tagger(nn.Module):
    """A model as users have it: packed sequences in a stack with dropout, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 40, 2, bidirectional=True, dropout=0.5)
        self.readout = nn.Linear(80, 5)

    def forward(self, sequences: PackedSequence) -> Tensor:
        return self.readout(self.rnn(sequences)[0].data)


def test_a_converted_model_moves_trains_and_comes_back() -> None:
    theirs = Tagger()
    ours = rnnfast.convert(copy.deepcopy(theirs)).to(DEVICE)
    theirs.to(DEVICE)
    sequences = pack_sequence([torch.randn(n, 12, device=DEVICE) for n in (9, 6, 2)])
    values = []
    for model in (ours, theirs):
        model.rnn.dropout = 0.0  # not eval(): cuDNN has no backward pass then
        loss = model(sequences).square().sum()
        values.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(*values, 1e-2)
    before = ours.rnn.weight_hh_l0.detach().clone()
    ours.rnn.dropout = 0.5
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.1)
    ours(sequences).square().sum().backward()
    optimizer.step()
    assert not torch.equal(ours.rnn.weight_hh_l0, before)
    home = ours.cpu().eval()
    assert home(sequences.to("cpu")).isfinite().all()
