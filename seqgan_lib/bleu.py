"""BLEU and self-BLEU on token sequences: the references are counted once, then a hypothesis costs next to nothing."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .checks import check_at_least, check_tokens


class Bleu:
    """Sentence BLEU of sequences against all of ``references`` (references, T) int64: ``bleu(sequences)``, in [0, 1].

    The geometric mean of the clipped precisions of 1- to ``order``-grams, smoothed by method 1 of Chen and Cherry
    (2014), times the brevity penalty: NLTK's ``sentence_bleu`` with equal weights and ``SmoothingFunction().method1``.
    The k-th time that an n-gram occurs in a hypothesis counts if some reference has it k times. So the references are
    reduced, once, to the set of pairs (n-gram, k), each with the number of references that have it; scoring looks them
    up. Raises ValueError for empty references and for hypotheses longer than the references.
    """

    def __init__(self, references: Tensor, order: int = 4) -> None:
        check_at_least(order, 1, "order")
        check_tokens(references.cpu() if isinstance(references, Tensor) else references, 2**31, "references")
        self.order, self.length = order, references.shape[1]
        self._grams, self._pairs = [], []  # for n = 1 … order: sorted n-grams; sorted pairs, and how many have each
        codes = references
        for n in range(1, min(order, self.length) + 1):
            if n > 1:  # an n-gram is the number of its first n−1 tokens' gram, and one token more
                codes = self._number(codes, n - 1)[:, :-1] * 2**31 + references[:, n - 1 :]
            self._grams.append(codes.unique())
            self._pairs.append(self._with_occurrence(self._number(codes, n))[0].unique(return_counts=True))

    def __call__(self, sequences: Tensor) -> Tensor:
        """BLEU of each row of ``sequences`` (batch, time ≤ T) int64: (batch,) float64."""
        return self._scores(sequences, [self.order])[self.order]

    def scores(self, sequences: Tensor) -> dict[int, Tensor]:
        """BLEU of every order from 1 to ``order``, each (batch,), for the price of the highest."""
        return self._scores(sequences, range(1, self.order + 1))

    def known(self, sequences: Tensor) -> Tensor:
        """Which ``order``-grams of ``sequences`` (batch, time) stand in some reference: (batch, time − order + 1) bool.

        Raises ValueError for sequences or references shorter than ``order``.
        """
        check_tokens(sequences, 2**31)
        if min(self.length, sequences.shape[1]) < self.order:
            raise ValueError(
                f"n-grams of {self.order} tokens do not fit in sequences of {sequences.shape[1]} and references of "
                f"{self.length}"
            )
        codes = sequences
        for n in range(1, self.order):
            codes = self._longer(codes, n, sequences)
        return self._number(codes, self.order) >= 0

    def _longer(self, codes: Tensor, n: int, sequences: Tensor) -> Tensor:
        """The codes of the (n+1)-grams from those of the n-grams, −1 where there can be none in the references."""
        before = self._number(codes, n)[:, :-1]
        return torch.where(before < 0, -1, before * 2**31 + sequences[:, n:])

    def _number(self, codes: Tensor, n: int) -> Tensor:
        """The place of each code among the references' n-grams, and −1 for those that no reference has."""
        grams = self._grams[n - 1]
        place = torch.searchsorted(grams, codes.contiguous()).clamp(max=len(grams) - 1)
        return torch.where(grams[place] == codes, place, -1)

    def _with_occurrence(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's pairs (n-gram, how often it occurred up to here) as one number each, and the sorted n-grams."""
        numbers = numbers.sort(1).values
        column = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
        first = torch.ones_like(numbers, dtype=torch.bool)
        first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        begin = torch.where(first, column, 0).cummax(1).values
        return numbers * self.length + (column - begin), numbers

    def _scores(self, sequences: Tensor, orders: Iterable[int], at_least: int = 1) -> dict[int, Tensor]:
        """BLEU of each of ``orders``, where a pair counts if at least so many references have it."""
        check_tokens(sequences, 2**31)
        batch, length = sequences.shape
        if length > self.length:
            raise ValueError(f"hypotheses of {length} tokens are longer than the references of {self.length}")
        nothing = torch.zeros(batch, dtype=torch.float64, device=sequences.device)
        log_precisions, codes = [], sequences
        for n in range(1, self.order + 1):
            matches, total = nothing, max(1, length - n + 1)
            if n <= length:
                if n > 1:
                    codes = self._longer(codes, n - 1, sequences)
                pairs, numbers = self._with_occurrence(self._number(codes, n))
                known, owners = self._pairs[n - 1]
                place = torch.searchsorted(known, pairs).clamp(max=len(known) - 1)
                found = (numbers >= 0) & (known[place] == pairs) & (owners[place] >= at_least)
                matches = found.sum(1).double()
            # Where no n-gram matches, pretend that a tenth of one did; but without a token in common BLEU is 0.
            smoothed = torch.where(matches == 0, 0.0 if n == 1 else 0.1, matches)
            log_precisions.append(smoothed.div(total).log())
        brevity = math.exp(1 - self.length / length)  # of hypotheses shorter than the references
        return {k: brevity * sum((p / k for p in log_precisions[:k]), nothing).exp() for k in orders}


def self_bleu(sequences: Tensor, order: int = 4) -> Tensor:
    """BLEU of each of ``sequences`` (batch ≥ 2, T) int64 against the *others*: (batch,); less is more diverse."""
    return self_bleu_scores(sequences, order)[order]


def self_bleu_scores(sequences: Tensor, order: int = 4) -> dict[int, Tensor]:
    """Self-BLEU of every order from 1 to ``order``, for the price of the highest."""
    check_at_least(len(sequences), 2, "self-BLEU's number of sequences")
    return Bleu(sequences, order)._scores(sequences, range(1, order + 1), at_least=2)
