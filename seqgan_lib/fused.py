"""The discriminator's loss as a GPU likes it: few kernels, few passes over memory, gradients by hand.

A step on 64 sequences is short of work for a GPU, so its time is the number of its kernels, and the passes that they
make over memory. The convolutions are those of ``kernels.py``, or else a few large products, :class:`Products`. The
plain :meth:`~seqgan_lib.discriminator.Discriminator.loss` is what is meant here; tests compare.
"""

from __future__ import annotations

import warnings
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
    ValueError for sequences that ``discriminator`` cannot read.
    """
    discriminator.check(sequences)
    d, kept = discriminator, None
    if d.training and d.dropout:
        shape = len(sequences), len(d.biases)
        kept = (torch.rand(shape, generator=d.stream, device=sequences.device) >= d.dropout) / (1 - d.dropout)
    convolutions = _convolutions(d.windows, d.length, d.embedding.shape[1], d.embedding.device, d.embedding.dtype)
    head = d.biases, d.transform, d.transform_bias, d.gate, d.gate_bias, d.output, d.output_bias
    return _Loss.apply(convolutions, sequences, real, kept, d.l2, d.embedding, *head, *d.kernels)


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
def _convolutions(windows: tuple, length: int, embedding: int, device: torch.device, dtype: torch.dtype):
    """Windows, maxima and their gradients: by kernels of our own where they run, else by :class:`Products`."""
    if dtype == torch.float32 and own_kernels(device):
        from .kernels import Convolutions

        return Convolutions(windows, length, embedding, device)
    return Products(windows, length, embedding, device, dtype)


class Products:
    """The convolutions in PyTorch alone, for any device and dtype. Windows of similar width share one product.

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

    def pool(self, sequences: Tensor, embedding: Tensor, kernels: Tensor, biases: Tensor) -> tuple[Tensor, ...]:
        """The features (batch, features), and what :meth:`back` wants to see again.

        Takes ``sequences`` (batch, length) int64, the table ``embedding`` (vocabulary, embedding), ``kernels`` of all
        windows, one after the other and flat, and ``biases`` (features,).
        """
        batch, places = len(sequences), len(self.reads)
        tokens = sequences[:, self.reads].transpose(0, 1).reshape(-1)
        read = embedding.index_select(0, tokens).view(places * batch, -1)  # (places · batch, widest · embedding)
        packed = torch.cat([kernels, self.zero])[self.pack]
        found = read.new_empty(places, batch, self.features)
        for rows, columns, numbers, shape in self.groups:
            into = found.view(-1, self.features)[: rows * batch, columns]
            torch.mm(read[: rows * batch, : shape[0]], packed[numbers].view(shape), out=into)
        best, place = found.masked_fill_(self.late, -torch.inf).max(0)  # (batch, features)
        return best.add_(biases).relu_(), read, packed, place

    def back(self, up: Tensor, read: Tensor, packed: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """From ``up``, the gradient at the features before relu (batch, features), and the rest that :meth:`pool` gave:
        the gradients at every token's embedding, (batch, length, embedding), and at the flat kernels.
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
        return to_read.as_strided((places, batch, length, width), strides).sum(0), to_packed[self.unpack]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, convolutions, sequences, real, kept, l2, embedding, *weights):
        biases, transform, transform_bias, gate, gate_bias, output, output_bias, *kernels = weights
        flat = torch.cat([kernel.flatten() for kernel in kernels])
        with tf32():
            pooled, *seen = convolutions.pool(sequences, embedding, flat, biases)
            with beside(pooled.device) as join:
                transformed = torch.addmm(transform_bias, pooled, transform).relu_()
            opened = torch.addmm(gate_bias, pooled, gate).sigmoid_()
            join()
            highway = torch.lerp(pooled, transformed, opened)
            dropped = highway if kept is None else highway * kept
            log_p = torch.addmm(output_bias, dropped, output).log_softmax(1)
        penalty = torch.cat([output.flatten(), output_bias]).square().sum()
        ctx.convolutions, ctx.l2, ctx.shapes = convolutions, l2, [kernel.shape for kernel in kernels]
        ctx.save_for_backward(
            *(sequences, real, kept, embedding, pooled, opened, transformed, dropped, log_p),
            *(transform, gate, output, output_bias, *seen),
        )
        return torch.add(F.nll_loss(log_p, real), penalty, alpha=l2 / 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        aten = torch.ops.aten
        sequences, real, kept, embedding, pooled, opened, transformed, dropped, log_p = ctx.saved_tensors[:9]
        transform, gate, output, output_bias, *seen = ctx.saved_tensors[9:]
        with tf32():
            up = log_p.exp().sub_(F.one_hot(real, 2)) * (grad / len(sequences))  # at the logits
            with beside(up.device) as join_output:
                to_output = torch.addcmul(dropped.t() @ up, output, grad, value=ctx.l2)
                to_output_bias = torch.addcmul(up.sum(0), output_bias, grad, value=ctx.l2)
            at_end = up @ output.t()  # of the highway
            at_end = at_end if kept is None else at_end.mul_(kept)
            at_gate = aten.sigmoid_backward(at_end * (transformed - pooled), opened)
            through = at_end * opened
            at_transform = aten.threshold_backward(through, transformed, 0)
            with beside(up.device) as join_highway:
                to_gate, to_transform = pooled.t() @ at_gate, pooled.t() @ at_transform
                to_gate_bias, to_transform_bias = at_gate.sum(0), at_transform.sum(0)
            at_pooled = (at_end - through).addmm_(at_transform, transform.t()).addmm_(at_gate, gate.t())
            at_pooled = aten.threshold_backward(at_pooled, pooled, 0)
            to_tokens, to_flat = ctx.convolutions.back(at_pooled, *seen)
            # Sums in sorted order, as indexing's own backward does: the same numbers every time, and no look at them.
            to_embedding = torch.zeros_like(embedding)
            aten._index_put_impl_(to_embedding, [sequences], to_tokens, accumulate=True, unsafe=True)
            to_biases = at_pooled.sum(0)
            join_output(), join_highway()
        to_kernels = to_flat.split([shape.numel() for shape in ctx.shapes])
        to_kernels = [x.view(shape) for x, shape in zip(to_kernels, ctx.shapes, strict=True)]
        to_head = to_biases, to_transform, to_transform_bias, to_gate, to_gate_bias, to_output, to_output_bias
        return *[None] * 5, to_embedding, *to_head, *to_kernels
