"""The discriminator's loss as a GPU likes it: few, large products instead of many small ones, gradients by hand.

A step on 64 sequences is short of work for a GPU, so its time is the number of its kernels. The plain
:meth:`~seqgan_lib.discriminator.Discriminator.loss` is what is meant here; tests compare the two.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .graphs import tf32

if TYPE_CHECKING:
    from .discriminator import Discriminator


def fused_loss(discriminator: Discriminator, sequences: Tensor, real: Tensor) -> Tensor:
    """Its ``loss``, a scalar, with the same dropout; on a GPU from Ampere on with products in TF32."""
    discriminator.check(sequences)
    d, kept = discriminator, None
    if d.training and d.dropout:
        shape = len(sequences), len(d.biases)
        kept = (torch.rand(shape, generator=d.stream, device=sequences.device) >= d.dropout) / (1 - d.dropout)
    layout = _layout(d.windows, d.length, d.embedding.shape[1], d.embedding.device, d.embedding.dtype)
    head = d.biases, d.transform, d.transform_bias, d.gate, d.gate_bias, d.output, d.output_bias
    return _Loss.apply(layout, sequences, real, kept, d.l2, d.embedding, *head, *d.kernels)


class _Layout:
    """How windows of similar width share one product: the narrower ones get rows of zeros, up to the widest.

    Up to 5 tokens they share one, then up to 10, 20, … A window at place p reads tokens p, p+1, …; place-major rows
    let wide windows, which have fewer places, take fewer rows.
    """

    def __init__(self, windows: tuple, length: int, embedding: int, device: torch.device, dtype: torch.dtype) -> None:
        self.length, self.features = length, sum(kernels for _, kernels in windows)
        self.counts = [kernels for _, kernels in windows]
        self.sizes = [width * embedding * kernels for width, kernels in windows]
        total, blocks, late = sum(self.sizes), [], []
        numbers, column, start = iter(torch.arange(total).split(self.sizes)), 0, 0
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


_layout = lru_cache(maxsize=None)(_Layout)  # never freed: recorded graphs hold the addresses of its tensors


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, sequences, real, kept, l2, embedding, *weights):
        biases, transform, transform_bias, gate, gate_bias, output, output_bias, *kernels = weights
        batch, places = len(sequences), len(layout.reads)
        with tf32():
            tokens = sequences[:, layout.reads].transpose(0, 1).reshape(-1)
            read = embedding.index_select(0, tokens).view(places * batch, -1)  # (places · batch, widest · embedding)
            packed = torch.cat([*(kernel.flatten() for kernel in kernels), layout.zero])[layout.pack]
            found = read.new_empty(places, batch, layout.features)
            for rows, columns, numbers, shape in layout.groups:
                into = found.view(-1, layout.features)[: rows * batch, columns]
                torch.mm(read[: rows * batch, : shape[0]], packed[numbers].view(shape), out=into)
            best, place = found.masked_fill_(layout.late, -torch.inf).max(0)  # (batch, features)
            pooled = best.add_(biases).relu_()
            opened = torch.addmm(gate_bias, pooled, gate).sigmoid_()
            transformed = torch.addmm(transform_bias, pooled, transform).relu_()
            highway = torch.lerp(pooled, transformed, opened)
            dropped = highway if kept is None else highway * kept
            log_p = torch.addmm(output_bias, dropped, output).log_softmax(1)
        penalty = torch.cat([output.flatten(), output_bias]).square().sum()
        ctx.layout, ctx.l2 = layout, l2
        ctx.save_for_backward(
            *(sequences, real, kept, embedding, read, packed, place, pooled, opened, transformed, dropped, log_p),
            *(transform, gate, output, output_bias),
        )
        return torch.add(F.nll_loss(log_p, real), penalty, alpha=l2 / 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        layout, aten = ctx.layout, torch.ops.aten
        sequences, real, kept, embedding, read, packed, place, pooled, opened, transformed, dropped, log_p = (
            ctx.saved_tensors[:12]
        )
        transform, gate, output, output_bias = ctx.saved_tensors[12:]
        (batch, length), places, width = sequences.shape, len(layout.reads), embedding.shape[1]
        with tf32():
            up = log_p.exp().sub_(F.one_hot(real, 2)) * (grad / batch)  # at the logits
            to_output = torch.addcmul(dropped.t() @ up, output, grad, value=ctx.l2)
            to_output_bias = torch.addcmul(up.sum(0), output_bias, grad, value=ctx.l2)
            up = up @ output.t()  # at the highway's end
            up = up if kept is None else up.mul_(kept)
            at_gate = aten.sigmoid_backward(up * (transformed - pooled), opened)
            through = up * opened
            at_transform = aten.threshold_backward(through, transformed, 0)
            to_gate, to_transform = pooled.t() @ at_gate, pooled.t() @ at_transform
            up = up.sub_(through).addmm_(at_transform, transform.t()).addmm_(at_gate, gate.t())
            up = aten.threshold_backward(up, pooled, 0)  # at the pooled features

            # Each kernel passes its gradient to the place where it found most.
            at_places = read.new_zeros(places, batch, layout.features).scatter_(0, place[None], up[None])
            to_packed, step = torch.empty_like(packed), (length + 1) * width
            to_read = read.new_zeros(places * batch, step)
            for rows, columns, numbers, shape in layout.groups:
                taken = at_places.view(-1, layout.features)[: rows * batch, columns]
                torch.mm(read[: rows * batch, : shape[0]].t(), taken, out=to_packed[numbers].view(shape))
                to_read[: rows * batch, : shape[0]].addmm_(taken, packed[numbers].view(shape).t())
            # Row (p, b) holds what tokens p, p+1, … of sequence b get, then zeros, at least one of them. Reading row p
            # from p tokens earlier lines up equal tokens; what is read of the row before is its zeros.
            strides = batch * step - width, step, width, 1
            to_tokens = to_read.as_strided((places, batch, length, width), strides).sum(0)
            # Sums in sorted order, as indexing's own backward does: the same numbers every time, and no look at them.
            to_embedding = torch.zeros_like(embedding)
            aten._index_put_impl_(to_embedding, [sequences], to_tokens, accumulate=True, unsafe=True)
            to_kernels = to_packed[layout.unpack].split(layout.sizes)
        to_kernels = [x.view(-1, kernels) for x, kernels in zip(to_kernels, layout.counts, strict=True)]
        to_head = up.sum(0), to_transform, at_transform.sum(0), to_gate, at_gate.sum(0), to_output, to_output_bias
        return *[None] * 5, to_embedding, *to_head, *to_kernels
