"""Randomness: devices, generators, and exact draws from a row of logits."""

import os

import torch
from torch import Tensor


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to work on; ``"auto"`` is CUDA where there is a GPU. ValueError for CUDA on a machine without it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device="{device}" was asked for, but PyTorch sees no GPU here; use device="auto" or "cpu"')
    return device


def new_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A seeded random stream, which all drawing here takes; one on the CPU serves a model on the GPU too."""
    return torch.Generator(resolve_device(device)).manual_seed(seed)


def stream_on(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """``generator`` itself if it is on that kind of device, else a new stream there, seeded by a draw from it.

    A training draws where its model is: numbers made on the CPU would be copied, and waited for, at every step.
    """
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token a row from softmax(logits), by inverting the cumulative distribution in two levels.

    The weights are summed in some √V blocks; the number picks a block, and only that is summed token by token.

    ``logits`` (rows, vocabulary) need not be normalised; −inf marks a token that cannot be drawn. ``uniform`` (rows,),
    float64 in [0, 1), is all the randomness used. Returns (rows,) int64 tokens. FloatingPointError (on the CPU, where a
    look is free) for a row of logits that is no distribution.
    """
    vocabulary = logits.shape[1]
    width = max(1, round((2 * vocabulary) ** 0.5))  # a little over √V: a block's sum is cheaper than its gather
    full = vocabulary // width
    weights = (logits - logits.amax(1, keepdim=True)).exp_()

    sums = weights[:, : full * width].unflatten(1, (full, width)).sum(-1)
    if full * width < vocabulary:  # the last block is shorter
        sums = torch.cat([sums, weights[:, full * width :].sum(1, keepdim=True)], 1)
    blocks = sums.double().cumsum(1)
    if logits.device.type == "cpu" and not blocks[:, -1].isfinite().all():
        raise FloatingPointError("logits hold NaN or +inf, or a row of -inf alone: there is nothing to draw from")
    target = _below(uniform[:, None] * blocks[:, -1:], blocks[:, -1:])
    block = (blocks <= target).sum(1, keepdim=True)
    target -= torch.nn.functional.pad(blocks, (1, 0)).gather(1, block)

    token = block * width + torch.arange(width, device=logits.device)
    inside = weights.gather(1, token.clamp(max=vocabulary - 1)).masked_fill(token >= vocabulary, 0).double().cumsum(1)
    target = _below(target, inside[:, -1:])
    return (block * width + (inside <= target).sum(1, keepdim=True)).squeeze(1)


def _below(value: Tensor, limit: Tensor) -> Tensor:
    """``value``, kept under ``limit`` where rounding would let it touch: so a draw never runs past the last token."""
    return torch.minimum(value, torch.nextafter(limit, torch.zeros_like(limit)))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on ``device``; a cautious 2 GB where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {})  # macOS and Windows do not say
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 2 * 2**30
