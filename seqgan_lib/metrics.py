"""How good is a generator? Two directions of the same cross-entropy, in nats per token."""

from __future__ import annotations

import torch

from .language_model import LanguageModel

__all__ = ["divergence_by_position", "mean_nll", "nll_oracle"]


@torch.no_grad()
def mean_nll(model: LanguageModel, sequences: torch.Tensor) -> float:
    """What ``sequences`` (batch, time) int64 cost under ``model``: the mean of −log p, nats per token.

    With the generator as model and oracle sequences it never trained on, this is the held-out NLL.
    """
    return -model.log_probs(sequences).double().mean().item()


def nll_oracle(
    model: LanguageModel,
    oracle: LanguageModel,
    *,
    length: int,
    generator: torch.Generator,
    count: int = 10_000,
    temperature: float = 1.0,
) -> float:
    """What the model's own ``count`` sequences of ``length`` cost under the oracle, nats per token.

    The paper's yardstick (Eq. 13, printed per token). The oracle's own sequences set the floor: its entropy. A model
    can fall below that floor by writing a few likely sequences again and again, so never read this number alone.
    """
    written = model.sample(count, length, generator=generator, temperature=temperature)
    return mean_nll(oracle, written.to(oracle.device))


@torch.no_grad()
def divergence_by_position(p: LanguageModel, q: LanguageModel, sequences: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of the next token at every position, (time,) float64 in nats, averaged over the given pasts.

    ``sequences`` (batch, time) say which pasts: the oracle's for teacher forcing, the model's own for free running.
    The divergence of two softmaxes is a sum over the vocabulary, so nothing is sampled at the step itself.
    """
    total = torch.zeros(sequences.shape[1], dtype=torch.float64, device=sequences.device)
    for part in sequences.split(max(1, 2**22 // (sequences.shape[1] * p.vocabulary))):
        log_p, log_q = p(part).log_softmax(-1), q(part).log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum(0)
    return total / len(sequences)
