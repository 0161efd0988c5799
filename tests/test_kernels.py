"""The Triton kernels on a CPU: without a GPU and with Triton, its interpreter runs them, as in `make kernels`.

What only a card can show, such as its own rounding and its speed, is in test_cuda.py.
"""

import copy
import os

import pytest
import torch

from seqgan_lib import fused, new_generator
from seqgan_lib.discriminator import Discriminator

if torch.cuda.is_available():
    pytest.skip("a GPU runs the kernels themselves, in test_cuda.py", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # Triton looks at it when it is first imported
pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(fused, "own_kernels", lambda device: True)
    fused._parts.cache_clear()
    yield
    fused._parts.cache_clear()


SIZES = [
    (((1, 3), (2, 4), (5, 70)), 7, 5, 11),
    (((3, 6), (2, 9)), 12, 20, 70),
    (((1, 16), (4, 32)), 4, 16, 8),
    (((2, 68), (3, 4)), 5, 4, 130),  # more sequences than a block has, twice
]


@pytest.mark.parametrize(("windows", "length", "embedding", "batch"), SIZES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_loss_and_gradients_are_the_plain_ones(windows, length, embedding, batch, dropout):
    """With the same dropout, sizes that fill no block and such that do, and a factor before the loss."""
    how = {"windows": windows, "embedding": embedding, "dropout": dropout, "generator": new_generator(0)}
    plain = Discriminator(9, length, **how)
    judge = copy.deepcopy(plain)
    judge._stream.set_state(plain._stream.get_state())
    sequences, real = torch.randint(9, (batch, length), generator=new_generator(1)), torch.arange(batch) % 2
    value, wanted = fused.fused_loss(judge, sequences, real), plain.double().loss(sequences, real)
    torch.testing.assert_close(value, wanted.float(), atol=1e-5, rtol=1e-5)
    (1.5 * value).backward(), (1.5 * wanted).backward()
    for (name, p), q in zip(plain.named_parameters(), judge.parameters(), strict=True):
        assert p.grad.abs().max() > 0 and q.grad.is_contiguous(), name
        assert (q.grad - p.grad).norm() < 1e-5 * p.grad.norm(), name


def test_however_the_arguments_lie():
    """Kernels read memory as it comes; a transposed batch or a column of labels is another order."""
    judge = Discriminator(9, 4, windows=((1, 16), (4, 32)), dropout=0.0, generator=new_generator(0))
    sequences, labels = torch.randint(9, (6, 4), generator=new_generator(1)), torch.arange(12).view(6, 2) // 2 % 2
    gradients = []
    for batch, real in (sequences, labels[:, 0].clone()), (sequences.t().contiguous().t(), labels[:, 0]):
        judge.zero_grad()
        fused.fused_loss(judge, batch, real).backward()
        gradients.append([p.grad for p in judge.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, which is the interpreter's calculator
@pytest.mark.parametrize("part", ["embedding", "biases", "transform", "gate_bias", "output", "kernels.0"])
@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_a_number_that_is_not_finite_reaches_the_loss(part, dropout):
    """A maximum could lose it, or dropout, and then a training that has failed would go on."""
    judge = Discriminator(9, 4, windows=((1, 16), (4, 32)), dropout=dropout, generator=new_generator(0))
    with torch.no_grad():
        judge.get_parameter(part).view(-1)[0] = torch.nan
    sequences = torch.zeros(3, 4, dtype=torch.int64)
    assert not fused.fused_loss(judge, sequences, torch.tensor([0, 1, 1])).isfinite()


def test_adam_is_pytorchs():
    """Five steps, on tensors of many blocks and of few numbers."""
    from seqgan_lib.kernels import adam

    sizes, stream = [(3_000,), (7,), (40, 100), (4_096,)], new_generator(0)
    ours = [torch.ones(size) for size in sizes]
    theirs = [torch.ones(size, requires_grad=True) for size in sizes]
    means, squares = ([torch.zeros(size) for size in sizes] for _ in range(2))
    optimiser, step = torch.optim.Adam(theirs, lr=0.01), torch.zeros(())
    for _ in range(5):
        for p in theirs:
            p.grad = torch.randn(p.shape, generator=stream) ** 3
        optimiser.step()
        adam(ours, [p.grad for p in theirs], means, squares, step.add_(1), lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


def test_they_are_tried_out_on_next_to_nothing(monkeypatch):
    """Which is how a GPU is asked whether they run there."""
    from seqgan_lib import kernels

    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    kernels.try_out(torch.device("cpu"))
    assert len(waited) == 1
