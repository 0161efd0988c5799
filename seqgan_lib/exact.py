"""Tiny worlds: what the library estimates from samples, computed by summing over all V^T sequences instead."""

import math

import torch
from torch import Tensor

from .checks import check_at_least
from .language_model import LanguageModel


def all_sequences(vocabulary: int, length: int) -> Tensor:
    """Every sequence of ``length`` tokens, (V^T, T) int64, the last token turning fastest. ValueError if over 2^20."""
    check_at_least(vocabulary, 1, "vocabulary")
    check_at_least(length, 1, "length")
    if vocabulary**length > 2**20:
        raise ValueError(f"{vocabulary}^{length} sequences are too many to enumerate; {2**20} at most")
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * length).view(-1, length)


def distribution(model: LanguageModel, length: int) -> Tensor:
    """The probability of every sequence, in the order of :func:`all_sequences`: (V^T,), differentiable."""
    return model.log_probs(all_sequences(model.vocabulary, length).to(model.device)).sum(1).exp()


def objective(model: LanguageModel, rewards: Tensor) -> Tensor:
    """J(θ) = Σ_Y G_θ(Y) · reward(Y), a differentiable scalar; ``rewards`` (V^T,) for all sequences in their order."""
    probability = distribution(model, _length(model, rewards))
    return probability @ rewards.to(probability)


def gradient(model: LanguageModel, rewards: Tensor) -> list[Tensor]:
    """The exact ∇J, one tensor for each parameter that is trained, by autograd through the enumeration."""
    return list(torch.autograd.grad(objective(model, rewards), [p for p in model.parameters() if p.requires_grad]))


@torch.no_grad()
def exact_action_values(model: LanguageModel, rewards: Tensor) -> Tensor:
    """Q(Y_{1:t-1}, y_t) for every position of every sequence, (V^T, T), when ``model`` writes the rest.

    Column t is the mean reward of all sequences that begin with the tokens up to position t, weighted by their
    probability (the paper's Eq. 4 with N → ∞); the last column is the reward itself. Where a prefix is so unlikely that
    its probability is 0 in floating point, its value is NaN.
    """
    length, columns = _length(model, rewards), []
    probability = distribution(model, length)
    for t in range(1, length + 1):
        weight = probability.view(model.vocabulary**t, -1)  # one row for each prefix of t tokens
        values = (weight * rewards.view_as(weight)).sum(1) / weight.sum(1)
        columns.append(values.repeat_interleave(weight.shape[1]))
    return torch.stack(columns, 1)


def _length(model: LanguageModel, rewards: Tensor) -> int:
    """T, from the number of rewards, which must be V^T."""
    length = round(math.log(max(2, len(rewards)), max(2, model.vocabulary)))
    if rewards.shape != (model.vocabulary**length,) or length == 0:
        raise ValueError(f"rewards must be one for each of the {model.vocabulary}^T sequences, not {len(rewards)}")
    return length
