"""How good is a generator? Graded by the oracle, and where there is none by lines that it has not seen."""

import torch
from torch import Generator, Tensor

from .bleu import Bleu, self_bleu_scores
from .checks import check_at_least, check_tokens
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


# ---------------------------------------------------------------- lines, where there is no oracle


class LineGrader:
    """Grades a generator, or lines whoever wrote them, by ``held_out`` lines and by the lines it was trained on.

    Both (lines, T) int64. ``pitches`` says that tokens are pitches, whose difference means something.
    """

    def __init__(self, train: Tensor, held_out: Tensor, pitches: bool = False) -> None:
        self.held_out, self.pitches = held_out, pitches
        order = min(4, train.shape[1])
        self._references, self._learned = Bleu(held_out, order), Bleu(train, order)
        self._lines = {tuple(line) for line in train.tolist()}

    def __call__(self, model: LanguageModel, *, generator: Generator) -> dict[str, float]:
        """The numbers to watch together, of as many new lines as are held out.

        ``held_out``: what the held-out lines cost the model; ``entropy``: what its own cost it, both in nats per token;
        and what :meth:`compare` says of its own.
        """
        own = model.sample(*self.held_out.shape, generator=generator)
        costs = {"held_out": mean_nll(model, self.held_out), "entropy": mean_nll(model, own)}
        return costs | self.compare(own)

    def compare(self, lines: Tensor) -> dict[str, float]:
        """What ``lines`` (at least 2, T) int64 are like, whoever wrote them; means over the lines.

        - ``distinct``, ``distinct_2``, ``distinct_3``: the share of different ones among the lines, and among their
          pairs and triples of tokens, from above 0 to 1. They fall as there are more lines.
        - ``bleu_2``, ``bleu_3``, ``bleu_4``: BLEU against all held-out lines, as in the paper; more is more like them.
        - ``self_bleu_2`` …: of each line against the others; more is less diverse.
        - ``copied``: the share of lines that are training lines, token by token.
        - ``overlap_4``: the share of 4-grams that stand in some training line; of shorter lines there is none.
        - ``squared_error``, of pitches: see :func:`squared_error`, in semitones².
        """
        orders = range(2, self._references.order + 1)
        bleu = self._references.scores(lines)
        others = self_bleu_scores(lines, self._references.order)
        row = {"distinct": distinct_ngrams(lines, lines.shape[1])}
        row |= {f"distinct_{n}": distinct_ngrams(lines, n) for n in (2, 3) if n <= lines.shape[1]}
        row |= {f"bleu_{n}": bleu[n].mean().item() for n in orders}
        row |= {f"self_bleu_{n}": others[n].mean().item() for n in orders}
        row["copied"] = sum(tuple(line) in self._lines for line in lines.tolist()) / len(lines)
        if self._learned.order == 4:
            row["overlap_4"] = self._learned.known(lines).double().mean().item()
        if self.pitches:
            row["squared_error"] = squared_error(lines, self.held_out).mean().item()
        return row


def distinct_ngrams(lines: Tensor, n: int) -> float:
    """The share of different n-grams among all of ``lines`` (lines, T) int64: distinct-n of Li et al. (2016)."""
    check_at_least(n, 1, "n")
    check_tokens(lines, 2**31)
    if n > lines.shape[1]:
        raise ValueError(f"n-grams of {n} tokens do not fit in lines of {lines.shape[1]}")
    codes = lines
    for k in range(1, n):  # the number of the k-gram among all, and one token more
        codes = codes.unique(return_inverse=True)[1][:, :-1] * 2**31 + lines[:, k:]
    return len(codes.unique()) / codes.numel()


def squared_error(lines: Tensor, references: Tensor) -> Tensor:
    """How far each of ``lines`` is from the nearest of ``references``, both (lines, T): (lines,), tokens squared.

    The distance is the mean over the positions of the squared difference. With pitches for tokens this is our reading
    of the mean squared error in the paper's table for music, which it does not define. ValueError for lines of another
    length than the references.
    """
    if lines.shape[1] != references.shape[1]:
        raise ValueError(f"lines of {lines.shape[1]} tokens have no distance to references of {references.shape[1]}")
    theirs = references.double()
    nearest = torch.cat([torch.cdist(part.double(), theirs).amin(1) for part in lines.split(1_000)])
    return nearest.square() / lines.shape[1]


def nearest_lines(lines: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of ``references`` (references, T) to each of ``lines``, and how far it is, both (lines,) int64.

    The distance is Levenshtein's: how many tokens must be put in, left out or replaced to make one of the other. Of
    references that are equally near, the first. ValueError for lines of more than 63 tokens.
    """
    for tokens, name in ((lines, "lines"), (references, "references")):
        check_tokens(tokens, 2**31, name)
    length = lines.shape[1]
    if length > 63:
        raise ValueError(f"lines of {length} tokens are too long; up to 63 fit into the bits of a number")
    # Myers (1999), as put by Hyyrö: a column of the table of distances is kept as two bits a row, which say whether it
    # is one more (up) or one less (down) than the row above. A whole column is then a handful of operations.
    size = int(max(lines.max(), references.max())) + 1
    bits = 2 ** torch.arange(length, device=lines.device)
    full, last = 2 * int(bits[-1]) - 1 if length < 63 else 2**63 - 1, int(bits[-1])
    nearest, distances = [], []
    columns = references.t().contiguous()
    for line in lines:
        places = torch.zeros(size, dtype=torch.int64, device=lines.device).index_add_(0, line, bits)
        up = torch.full_like(columns[0], full)
        down, distance = torch.zeros_like(up), torch.full_like(up, length)
        for column in columns:
            same = places[column]
            diagonal = ((((same & up) + up) ^ up) | same | down) & full
            right, left = (down | ~(diagonal | up)) & full, up & diagonal
            distance += (right & last != 0).long() - (left & last != 0).long()
            right = (right << 1 | 1) & full
            up, down = ((left << 1) | ~(diagonal | right)) & full, right & diagonal
        distance, place = distance.min(0)
        nearest.append(place)
        distances.append(distance)
    return torch.stack(nearest), torch.stack(distances)
