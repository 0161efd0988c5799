"""Randomness: devices, generators, and exact draws from a row of logits."""

import os
import re

import torch
from torch import Tensor, nn

_ONE_LEVEL = 2**16  # so few weights are drawn from in one level on a CPU


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to work on; ``"auto"`` is CUDA where there is a GPU. ValueError for one that is not to be had here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|cuda)(:\d+)?", str(device)):
        raise ValueError(f'no device "{device}"; use device="auto", "cpu", "cuda", or "cuda:1", a second GPU')
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


def draw(logits: Tensor, uniform: Tensor, shift: bool = True) -> Tensor:
    """Draw tokens from softmax(logits), row by row, by inverting the cumulative distribution in two levels.

    The weights are summed in some √V blocks; the number picks a block, and only that is summed token by token. Few
    weights on a CPU are all summed at once: there the number of calls counts, not the work.

    ``logits`` (rows, vocabulary) need not be normalised; −inf marks a token that cannot be drawn. On a CPU they are
    overwritten, which saves a pass over memory. ``uniform``, float64 in [0, 1), is all the randomness used: (rows,) for
    one token a row, (rows, k) for k independent ones. Returns int64 tokens of its shape. FloatingPointError (on the
    CPU, where a look is free) for a row of logits that is no distribution. Without ``shift`` the largest logit is not
    subtracted first, which saves two passes, and the error is also raised where that would have been needed.
    """
    rows, vocabulary = logits.shape
    if logits.is_cuda:
        weights = logits.softmax(1)  # one kernel, for three
    else:
        weights = (logits.sub_(logits.amax(1, keepdim=True)) if shift else logits).exp_()
    if logits.device.type == "cpu" and weights.numel() <= _ONE_LEVEL:
        ends = weights.cumsum(1, dtype=torch.float64)
        _check_sums(ends[:, -1:])
        return torch.searchsorted(ends, uniform.view(rows, -1) * ends[:, -1:], right=True).view_as(uniform)

    width = max(1, round((2 * vocabulary) ** 0.5))  # a little over √V: a block's sum is cheaper than its gather
    full = vocabulary // width
    sums = weights[:, : full * width].unflatten(1, (full, width)).sum(-1)
    if full * width < vocabulary:  # the last block is shorter
        sums = torch.cat([sums, weights[:, full * width :].sum(1, keepdim=True)], 1)
    blocks = nn.functional.pad(sums.cumsum(1, dtype=torch.float64), (1, 0))  # where each block starts, and the end
    if logits.device.type == "cpu":
        _check_sums(blocks[:, -1:])
    target = uniform.view(rows, -1) * blocks[:, -1:]  # (rows, k), below the end: a double below 1 is ≤ 1 − 2⁻⁵³
    # The two clamps are for a GPU, where nobody looks: logits that are NaN may not become an index out of bounds.
    block = (torch.searchsorted(blocks, target, right=True) - 1).clamp_(max=blocks.shape[1] - 2)
    target -= blocks.gather(1, block)

    token = block[..., None] * width + torch.arange(width, device=logits.device)  # (rows, k, width)
    if full * width < vocabulary:
        inside = weights.gather(1, token.clamp(max=vocabulary - 1).flatten(1)).view_as(token)
        inside = inside.masked_fill_(token >= vocabulary, 0)
    else:
        inside = weights.gather(1, token.flatten(1)).view_as(token)
    inside = inside.cumsum(-1, dtype=torch.float64)
    # A block's float32 sum may exceed that of its tokens; what lies beyond their end belongs to the last with weight.
    target = torch.minimum(target[..., None], inside[..., -1:] * (1 - 2**-53))
    place = torch.searchsorted(inside, target, right=True).squeeze(-1)
    return (block * width + place).clamp_(max=vocabulary - 1).view_as(uniform)


def _check_sums(sums: Tensor) -> None:
    if not ((sums > 1e-20) & sums.isfinite()).all():
        raise FloatingPointError("logits hold NaN or +inf, or a row of -inf alone: there is nothing to draw from")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on ``device``; a cautious 2 GB where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {})  # macOS and Windows do not say
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 2 * 2**30
