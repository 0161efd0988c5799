"""Triton kernels for the discriminator's convolutions, of which no window is ever laid out, and for Adam.

A window of w tokens at place p reads tokens p … p+w−1. Its product with the kernels is the sum over its tokens of
(token's embedding) · (their rows of the kernels), so a block of threads needs no more than embeddings and kernels. Of
all places only the one that found most gets a gradient, so that of the kernels is a sum, without a product.

Importing this module takes Triton; :func:`seqgan_lib.fused.own_kernels` says whether it is there and does its work.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .graphs import beside

# The blocks of each kernel, as measured best on an H200. All are powers of 2. S · P are the rows of a product, and each
# of its sides is to be 16 or more.
_POOL = {"S": 4, "P": 8, "C": 64, "num_warps": 4, "num_stages": 3}
_TO_KERNELS = {"C": 16, "K": 64, "AHEAD": 8, "num_warps": 4}
_TO_TOKENS = {"R": 64, "C": 32, "num_warps": 4, "num_stages": 3}
_WEIGHTS = 2_048  # that a block of Adam's kernel changes: few enough that some thousand blocks fill the card


@triton.jit
def _window(row, EVEN: tl.constexpr):
    """Of a table's row: a window's width, how many kernels it has, where they start, and the first one's feature."""
    width, count, start, column = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    return width, tl.multiple_of(count, EVEN), tl.multiple_of(start, EVEN), tl.multiple_of(column, EVEN)


@triton.jit
def _pool(
    embedded, kernels, biases, tiles, pooled, places, batch,
    LENGTH: tl.constexpr, FEATURES: tl.constexpr, EVEN: tl.constexpr, E: tl.constexpr, WIDE_E: tl.constexpr,
    S: tl.constexpr, P: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of C kernels of a window for S sequences: P places at a time, keep the most and where it was."""
    tile, e, r = tiles + 5 * tl.program_id(0), tl.arange(0, WIDE_E), tl.arange(0, S * P)
    width, count, start, column = _window(tile, EVEN)
    n = tl.multiple_of(tl.load(tile + 4), C) + tl.arange(0, C)
    sequence, row = tl.program_id(1) * S + r // P, tl.program_id(1) * S + tl.arange(0, S)
    best, where = tl.full((S, C), float("-inf"), tl.float32), tl.zeros((S, C), tl.int32)
    last = LENGTH - width
    for begin in range(0, last + 1, P):
        place = begin + r % P
        read = (sequence < batch) & (place <= last)
        found = tl.zeros((S * P, C), tl.float32)
        for j in range(width):
            token = (sequence * LENGTH + place + j)[:, None] * E + e[None, :]
            a = tl.load(embedded + token, mask=read[:, None] & (e < E)[None, :], other=0.0)
            weight = start + (j * E + e)[:, None] * count + n[None, :]
            b = tl.load(kernels + weight, mask=(e < E)[:, None] & (n < count)[None, :], other=0.0)
            found = tl.dot(a, b, found, input_precision=PRECISION)
        found = tl.where(found == found, found, float("inf"))  # NaN would lose every comparison, and be forgotten
        found = tl.where((place <= last)[:, None], found, float("-inf"))
        most, at = tl.max(tl.reshape(found, (S, P, C)), 1, return_indices=True)
        where = tl.where(most > best, begin + at, where)
        best = tl.maximum(best, most)
    into = row[:, None] * FEATURES + (column + n)[None, :]
    inside = (row < batch)[:, None] & (n < count)[None, :]
    bias = tl.load(biases + column + n, mask=n < count, other=0.0)
    tl.store(pooled + into, tl.maximum(best + bias[None, :], 0.0), mask=inside)
    tl.store(places + into, where, mask=inside)


@triton.jit
def _to_kernels(
    embedded, up, places, rows, to_kernels, batch,
    LENGTH: tl.constexpr, FEATURES: tl.constexpr, EVEN: tl.constexpr, E: tl.constexpr,
    C: tl.constexpr, K: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The gradient of K rows of C kernels: of every sequence, what lay where that kernel found most."""
    row = rows + 6 * tl.program_id(0)
    width, count, start, column = _window(row, EVEN)
    n = tl.multiple_of(tl.load(row + 4), C) + tl.arange(0, C)
    k = tl.multiple_of(tl.load(row + 5), K) + tl.arange(0, K)
    inside = (n < count)[:, None] & (k < width * E)[None, :]
    total = tl.zeros((C, K), tl.float32)
    for begin in range(0, batch, AHEAD):
        for ahead in tl.static_range(AHEAD):  # loads that wait for none of one another
            b = begin + ahead
            at, there = b * FEATURES + column + n, (n < count) & (b < batch)
            gradient = tl.load(up + at, mask=there, other=0.0)
            place = tl.load(places + at, mask=there, other=0)
            token = ((b * LENGTH + place) * E)[:, None] + k[None, :]
            total += gradient[:, None] * tl.load(embedded + token, mask=inside & (b < batch), other=0.0)
    tl.store(to_kernels + start + k[None, :] * count + n[:, None], total, mask=inside)


@triton.jit
def _to_tokens(
    kernels, up, places, windows, to_tokens, batch,
    LENGTH: tl.constexpr, FEATURES: tl.constexpr, EVEN: tl.constexpr, E: tl.constexpr, WIDE_E: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one position of R sequences gets from one window, at whichever of its tokens it was read."""
    position, number = tl.program_id(0), tl.program_id(1)
    window, e, b = windows + 4 * number, tl.arange(0, WIDE_E), tl.program_id(2) * R + tl.arange(0, R)
    width, count, start, column = _window(window, EVEN)
    total = tl.zeros((R, WIDE_E), tl.float32)
    for first in range(0, count, C):
        n = first + tl.arange(0, C)
        at = b[:, None] * FEATURES + (column + n)[None, :]
        inside = (b < batch)[:, None] & (n < count)[None, :]
        gradient, chosen = tl.load(up + at, mask=inside, other=0.0), tl.load(places + at, mask=inside, other=-1)
        for j in range(tl.maximum(0, position - LENGTH + width), tl.minimum(width, position + 1)):
            weight = start + (j * E + e)[None, :] * count + n[:, None]
            w = tl.load(kernels + weight, mask=(e < E)[None, :] & (n < count)[:, None], other=0.0)
            here = tl.where(chosen == position - j, gradient, 0.0)
            total = tl.dot(here, w, total, input_precision=PRECISION)
    into = ((number * batch + b) * LENGTH + position)[:, None] * E + e[None, :]
    tl.store(to_tokens + into, total, mask=(b < batch)[:, None] & (e < E)[None, :])


class Convolutions:
    """The convolutions of one discriminator's sizes in float32, as :class:`~seqgan_lib.fused.Products` has them.

    ``windows`` are (width, kernels), sequences have ``length`` tokens, and a token's embedding ``embedding`` numbers.
    """

    def __init__(self, windows: tuple[tuple[int, int], ...], length: int, embedding: int, device: torch.device) -> None:
        self.features = sum(count for _, count in windows)
        known, start, column = [], 0, 0
        for width, count in windows:
            known.append((width, count, start, column))
            start, column = start + width * embedding * count, column + count
        # The longest work first: it should not be what is still running when all else is done.
        known.sort(key=lambda window: -window[0])
        tiles = [(*window, n) for window in known for n in range(0, window[1], _POOL["C"])]
        tiles.sort(key=lambda tile: -tile[0] * -(-(length + 1 - tile[0]) // _POOL["P"]))
        rows = [
            (*window, n, k)
            for window in known
            for n in range(0, window[1], _TO_KERNELS["C"])
            for k in range(0, window[0] * embedding, _TO_KERNELS["K"])
        ]
        self.tiles, self.rows, self.windows = (
            torch.tensor(table, dtype=torch.int32, device=device) for table in (tiles, rows, known)
        )
        self.total, self.length = start, length
        even = 4 if all(count % 4 == 0 for _, count in windows) else 1  # lets threads load four numbers at a time
        self._sizes = {"LENGTH": length, "FEATURES": self.features, "EVEN": even, "E": embedding}
        self._wide = {"WIDE_E": max(16, triton.next_power_of_2(embedding))}

    def pool(self, sequences: Tensor, embedding: Tensor, kernels: Tensor, biases: Tensor) -> tuple[Tensor, ...]:
        """The features (batch, features), and what :meth:`back` wants to see again.

        Takes ``sequences`` (batch, length) int64, the table ``embedding`` (vocabulary, embedding), ``kernels`` of all
        windows, one after the other and flat, and ``biases`` (features,). Products are in TF32 where PyTorch's are.
        """
        embedded, batch = F.embedding(sequences, embedding), len(sequences)
        pooled = embedded.new_empty(batch, self.features)
        places = torch.empty(batch, self.features, dtype=torch.int32, device=embedded.device)
        _pool[len(self.tiles), triton.cdiv(batch, _POOL["S"])](
            *(embedded, kernels, biases, self.tiles, pooled, places, batch),
            **self._sizes, **self._wide, **_POOL, PRECISION=_precision(),
        )  # fmt: skip
        return pooled, embedded, kernels, places

    def back(self, up: Tensor, embedded: Tensor, kernels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """From ``up``, the gradient at the features before relu (batch, features), and the rest that :meth:`pool` gave:
        the gradients at every token's embedding, (batch, length, embedding), and at the flat kernels.
        """
        batch, to_kernels = len(up), torch.empty_like(kernels)
        by_window = up.new_empty(len(self.windows), *embedded.shape)
        with beside(up.device) as join:
            _to_kernels[(len(self.rows),)](
                *(embedded, up, places, self.rows, to_kernels, batch), **self._sizes, **_TO_KERNELS
            )  # fmt: skip
        _to_tokens[self.length, len(self.windows), triton.cdiv(batch, _TO_TOKENS["R"])](
            *(kernels, up, places, self.windows, by_window, batch),
            **self._sizes, **self._wide, **_TO_TOKENS, PRECISION=_precision(),
        )  # fmt: skip
        to_tokens = by_window.sum(0)
        join()
        return to_tokens, to_kernels


def _precision() -> str:
    """Of products: what PyTorch's own have at this moment."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def _adam(
    weights, gradients, means, squares, blocks, step, rate, log_beta_1, log_beta_2, rest_1, rest_2, epsilon,
    TENSORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK weights of one of the tensors. The corrections are made in float64: 1 − 0.999 has few digits left."""
    row = blocks + 3 * tl.program_id(0)
    which, begin, size = tl.load(row), tl.multiple_of(tl.load(row + 1), BLOCK), tl.load(row + 2)
    w, g, m, v = weights[0], gradients[0], means[0], squares[0]
    for k in tl.static_range(1, TENSORS):
        if which == k:
            w, g, m, v = weights[k], gradients[k], means[k], squares[k]
    i = begin + tl.arange(0, BLOCK)
    inside = i < size
    gradient, mean = tl.load(g + i, mask=inside, other=0.0), tl.load(m + i, mask=inside, other=0.0)
    square, weight = tl.load(v + i, mask=inside, other=0.0), tl.load(w + i, mask=inside, other=0.0)
    steps = tl.load(step).to(tl.float64)
    correction_1, correction_2 = 1 - tl.exp(steps * log_beta_1), 1 - tl.exp(steps * log_beta_2)
    mean += rest_1 * (gradient - mean)
    square += rest_2 * (gradient * gradient - square)
    down = tl.sqrt(square) / tl.sqrt(correction_2).to(tl.float32) + epsilon
    tl.store(m + i, mean, mask=inside)
    tl.store(v + i, square, mask=inside)
    tl.store(w + i, weight - (rate / correction_1).to(tl.float32) * mean / down, mask=inside)


def adam(
    weights: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], step: Tensor, *,
    lr: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """One step of Adam (Kingma and Ba 2015, algorithm 1) in one pass over float32 tensors on a GPU.

    Changed in place are ``weights`` and the averages of their ``gradients``, ``means``, and of the squares of these,
    ``squares``: lists of tensors of the same shapes, contiguous. ``step`` () is the number of the step, 1 at first.
    """
    sizes = tuple(x.numel() for x in weights)
    blocks = _blocks(sizes, step.device)
    logs, rests = (math.log(beta) for beta in betas), (1 - beta for beta in betas)
    _adam[(len(blocks),)](
        *map(tuple, (weights, gradients, means, squares)), blocks, step, lr, *logs, *rests, eps,
        TENSORS=len(sizes), BLOCK=_WEIGHTS,
    )  # fmt: skip


@cache  # never freed: recorded graphs hold their addresses
def _blocks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """(blocks, 3): of each block the number of its tensor, where it begins in it, and that tensor's size."""
    rows = [(k, begin, size) for k, size in enumerate(sizes) for begin in range(0, size, _WEIGHTS)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def try_out(device: torch.device) -> None:
    """Compile and run each kernel once, on next to nothing. Raises whatever Triton or CUDA does if one fails."""
    convolutions, one = Convolutions(((1, 1),), 1, 1, device), torch.ones(1, device=device)
    features, *seen = convolutions.pool(torch.zeros(1, 1, dtype=torch.int64, device=device), one[:, None], one, one)
    convolutions.back(features, *seen)
    adam([one.clone()], [one], [one.clone()], [one.clone()], one[0], lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    torch.cuda.synchronize(device)
