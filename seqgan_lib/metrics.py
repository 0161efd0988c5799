"""How good is a generator? Both directions of its cross-entropy with the oracle, in nats per token."""

import torch
from torch import Generator, Tensor

from .checks import check_tokens
from .language_model import LanguageModel

_LOGITS_AT_ONCE = 2**22  # for each of two models: 16 MB in float32


@torch.no_grad()
def mean_nll(model: LanguageModel, sequences: Tensor) -> float:
    """What ``sequences`` (batch, time) int64 cost under ``model``: the mean of −log p, nats per token."""
    return -model.log_probs(sequences).double().mean().item()


def grade(model: LanguageModel, oracle: LanguageModel, held_out: Tensor, *, generator: Generator) -> dict[str, float]:
    """The numbers to watch together, from as many new sequences as ``held_out`` has; NLLs in nats per token.

    - ``nll_oracle``: what the model's own sequences cost the oracle (the paper's Eq. 13, printed per token).
    - ``held_out``: what ``held_out`` (sequences, time) int64, the oracle's and never trained on, costs the model.
    - ``entropy``: what the model's own sequences cost the model.
    - ``distinct``: the share of different sequences among the model's own, from above 0 to 1.

    nll_oracle − entropy is KL(model ‖ oracle); held_out less the oracle's own entropy is KL(oracle ‖ model). A model
    that writes a few likely sequences again and again has a low nll_oracle: never read it alone.
    """
    own = model.sample(*held_out.shape, generator=generator)
    costs = mean_nll(oracle, own), mean_nll(model, held_out), mean_nll(model, own)
    names = ("nll_oracle", "held_out", "entropy", "distinct")
    return dict(zip(names, (*costs, len(own.unique(dim=0)) / len(own)), strict=True))


@torch.no_grad()
def divergence_by_position(p: LanguageModel, q: LanguageModel, sequences: Tensor) -> Tensor:
    """KL(p ‖ q) of the next token at every position, (time,) float64 in nats, averaged over the given pasts.

    ``sequences`` (batch, time) say which pasts: the oracle's for teacher forcing, the model's own for free running.
    """
    check_tokens(sequences, p.vocabulary)
    total = torch.zeros(sequences.shape[1], dtype=torch.float64, device=sequences.device)
    for part in sequences.split(max(1, _LOGITS_AT_ONCE // (sequences.shape[1] * p.vocabulary))):
        log_p, log_q = p(part).log_softmax(-1), q(part).log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum(0)
    return total / len(sequences)
