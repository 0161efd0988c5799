"""The discriminator's loss as a GPU likes it: few kernels, few passes over memory, gradients by hand.

A step on 64 sequences is short of work for a GPU, so its time is the number of its kernels, and the passes that they
make over memory. Its parts are those of ``kernels.py``, or else PyTorch's, with few and large products. The plain
:meth:`~seqgan_lib.discriminator.Discriminator.loss` is what is meant here; tests compare.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .graphs import beside, tf32

if TYPE_CHECKING:
    from .discriminator import Discriminator


def fused_loss(discriminator: Discriminator, sequences: Tensor, real: Tensor) -> Tensor:
    """``discriminator.loss``, a scalar, with the same dropout; on a GPU from Ampere on with products in TF32.

    ``sequences`` are (batch, length) int64, ``real`` (batch,) int64, 1 or 0. The gradient has no gradient of its own.
    ValueError for sequences that ``discriminator`` cannot read, and for another shape or type of ``real``.
    """
    discriminator.check(sequences)
    if real.shape != sequences.shape[:1] or real.dtype != torch.int64:
        raise ValueError(f"real has to be ({len(sequences)},) int64, but is {(*real.shape,)} {real.dtype}")
    sequences, real = sequences.contiguous(), real.contiguous()  # kernels read them as they lie
    d, uniform = discriminator, None
    if d.training and d.dropout:
        uniform = torch.rand(len(sequences), len(d.biases), generator=d.stream, device=sequences.device)
    parts = _parts(d.windows, d.length, d.embedding.shape[1], d.embedding.device, d.embedding.dtype)
    head = d.transform, d.transform_bias, d.gate, d.gate_bias, d.output, d.output_bias
    return _Loss.apply(parts, sequences, real, uniform, d.dropout, d.l2, d.embedding, d.biases, *head, *d.kernels)


@cache
def own_kernels(device: torch.device) -> bool:
    """Whether the kernels in ``kernels.py`` run on ``device``, which takes a GPU from Ampere on, and Triton.

    They are tried out, once; where they ought to run and do not, a RuntimeWarning says why.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from .kernels import try_out

        try_out(device)
    except Exception as error:  # no Triton, as on Windows, or one that does not know this card
        warnings.warn(f"no kernels by Triton, so training is slower: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


@cache  # never freed: recorded graphs hold the addresses of the tables in it
def _parts(windows: tuple, length: int, embedding: int, device: torch.device, dtype: torch.dtype):
    """The parts of the loss, and of its gradient: in kernels of our own where they run, else :class:`Products`."""
    # With more numbers to a token the kernels' blocks exceed what the smaller cards have for one.
    if dtype == torch.float32 and embedding <= 128 and own_kernels(device):
        from .kernels import Kernels

        return Kernels(windows, length, embedding, device)
    return Products(windows, length, embedding, device, dtype)


class Products:
    """All parts in PyTorch alone, for any device and dtype. Windows of similar width share one product.

    Up to 5 tokens they share one, then up to 10, 20, …; the narrower ones get rows of zeros, up to the widest. A window
    at place p reads tokens p, p+1, …; rows that go place by place let wide windows, which have fewer, take fewer rows.
    ``windows`` are (width, kernels), sequences have ``length`` tokens, and a token's embedding ``embedding`` numbers.
    """

    def __init__(self, windows: tuple, length: int, embedding: int, device: torch.device, dtype: torch.dtype) -> None:
        self.length, self.features = length, sum(kernels for _, kernels in windows)
        sizes = [width * embedding * kernels for width, kernels in windows]
        total, blocks, late = sum(sizes), [], []
        numbers, column, start = iter(torch.arange(total).split(sizes)), 0, 0
        self.groups = []  # (places, columns, numbers of the packed weights, their shape)
        for _, group in groupby(windows, key=lambda window: max(0, ((window[0] - 1) // 5).bit_length())):
            group = list(group)
            shape = max(width for width, _ in group) * embedding, sum(kernels for _, kernels in group)
            block, first = torch.full(shape, total), column
            for width, kernels in group:
                begin = column - first
                block[: width * embedding, begin : begin + kernels] = next(numbers).view(-1, kernels)
                late.append((torch.arange(length) > length - width)[:, None].expand(-1, kernels))
                column += kernels
            end, places = start + block.numel(), length + 1 - min(width for width, _ in group)
            self.groups.append((places, slice(first, column), slice(start, end), shape))
            blocks.append(block.flatten())
            start = end
        pack = torch.cat(blocks)
        self.pack, self.unpack = pack.to(device), pack.argsort(stable=True)[:total].to(device)  # there and back
        places, widest = max(group[0] for group in self.groups), max(width for width, _ in windows)
        self.late = torch.cat(late, 1)[:places, None].to(device)  # (places, 1, features): past the sequence's end
        reads = torch.arange(places)[:, None] + torch.arange(widest)  # past the end any token will do
        self.reads = reads.clamp(max=length - 1).to(device)
        self.zero = torch.zeros(1, device=device, dtype=dtype)

    def pool(self, sequences: Tensor, embedding: Tensor, kernels: Sequence[Tensor], biases: Tensor) -> list[Tensor]:
        """The features (batch, features), and what :meth:`back_pool` wants to see again.

        Takes ``sequences`` (batch, length) int64, the table ``embedding`` (vocabulary, embedding), the ``kernels`` of
        each window (width · embedding, kernels), and ``biases`` (features,).
        """
        batch, places = len(sequences), len(self.reads)
        tokens = sequences[:, self.reads].transpose(0, 1).reshape(-1)
        read = embedding.index_select(0, tokens).view(places * batch, -1)  # (places · batch, widest · embedding)
        packed = torch.cat([*(kernel.flatten() for kernel in kernels), self.zero])[self.pack]
        found = read.new_empty(places, batch, self.features)
        for rows, columns, numbers, shape in self.groups:
            into = found.view(-1, self.features)[: rows * batch, columns]
            torch.mm(read[: rows * batch, : shape[0]], packed[numbers].view(shape), out=into)
        best, place = found.masked_fill_(self.late, -torch.inf).max(0)  # (batch, features)
        return [best.add_(biases).relu_(), read, packed, place]

    def judge(
        self, pooled: Tensor, real: Tensor, uniform: Tensor | None, dropout: float, l2: float, head: Sequence[Tensor]
    ) -> list[Tensor]:
        """The loss, a scalar, and what :meth:`back_judge` wants to see again, from the features ``pooled``.

        ``uniform`` (batch, features) in [0, 1) says what is dropped, where it is below ``dropout``; it may be
        overwritten. ``head`` are weights and biases of transform and gate of the highway, and of the output layer.
        """
        transform, transform_bias, gate, gate_bias, output, output_bias = head
        with beside(pooled.device) as join:
            transformed = torch.addmm(transform_bias, pooled, transform).relu_()
        opened = torch.addmm(gate_bias, pooled, gate).sigmoid_()
        join()
        kept = None if uniform is None else (uniform >= dropout) / (1 - dropout)
        highway = torch.lerp(pooled, transformed, opened)
        dropped = highway if kept is None else highway * kept
        log_p = torch.addmm(output_bias, dropped, output).log_softmax(1)
        penalty = torch.cat([output.flatten(), output_bias]).square().sum()
        loss = torch.add(F.nll_loss(log_p, real), penalty, alpha=l2 / 2)
        up = log_p.exp().sub_(F.one_hot(real, 2)).div_(len(real))  # the mean cross-entropy's gradient at the logits
        return [loss, transformed, opened, dropped, up, kept]

    def back_judge(
        self, grad: Tensor, pooled: Tensor, l2: float, head: Sequence[Tensor],
        transformed: Tensor, opened: Tensor, dropped: Tensor, up: Tensor, kept: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        """From ``grad``, the gradient at the loss, and the rest that :meth:`judge` took and gave: the gradients at the
        highway's two products, transform and gate, and at what goes past them, each (batch, features); then those at
        the biases of the two, and at the output layer's weights and bias.
        """
        aten, (*_, output, output_bias) = torch.ops.aten, head
        up = up * grad
        with beside(up.device) as join:
            to_output = torch.addcmul(dropped.t() @ up, output, grad, value=l2)
            to_output_bias = torch.addcmul(up.sum(0), output_bias, grad, value=l2)
        at_end = up @ output.t()  # of the highway
        at_end = at_end if kept is None else at_end.mul_(kept)
        at_gate = aten.sigmoid_backward(at_end * (transformed - pooled), opened)
        through = at_end * opened
        at_transform = aten.threshold_backward(through, transformed, 0)
        join()
        return [at_transform, at_gate, at_end - through, at_transform.sum(0), at_gate.sum(0), to_output, to_output_bias]

    def back_highway(
        self, at_transform: Tensor, at_gate: Tensor, past: Tensor, pooled: Tensor, transform: Tensor, gate: Tensor
    ) -> list[Tensor]:
        """From the three gradients of :meth:`back_judge` those at the features before relu, and at their biases."""
        at_pooled = past.addmm(at_transform, transform.t()).addmm_(at_gate, gate.t())
        at_pooled = torch.ops.aten.threshold_backward(at_pooled, pooled, 0)
        return [at_pooled, at_pooled.sum(0)]

    def back_pool(
        self, up: Tensor, sequences: Tensor, embedding: Tensor, read: Tensor, packed: Tensor, place: Tensor
    ) -> list[Tensor]:
        """From ``up``, the gradient at the features before relu (batch, features), and the rest that :meth:`pool` took
        and gave: the gradients at the table of embeddings and, flat, at the kernels.
        """
        batch, places, length = len(up), len(self.reads), self.length
        width = read.shape[1] // self.reads.shape[1]
        # Each kernel passes its gradient to the place where it found most.
        at_places = read.new_zeros(places, batch, self.features).scatter_(0, place[None], up[None])
        to_packed, step = torch.empty_like(packed), (length + 1) * width
        to_read = read.new_zeros(places * batch, step)
        for rows, columns, numbers, shape in self.groups:
            taken = at_places.view(-1, self.features)[: rows * batch, columns]
            torch.mm(read[: rows * batch, : shape[0]].t(), taken, out=to_packed[numbers].view(shape))
            to_read[: rows * batch, : shape[0]].addmm_(taken, packed[numbers].view(shape).t())
        # Row (p, b) holds what tokens p, p+1, … of sequence b get, then zeros, at least one of them. Reading row p
        # from p tokens earlier lines up equal tokens; what is read of the row before is its zeros.
        strides = batch * step - width, step, width, 1
        to_tokens = to_read.as_strided((places, batch, length, width), strides).sum(0)
        # Sums in sorted order, as indexing's own backward does: the same numbers every time, and no look at them.
        to_embedding = torch.zeros_like(embedding)
        torch.ops.aten._index_put_impl_(to_embedding, [sequences], to_tokens, accumulate=True, unsafe=True)
        return [to_embedding, to_packed[self.unpack]]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parts, sequences, real, uniform, dropout, l2, embedding, biases, *weights):
        head, kernels = weights[:6], weights[6:]
        with tf32(), torch.cuda.device_of(embedding):  # Triton launches on the current device; backward has it set
            pooled, *seen = parts.pool(sequences, embedding, kernels, biases)
            loss, *known = parts.judge(pooled, real, uniform, dropout, l2, head)
        ctx.parts, ctx.l2, ctx.known, ctx.shapes = parts, l2, len(known), [kernel.shape for kernel in kernels]
        ctx.save_for_backward(sequences, embedding, pooled, *head, *known, *seen)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        sequences, embedding, pooled, *rest = ctx.saved_tensors
        head, known, seen = rest[:6], rest[6 : 6 + ctx.known], rest[6 + ctx.known :]
        transform, _, gate, *_ = head
        with tf32():
            *ways, to_transform_bias, to_gate_bias, to_output, to_output_bias = ctx.parts.back_judge(
                grad, pooled, ctx.l2, head, *known
            )
            at_transform, at_gate, _ = ways
            with beside(grad.device) as join:
                to_transform, to_gate = pooled.t() @ at_transform, pooled.t() @ at_gate
            at_pooled, to_biases = ctx.parts.back_highway(*ways, pooled, transform, gate)
            to_embedding, to_flat = ctx.parts.back_pool(at_pooled, sequences, embedding, *seen)
            join()
        to_kernels = to_flat.split([shape.numel() for shape in ctx.shapes])
        to_kernels = [x.view(shape) for x, shape in zip(to_kernels, ctx.shapes, strict=True)]
        to_head = to_transform, to_transform_bias, to_gate, to_gate_bias, to_output, to_output_bias
        return *[None] * 6, to_embedding, to_biases, *to_head, *to_kernels
