"""Time the library against the loops that public versions of SeqGAN use: `make bench`.

Both sides run in one process, in turn, so that a machine whose speed drifts drifts for both. Printed are the medians
and the median of the ratios, pair by pair. Sizes are the paper's: vocabulary 5000, T 20, batch 64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from seqgan_lib import LanguageModel, new_generator

VOCABULARY, LENGTH, BATCH = 5_000, 20, 64


class Textbook(nn.Module):
    """The generator as it is usually written: embedding, nn.LSTM, a linear layer over the flattened positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.linear = nn.Linear(32, VOCABULARY)
        self.log_softmax = nn.LogSoftmax(dim=-1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.log_softmax(self.linear(self.lstm(self.embedding(inputs))[0].reshape(-1, 32)))

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Step the LSTM in batches of 64, softmax, torch.multinomial."""
        batches = []
        for _ in range(0, count, BATCH):
            token, state, tokens = torch.zeros(BATCH, 1, dtype=torch.int64), None, []
            for _ in range(LENGTH):
                out, state = self.lstm(self.embedding(token), state)
                token = torch.multinomial(self.linear(out.squeeze(1)).softmax(-1), 1)
                tokens.append(token)
            batches.append(torch.cat(tokens, 1))
        return torch.cat(batches)


def textbook_step(batch: torch.Tensor) -> Callable[[], None]:
    model, criterion = Textbook(), nn.NLLLoss()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = torch.cat([torch.zeros(BATCH, 1, dtype=torch.int64), batch[:, :-1]], 1)

    def step() -> None:
        adam.zero_grad()
        criterion(model(inputs), batch.reshape(-1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        adam.step()

    return step


def library_step(batch: torch.Tensor) -> Callable[[], None]:
    model = LanguageModel(VOCABULARY, generator=new_generator(0))
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(weights, lr=0.01, fused=True)  # as train_mle has it

    def step() -> None:
        adam.zero_grad()
        model.nll(batch).backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        adam.step()

    return step


def seconds(work: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat


def compare(name: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int, repeat: int) -> None:
    """``rounds`` times in turn; each side does the same amount of work, ``repeat`` times a round."""
    usual(), ours()  # warm up
    times = [(seconds(usual, repeat), seconds(ours, repeat)) for _ in range(rounds)]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(u / o for u, o in times)
    print(f"{name:<34}{1e3 * before:>10.1f} ms{1e3 * after:>10.1f} ms{ratio:>8.1f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000, help="how many to generate (default: all 10 000)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    count = args.sequences
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, median of {args.rounds} rounds in turn")
    print(f"{'':<34}{'usual':>13}{'library':>13}{'ratio':>8}")
    generator = new_generator(0)
    usual, ours = Textbook(), LanguageModel(VOCABULARY, generator=generator)
    batch = ours.sample(BATCH, LENGTH, generator=generator)
    compare("MLE step, batch 64", textbook_step(batch), library_step(batch), 3 * args.rounds, 10)
    compare(
        f"{count} sequences of {LENGTH}",
        lambda: usual.sample(count),
        lambda: ours.sample(count, LENGTH, generator=generator),
        args.rounds,
        1,
    )


if __name__ == "__main__":
    main()
