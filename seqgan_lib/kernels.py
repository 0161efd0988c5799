"""Triton kernels for a step of the discriminator: the parts of its loss, their gradients, and Adam.

A window of w tokens at place p reads tokens p … p+w−1. Its product with the kernels is the sum over its tokens of
(token's embedding) · (their rows of the kernels), so a block of threads needs no more than embeddings and kernels. Of
all places only the one that found most gets a gradient, so that of the kernels is a sum, without a product.

Highway, dropout, verdict and loss are dozens of small operations, each of which reads what the one before it wrote.
Here they follow a product while its numbers are still at hand.

Importing this module takes Triton; :func:`seqgan_lib.fused.own_kernels` says whether it is there and does its work.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .graphs import beside

# The blocks of each kernel, as measured best on an H200. All are powers of 2. S · P are the rows of a product, and each
# of its sides is to be 16 or more. _HIGHWAY, _COLUMNS and _POSITIONS have not met a card yet: they are sized for the
# 132 processors of an H100, and for the 99 KB of shared memory that a block has on smaller cards.
_POOL = {"S": 4, "P": 8, "C": 64, "num_warps": 4, "num_stages": 3}
_TO_KERNELS = {"C": 16, "K": 64, "AHEAD": 8, "num_warps": 4}
_TO_TOKENS = {"R": 64, "C": 32, "num_warps": 4, "num_stages": 3}
_HIGHWAY = {"M": 64, "N": 16, "K": 32, "num_warps": 4, "num_stages": 4}
_COLUMNS = {"M": 64, "N": 16, "num_warps": 4}
_POSITIONS = {"R": 64, "num_warps": 2}
_WEIGHTS = 2_048  # that a block of Adam's kernel changes: few enough that some thousand blocks fill the card


@triton.jit
def _window(row, EVEN: tl.constexpr):
    """Of a table's row: a window's width, how many kernels it has, where they start, and the first one's feature."""
    width, count, start, column = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    return width, tl.multiple_of(count, EVEN), tl.multiple_of(start, EVEN), tl.multiple_of(column, EVEN)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


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
    tl.store(pooled + into, _relu(best + bias[None, :]), mask=inside)
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
    into = ((number.to(tl.int64) * batch + b) * LENGTH + position)[:, None] * E + e[None, :]
    tl.store(to_tokens + into, total, mask=(b < batch)[:, None] & (e < E)[None, :])


@triton.jit
def _to_embedding(
    sequences, to_tokens, to_embedding, positions,
    WINDOWS: tl.constexpr, E: tl.constexpr, WIDE_E: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The gradient of one token's embedding: what it gets from all windows, everywhere it stands."""
    token, e = tl.program_id(0), tl.arange(0, WIDE_E)
    total = tl.zeros((WIDE_E,), tl.float32)
    for begin in range(0, positions, R):
        i = begin + tl.arange(0, R)
        here = tl.load(sequences + i, mask=i < positions, other=-1) == token
        if tl.max(here.to(tl.int32), 0) > 0:
            inside = here[:, None] & (e < E)[None, :]
            for window in range(WINDOWS):
                at = (window * positions + i).to(tl.int64)[:, None] * E + e[None, :]
                total += tl.sum(tl.load(to_tokens + at, mask=inside, other=0.0), 0)
    tl.store(to_embedding + token * E + e, total, mask=e < E)


@triton.jit
def _highway(
    pooled, uniform, transform, transform_bias, gate, gate_bias, transformed, opened, dropped, batch, dropout,
    FEATURES: tl.constexpr, DROPS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """N features of M sequences after the highway and dropout, whose factors take the place of ``uniform``."""
    row, n = tl.program_id(1) * M + tl.arange(0, M), tl.program_id(0) * N + tl.arange(0, N)
    t, g = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
    for begin in range(0, FEATURES, K):
        k = begin + tl.arange(0, K)
        read = (row < batch)[:, None] & (k < FEATURES)[None, :]
        x = tl.load(pooled + row[:, None] * FEATURES + k[None, :], mask=read, other=0.0)
        at, there = k[:, None] * FEATURES + n[None, :], (k < FEATURES)[:, None] & (n < FEATURES)[None, :]
        t = tl.dot(x, tl.load(transform + at, mask=there, other=0.0), t, input_precision=PRECISION)
        g = tl.dot(x, tl.load(gate + at, mask=there, other=0.0), g, input_precision=PRECISION)
    t = _relu(t + tl.load(transform_bias + n, mask=n < FEATURES, other=0.0)[None, :])
    g = tl.sigmoid(g + tl.load(gate_bias + n, mask=n < FEATURES, other=0.0)[None, :])
    at, inside = row[:, None] * FEATURES + n[None, :], (row < batch)[:, None] & (n < FEATURES)[None, :]
    x = tl.load(pooled + at, mask=inside, other=0.0)
    end = x + g * (t - x)
    if DROPS:
        kept = tl.where(tl.load(uniform + at, mask=inside, other=0.0) >= dropout, 1 / (1 - dropout), 0.0)
        end *= kept  # a product, so that NaN is not dropped
        tl.store(uniform + at, kept, mask=inside)
    tl.store(transformed + at, t, mask=inside)
    tl.store(opened + at, g, mask=inside)
    tl.store(dropped + at, end, mask=inside)


@triton.jit
def _verdict(
    dropped, real, output, output_bias, costs, up, batch, FEATURES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """One sequence's cross-entropy, and the gradient of the mean one at its two logits."""
    row, n = tl.program_id(0), tl.arange(0, WIDE)
    x = tl.load(dropped + row * FEATURES + n, mask=n < FEATURES, other=0.0)
    logit_0 = tl.sum(x * tl.load(output + 2 * n, mask=n < FEATURES, other=0.0), 0) + tl.load(output_bias)
    logit_1 = tl.sum(x * tl.load(output + 2 * n + 1, mask=n < FEATURES, other=0.0), 0) + tl.load(output_bias + 1)
    most, is_real = tl.maximum(logit_0, logit_1), tl.load(real + row)
    total = most + tl.log(tl.exp(logit_0 - most) + tl.exp(logit_1 - most))
    tl.store(costs + row, total - tl.where(is_real == 1, logit_1, logit_0))
    tl.store(up + 2 * row, (tl.exp(logit_0 - total) - (1 - is_real)) / batch)
    tl.store(up + 2 * row + 1, (tl.exp(logit_1 - total) - is_real) / batch)


@triton.jit
def _loss(costs, output, output_bias, loss, batch, l2, FEATURES: tl.constexpr, WIDE: tl.constexpr):
    """The mean of the costs, and the penalty, by one block of threads, so that they add up in the same order."""
    i, penalty = tl.arange(0, WIDE), 0.0
    cost = tl.zeros((WIDE,), tl.float32)
    for begin in range(0, batch, WIDE):
        cost += tl.load(costs + begin + i, mask=begin + i < batch, other=0.0)
    for half in range(2):
        weight = tl.load(output + half * FEATURES + i, mask=i < FEATURES, other=0.0)
        bias = tl.load(output_bias + half)
        penalty += tl.sum(weight * weight, 0) + bias * bias
    tl.store(loss, tl.sum(cost, 0) / batch + l2 / 2 * penalty)


@triton.jit
def _back_verdict(
    grad, pooled, transformed, opened, dropped, up, kept, output, output_bias, at_transform, at_gate, past,
    to_transform_bias, to_gate_bias, to_output, to_output_bias, batch, l2,
    FEATURES: tl.constexpr, DROPS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """N features of all sequences: from the logits back to the highway's products, and the sums over sequences."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    scale = tl.load(grad)
    w_0 = tl.load(output + 2 * n, mask=n < FEATURES, other=0.0)
    w_1 = tl.load(output + 2 * n + 1, mask=n < FEATURES, other=0.0)
    sum_transform, sum_gate = tl.zeros((N,), tl.float32), tl.zeros((N,), tl.float32)
    sum_0, sum_1, bias_0, bias_1 = scale * l2 * w_0, scale * l2 * w_1, 0.0, 0.0
    for begin in range(0, batch, M):
        row = begin + tl.arange(0, M)
        up_0 = scale * tl.load(up + 2 * row, mask=row < batch, other=0.0)
        up_1 = scale * tl.load(up + 2 * row + 1, mask=row < batch, other=0.0)
        at, inside = row[:, None] * FEATURES + n[None, :], (row < batch)[:, None] & (n < FEATURES)[None, :]
        x, t = tl.load(pooled + at, mask=inside, other=0.0), tl.load(transformed + at, mask=inside, other=0.0)
        g, d = tl.load(opened + at, mask=inside, other=0.0), tl.load(dropped + at, mask=inside, other=0.0)
        end = up_0[:, None] * w_0[None, :] + up_1[:, None] * w_1[None, :]
        if DROPS:
            end *= tl.load(kept + at, mask=inside, other=0.0)
        through = end * g
        to_t, to_g = tl.where(t > 0, through, 0.0), end * (t - x) * g * (1 - g)
        tl.store(at_transform + at, to_t, mask=inside)
        tl.store(at_gate + at, to_g, mask=inside)
        tl.store(past + at, end - through, mask=inside)
        sum_transform += tl.sum(to_t, 0)
        sum_gate += tl.sum(to_g, 0)
        sum_0 += tl.sum(up_0[:, None] * d, 0)
        sum_1 += tl.sum(up_1[:, None] * d, 0)
        bias_0 += tl.sum(up_0, 0)
        bias_1 += tl.sum(up_1, 0)
    tl.store(to_transform_bias + n, sum_transform, mask=n < FEATURES)
    tl.store(to_gate_bias + n, sum_gate, mask=n < FEATURES)
    tl.store(to_output + 2 * n, sum_0, mask=n < FEATURES)
    tl.store(to_output + 2 * n + 1, sum_1, mask=n < FEATURES)
    if tl.program_id(0) == 0:
        tl.store(to_output_bias, bias_0 + scale * l2 * tl.load(output_bias))
        tl.store(to_output_bias + 1, bias_1 + scale * l2 * tl.load(output_bias + 1))


@triton.jit
def _back_highway(
    at_transform, at_gate, past, pooled, transform, gate, at_pooled, to_biases, batch,
    FEATURES: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """N features of all sequences: from the highway's products back to the features before relu."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    biases = tl.zeros((N,), tl.float32)
    for first in range(0, batch, M):
        row = first + tl.arange(0, M)
        at, inside = row[:, None] * FEATURES + n[None, :], (row < batch)[:, None] & (n < FEATURES)[None, :]
        up = tl.load(past + at, mask=inside, other=0.0)
        for begin in range(0, FEATURES, K):
            k = begin + tl.arange(0, K)
            given, read = row[:, None] * FEATURES + k[None, :], (row < batch)[:, None] & (k < FEATURES)[None, :]
            to, there = n[None, :] * FEATURES + k[:, None], (k < FEATURES)[:, None] & (n < FEATURES)[None, :]
            t, w = tl.load(at_transform + given, mask=read, other=0.0), tl.load(transform + to, mask=there, other=0.0)
            up = tl.dot(t, w, up, input_precision=PRECISION)
            g, v = tl.load(at_gate + given, mask=read, other=0.0), tl.load(gate + to, mask=there, other=0.0)
            up = tl.dot(g, v, up, input_precision=PRECISION)
        up = tl.where(tl.load(pooled + at, mask=inside, other=0.0) > 0, up, 0.0)
        tl.store(at_pooled + at, up, mask=inside)
        biases += tl.sum(up, 0)
    tl.store(to_biases + n, biases, mask=n < FEATURES)


class Kernels:
    """The parts of the loss for one discriminator's sizes in float32, as :class:`~seqgan_lib.fused.Products` has them.

    ``windows`` are (width, kernels), sequences have ``length`` tokens, and a token's embedding ``embedding`` numbers.
    Products are in TF32 where PyTorch's are.
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
        self.length = length
        even = 4 if all(count % 4 == 0 for _, count in windows) else 1  # lets threads load four numbers at a time
        self._sizes = {"LENGTH": length, "FEATURES": self.features, "EVEN": even, "E": embedding}
        self._wide = {"WIDE_E": max(16, triton.next_power_of_2(embedding))}
        self._row = {"FEATURES": self.features, "WIDE": triton.next_power_of_2(self.features)}

    def pool(self, sequences: Tensor, embedding: Tensor, kernels: Sequence[Tensor], biases: Tensor) -> list[Tensor]:
        """See :meth:`.fused.Products.pool`."""
        with beside(embedding.device) as join:
            flat = torch.cat([kernel.flatten() for kernel in kernels])
        embedded, batch = F.embedding(sequences, embedding), len(sequences)
        pooled = embedded.new_empty(batch, self.features)
        places = torch.empty(batch, self.features, dtype=torch.int32, device=embedded.device)
        join()
        _pool[len(self.tiles), triton.cdiv(batch, _POOL["S"])](
            *(embedded, flat, biases, self.tiles, pooled, places, batch),
            **self._sizes, **self._wide, **_POOL, PRECISION=_precision(),
        )  # fmt: skip
        return [pooled, embedded, flat, places]

    def judge(
        self, pooled: Tensor, real: Tensor, uniform: Tensor | None, dropout: float, l2: float, head: Sequence[Tensor]
    ) -> list[Tensor]:
        """See :meth:`.fused.Products.judge`."""
        *highway, output, output_bias = head
        batch = len(pooled)
        transformed, opened, dropped = (torch.empty_like(pooled) for _ in range(3))
        _highway[triton.cdiv(self.features, _HIGHWAY["N"]), triton.cdiv(batch, _HIGHWAY["M"])](
            *(pooled, uniform, *highway, transformed, opened, dropped, batch, dropout),
            FEATURES=self.features, **_HIGHWAY, DROPS=uniform is not None, PRECISION=_precision(),
        )  # fmt: skip
        costs, up, loss = pooled.new_empty(batch), pooled.new_empty(batch, 2), pooled.new_empty(())
        _verdict[(batch,)](dropped, real, output, output_bias, costs, up, batch, **self._row)
        _loss[(1,)](costs, output, output_bias, loss, batch, l2, **self._row)
        return [loss, transformed, opened, dropped, up, uniform]

    def back_judge(
        self, grad: Tensor, pooled: Tensor, l2: float, head: Sequence[Tensor],
        transformed: Tensor, opened: Tensor, dropped: Tensor, up: Tensor, kept: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        """See :meth:`.fused.Products.back_judge`."""
        _, transform_bias, _, gate_bias, output, output_bias = head
        ways = [torch.empty_like(pooled) for _ in range(3)]
        sums = [torch.empty_like(x) for x in (transform_bias, gate_bias, output, output_bias)]
        _back_verdict[(triton.cdiv(self.features, _COLUMNS["N"]),)](
            *(grad, pooled, transformed, opened, dropped, up, kept, output, output_bias, *ways, *sums),
            *(len(pooled), l2), FEATURES=self.features, DROPS=kept is not None, **_COLUMNS,
        )  # fmt: skip
        return [*ways, *sums]

    def back_highway(
        self, at_transform: Tensor, at_gate: Tensor, past: Tensor, pooled: Tensor, transform: Tensor, gate: Tensor
    ) -> list[Tensor]:
        """See :meth:`.fused.Products.back_highway`."""
        at_pooled, to_biases = torch.empty_like(pooled), pooled.new_empty(self.features)
        _back_highway[(triton.cdiv(self.features, _HIGHWAY["N"]),)](
            *(at_transform, at_gate, past, pooled, transform, gate, at_pooled, to_biases, len(pooled)),
            FEATURES=self.features, **_HIGHWAY, PRECISION=_precision(),
        )  # fmt: skip
        return [at_pooled, to_biases]

    def back_pool(
        self, up: Tensor, sequences: Tensor, embedding: Tensor, embedded: Tensor, flat: Tensor, places: Tensor
    ) -> list[Tensor]:
        """See :meth:`.fused.Products.back_pool`."""
        batch, to_flat, to_embedding = len(up), torch.empty_like(flat), torch.empty_like(embedding)
        to_tokens = up.new_empty(len(self.windows), *embedded.shape)
        with beside(up.device) as join:
            _to_kernels[(len(self.rows),)](
                *(embedded, up, places, self.rows, to_flat, batch), **self._sizes, **_TO_KERNELS
            )  # fmt: skip
        _to_tokens[self.length, len(self.windows), triton.cdiv(batch, _TO_TOKENS["R"])](
            *(flat, up, places, self.windows, to_tokens, batch),
            **self._sizes, **self._wide, **_TO_TOKENS, PRECISION=_precision(),
        )  # fmt: skip
        _to_embedding[(len(embedding),)](
            *(sequences, to_tokens, to_embedding, sequences.numel()),
            WINDOWS=len(self.windows), E=embedding.shape[1], **self._wide, **_POSITIONS,
        )  # fmt: skip
        join()
        return [to_embedding, to_flat]


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
    with torch.cuda.device_of(step):  # Triton launches on the current device
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
    parts, one = Kernels(((1, 1),), 1, 1, device), torch.ones(1, device=device)
    token, square = torch.zeros(1, 1, dtype=torch.int64, device=device), one[:, None]
    head = square, one, square, one, torch.ones(1, 2, device=device), torch.ones(2, device=device)
    with torch.cuda.device_of(one):
        pooled, *seen = parts.pool(token, square, [square], one)
        loss, *known = parts.judge(pooled, token[0], square.clone(), 0.5, 1.0, head)
        *ways, _, _, _, _ = parts.back_judge(loss, pooled, 1.0, head, *known)
        at_pooled, _ = parts.back_highway(*ways, pooled, square, square)
        parts.back_pool(at_pooled, token, square, *seen)
    adam([one.clone()], [one], [one.clone()], [one.clone()], one[0], lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    torch.cuda.synchronize(device)
