"""What is each token worth? Action values by Monte Carlo roll-outs, and the policy that plays them."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .checks import check_at_least, check_finite, check_share, check_tokens
from .discriminator import Discriminator, judging
from .language_model import LanguageModel
from .sampling import free_memory

#: Whatever scores finished sequences, (batch, T) int64 → (batch,) in [0, 1]: a discriminator, or BLEU.
Judge = Callable[[Tensor], Tensor]


def action_values(
    policy: LanguageModel,
    sequences: Tensor,
    judge: Judge,
    *,
    rollouts: int = 16,
    generator: Generator,
    chunk: int | None = None,
) -> Tensor:
    """Q(Y_{1:t-1}, y_t) of every token of ``sequences`` (batch, T) int64, by roll-outs: (batch, T) float32.

    Column t scores the token at position t: the mean verdict of ``judge`` on ``rollouts`` completions of the tokens up
    to and including it, written by ``policy`` (Eq. 4 of the paper). The last column is the verdict on the sequence
    itself. With no roll-outs, ``rollouts=0``, that one verdict is every token's, as in plain REINFORCE. A judge that is
    a module rewards in evaluation mode, and is left in the mode it was in.

    ``chunk`` is how many sequences are rolled out at once, by default as many as fit into a quarter of the free memory.
    Raises ValueError for rollouts < 0, and for verdicts that are not one finite number in [0, 1] a sequence.
    """
    check_tokens(sequences, policy.vocabulary)
    check_at_least(rollouts, 0, "rollouts")
    sequences = sequences.to(policy.device)
    length = sequences.shape[1]
    if rollouts == 0:
        with judging(judge):
            return _judged(judge, sequences)[:, None].repeat(1, length)
    if chunk is None:
        chunk = fitting_chunk(policy, rollouts, length)
    check_at_least(chunk, 1, "chunk")
    values = []
    with judging(judge):
        for part in sequences.split(chunk):
            finished = policy.branch(part, rollouts, generator=generator)  # (T-1, batch, N, T)
            scores, own = _judged(judge, torch.cat([finished.flatten(0, 2), part])).tensor_split([-len(part)])
            values.append(torch.cat([scores.view(length - 1, len(part), rollouts).mean(2), own[None]]).t())
    return torch.cat(values)


def fitting_chunk(policy: LanguageModel, rollouts: int, length: int) -> int:
    """How many sequences can be rolled out at once within a quarter of the free memory."""
    return max(1, free_memory(policy.device) // (32 * max(1, rollouts) * length * (3 * length + 4 * policy.hidden)))


def _judged(judge: Judge, sequences: Tensor) -> Tensor:
    """The judge's verdicts, once they are what verdicts have to be."""
    scores = judge(sequences)
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (len(sequences),):
        raise ValueError(f"the judge must give one number a sequence, ({len(sequences)},), but gave {shape}")
    if scores.is_cuda and isinstance(judge, Discriminator):  # no look, which the host would wait for: it is a softmax
        return scores.float()
    check_finite(scores, "rewards")
    low, high = (x.item() for x in scores.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"the judge's verdicts run from {low:.3g} to {high:.3g}; probabilities, 0 to 1, not logits")
    return scores.float()


@torch.no_grad()
def update_policy(policy: LanguageModel, model: LanguageModel, rate: float = 0.8) -> None:
    """Let the roll-out policy follow the generator, in place: β ← rate · β + (1 − rate) · θ, embeddings copied whole.

    0.8 is the rate named in the published code (``rollout.py``); 0 is the paper's Algorithm 1, β ← θ.
    """
    check_share(rate, "rate")
    for (name, old), new in zip(policy.named_parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1.0 if name == "embedding" else 1 - rate)
