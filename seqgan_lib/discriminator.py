"""The judge: a convolutional network that reads a finished sequence and says how likely it is to be real."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .checks import check_at_least, check_positive, check_tokens
from .fused import fused_loss
from .sampling import new_generator

_SHORT = ((1, 100), *((w, 200) for w in range(2, 6)), *((w, 100) for w in range(6, 11)))
#: (window, number of kernels) by T, as in the paper and its code.
PAPER_WINDOWS = {20: (*_SHORT, (15, 160), (20, 160)), 32: (*_SHORT, (16, 160), (24, 160), (32, 160))}


class Discriminator(nn.Module):
    """D_φ(Y), the probability that a finished sequence Y is real: ``discriminator(sequences)``, (batch,) in [0, 1].

    embedding → for each window a convolution over time, ReLU and max-over-time → one highway layer → dropout → two
    logits, generated and real; as in the paper and in ``discriminator.py`` of the published code, initial weights
    included. ``windows`` lists (window, number of kernels); for T = 20 and T = 32 the default is the paper's. ``l2``
    weighs the penalty ``½ (|W|² + |b|²)`` on the output layer alone. ``dropout`` is the share dropped in training; it
    draws from a stream of the discriminator's own, which is saved and restored with the weights.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        generator: Generator,
        windows: Sequence[tuple[int, int]] | None = None,
        embedding: int = 64,
        dropout: float = 0.25,
        l2: float = 0.2,
    ) -> None:
        super().__init__()
        for size, name in ((vocabulary, "vocabulary"), (length, "length"), (embedding, "embedding")):
            check_at_least(size, 1, name)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is the share that is dropped, from 0 to below 1, but is {dropout!r}")
        check_positive(l2, "l2", or_zero=True)
        windows = tuple(map(tuple, PAPER_WINDOWS.get(length, ()) if windows is None else windows))
        if not windows:
            raise ValueError(f"name the windows for length {length}; the paper has some for {[*PAPER_WINDOWS]} only")
        for width, kernels in windows:
            check_at_least(width, 1, "a window")
            check_at_least(kernels, 1, "a window's number of kernels")
            if width > length:
                raise ValueError(f"a window of {width} tokens does not fit in sequences of {length}")
        self.vocabulary, self.length, self.windows, self.dropout, self.l2 = vocabulary, length, windows, dropout, l2
        features = sum(kernels for _, kernels in windows)
        where = generator.device  # drawn where the generator lives, as the language model is

        def truncated(*shape: int) -> nn.Parameter:
            weight = torch.empty(shape, device=where)
            return nn.Parameter(nn.init.trunc_normal_(weight, std=0.1, a=-0.2, b=0.2, generator=generator).cpu())

        def uniform(limit: float, *shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator, device=where).cpu() - 1) * limit)

        self.embedding = uniform(1.0, vocabulary, embedding)
        # One matrix a window, (window · embedding, kernels): with the windows laid out, a convolution is one product.
        self.kernels = nn.ParameterList([truncated(width * embedding, kernels) for width, kernels in windows])
        self.biases = nn.Parameter(torch.full((features,), 0.1))
        # TensorFlow's default for a variable without an initialiser, Glorot's: ±√(6 / (fan in + fan out)).
        glorot = (3 / features) ** 0.5
        self.transform, self.gate = uniform(glorot, features, features), uniform(glorot, features, features)
        self.transform_bias, self.gate_bias = uniform(glorot, features), uniform(glorot, features)
        self.output, self.output_bias = truncated(features, 2), nn.Parameter(torch.full((2,), 0.1))
        self._stream = new_generator(int(torch.randint(2**31, (), generator=generator, device=where)))

    def forward(self, sequences: Tensor) -> Tensor:
        """D(Y) of ``sequences`` (batch, T) int64: (batch,) float32. Without gradients it works in slices that fit."""
        if torch.is_grad_enabled():
            return self.logits(sequences).softmax(1)[:, 1]
        check_tokens(sequences, self.vocabulary)
        rows = 2**13 if sequences.is_cuda else 2**15  # features of 56 or 226 MB, of the paper's windows
        return torch.cat([self.logits(part).softmax(1)[:, 1] for part in sequences.split(rows)])

    def logits(self, sequences: Tensor) -> Tensor:
        """The two logits, generated and real, (batch, 2), before the softmax."""
        pooled = self.features(sequences)
        rows = 2**13 if pooled.is_cuda else 2**10  # on a CPU, what stays in its cache
        return torch.cat([self._head(part) for part in pooled.split(rows)])

    def _head(self, pooled: Tensor) -> Tensor:
        """From the features (batch, kernels of all windows) to the logits: highway, dropout, output layer."""
        gate = torch.addmm(self.gate_bias, pooled, self.gate).sigmoid()
        transformed = torch.addmm(self.transform_bias, pooled, self.transform).relu()
        highway = torch.lerp(pooled, transformed, gate)  # gate · transformed + (1 − gate) · pooled
        if self.training and self.dropout:
            kept = torch.rand(highway.shape, generator=self.stream, device=highway.device) >= self.dropout
            highway = highway * kept / (1 - self.dropout)
        return torch.addmm(self.output_bias, highway, self.output)

    @property
    def stream(self) -> Generator:
        """Where dropout draws from: on the device of the weights, so that a step copies nothing."""
        if self._stream.device != self.embedding.device:
            self._stream = new_generator(self._stream.initial_seed(), self.embedding.device)
        return self._stream

    def get_extra_state(self) -> Tensor:
        return self._stream.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        if state.shape == self._stream.get_state().shape:
            self._stream.set_state(state.cpu())
        else:  # it was saved where the stream was on another kind of device, and cannot be continued here
            self._stream = new_generator(self._stream.initial_seed())

    def features(self, sequences: Tensor) -> Tensor:
        """What each kernel found, at the place where it found most: (batch, kernels of all windows), at least 0."""
        self.check(sequences)
        pooled = self._pooled(sequences) if torch.is_grad_enabled() else self._pooled_in_slices(sequences)
        # Bias and ReLU grow with their input, so the maximum may come first: less work, the same numbers.
        return pooled.add_(self.biases).relu_()

    def _pooled(self, sequences: Tensor) -> Tensor:
        """The most that each kernel finds anywhere, before bias and ReLU: a product over the laid out windows."""
        embedded, pooled = F.embedding(sequences, self.embedding), []
        for (width, _), kernels in zip(self.windows, self.kernels, strict=True):
            places = embedded.unfold(1, width, 1).transpose(2, 3).flatten(2)  # (batch, places, window · embedding)
            # max, whose gradient goes to one place, and not amax, which makes four passes to divide it among equals
            pooled.append((places @ kernels).max(1).values)  # (batch, places, kernels) → (batch, kernels)
        return torch.cat(pooled, 1)

    def _pooled_in_slices(self, sequences: Tensor) -> Tensor:
        """The same without gradients, in slices that fit, and on a CPU by tables where there are many windows.

        A table holds what every token adds at every place of a window, so that a window is a sum of its rows. It costs
        as much as a product over as many windows as there are tokens; then it saves the factor of the embedding's size.
        """
        pooled = self.embedding.new_empty(len(sequences), len(self.biases))
        slices = 2**13 if sequences.is_cuda else 2**9  # on a CPU, what stays in its cache
        columns = pooled.split([kernels for _, kernels in self.windows], 1)
        for (width, _), kernels, into in zip(self.windows, self.kernels, columns, strict=True):
            windows = sequences.unfold(1, width, 1)  # (batch, places, window)
            table = None
            if not sequences.is_cuda and windows.shape[:2].numel() > 4 * self.vocabulary:
                laid_out = kernels.unflatten(0, (width, -1)).transpose(0, 1).flatten(1)
                table = (self.embedding @ laid_out).view(self.vocabulary * width, -1)
            for part, best in zip(windows.split(slices), into.split(slices), strict=True):
                if table is None:
                    found = F.embedding(part, self.embedding).flatten(2) @ kernels
                else:
                    rows = (part * width + torch.arange(width)).flatten(0, 1)
                    found = F.embedding_bag(rows, table, mode="sum").unflatten(0, part.shape[:2])
                best.copy_(found.amax(1))
        return pooled

    def check(self, sequences: Tensor) -> None:
        """Raise ValueError unless ``sequences`` are what this discriminator can read."""
        check_tokens(sequences, self.vocabulary)
        if sequences.shape[1] != self.length:
            raise ValueError(f"this discriminator reads sequences of {self.length} tokens, not {sequences.shape[1]}")

    def loss(self, sequences: Tensor, real: Tensor) -> Tensor:
        """Mean cross-entropy in nats of telling ``real`` (batch,), 1 or 0, plus the penalty on the output layer."""
        if sequences.is_cuda and torch.is_grad_enabled():
            return fused_loss(self, sequences, real)
        penalty = self.output.square().sum() + self.output_bias.square().sum()
        return F.cross_entropy(self.logits(sequences), real) + self.l2 / 2 * penalty


@contextmanager
def judging(judge: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, ``judge`` has no dropout and keeps no gradients; then each module is in the mode it was in."""
    modes = [(m, m.training) for m in judge.modules()] if isinstance(judge, nn.Module) else []
    try:
        if modes:
            judge.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def verdict(discriminator: nn.Module, real: Tensor, generated: Tensor) -> dict[str, float]:
    """``loss`` (cross-entropy in nats; a guess has log 2) and ``accuracy`` in telling ``real`` from ``generated``
    sequences, each (batch, T), without dropout; each kind counts half, however many there are of it.
    """
    with judging(discriminator):
        d_real, d_generated = (discriminator(x).double() for x in (real, generated))
    tiny = torch.finfo(torch.float32).eps  # a float32 probability may be 0 or 1 exactly
    costs = d_real.clamp(min=tiny).log().mean(), (1 - d_generated).clamp(min=tiny).log().mean()
    right = (d_real > 0.5).double().mean(), (d_generated <= 0.5).double().mean()
    return {"loss": -sum(costs).item() / 2, "accuracy": sum(right).item() / 2}
