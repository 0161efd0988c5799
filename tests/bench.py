"""Time the library against the loops that public versions of SeqGAN use: `make bench`.

Both sides run in one process, in turn, so that a machine whose speed drifts drifts for both. Printed are the medians
and the median of the ratios, pair by pair. Sizes are the paper's: vocabulary 5000, T 20, batch 64.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from seqgan_lib import LanguageModel, new_generator
from seqgan_lib.adversarial import Game
from seqgan_lib.discriminator import PAPER_WINDOWS, Discriminator
from seqgan_lib.results import code_commit
from seqgan_lib.rollout import action_values
from seqgan_lib.training import graphed_step

VOCABULARY, LENGTH, BATCH, ROLLOUTS = 5_000, 20, 64, 16


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

    @torch.no_grad()
    def complete(self, prefix: torch.Tensor) -> torch.Tensor:
        """Read the prefix token by token and write the rest in the same way."""
        token, state, tokens = torch.zeros(len(prefix), 1, dtype=torch.int64), None, []
        for t in range(LENGTH):
            out, state = self.lstm(self.embedding(token), state)
            if t < prefix.shape[1]:
                token = prefix[:, t : t + 1]
            else:
                token = torch.multinomial(self.linear(out.squeeze(1)).softmax(-1), 1)
            tokens.append(token)
        return torch.cat(tokens, 1)


class TextbookJudge(nn.Module):
    """The discriminator as it is usually written: nn.Conv2d over (time, embedding), max_pool1d, highway, dropout."""

    def __init__(self) -> None:
        super().__init__()
        features = sum(kernels for _, kernels in PAPER_WINDOWS[LENGTH])
        self.embedding = nn.Embedding(VOCABULARY, 64)
        self.convolutions = nn.ModuleList(nn.Conv2d(1, n, (window, 64)) for window, n in PAPER_WINDOWS[LENGTH])
        self.transform, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        self.dropout, self.output = nn.Dropout(0.25), nn.Linear(features, 2)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(sequences).unsqueeze(1)
        found = [convolution(embedded).relu().squeeze(3) for convolution in self.convolutions]
        pooled = torch.cat([nn.functional.max_pool1d(f, f.shape[2]).squeeze(2) for f in found], 1)
        gate = self.gate(pooled).sigmoid()
        return self.output(self.dropout(gate * self.transform(pooled).relu() + (1 - gate) * pooled))


def textbook_rewards(batch: torch.Tensor, rollouts: int) -> Callable[[], torch.Tensor]:
    """For each roll-out and each prefix: run the prefix again, finish it, score it."""
    model, judge = Textbook(), TextbookJudge().eval()

    @torch.no_grad()
    def rewards() -> torch.Tensor:
        values = torch.zeros(LENGTH, BATCH)
        for _ in range(rollouts):
            for t in range(1, LENGTH):
                values[t - 1] += judge(model.complete(batch[:, :t])).softmax(1)[:, 1]
            values[LENGTH - 1] += judge(batch).softmax(1)[:, 1]
        return values.t() / rollouts

    return rewards


def library_rewards(batch: torch.Tensor) -> Callable[[], torch.Tensor]:
    generator = new_generator(0)
    model, judge = LanguageModel(VOCABULARY, generator=generator), new_judge()
    return lambda: action_values(model, batch, judge, rollouts=ROLLOUTS, generator=generator)


def new_judge() -> Discriminator:
    return Discriminator(VOCABULARY, LENGTH, generator=new_generator(0))


def textbook_judge_step(batch: torch.Tensor, real: torch.Tensor) -> Callable[[], None]:
    judge, criterion = TextbookJudge(), nn.CrossEntropyLoss()
    adam = torch.optim.Adam(judge.parameters(), lr=1e-4)

    def step() -> None:
        adam.zero_grad()
        criterion(judge(batch), real).backward()
        adam.step()

    return step


def library_judge_step(batch: torch.Tensor, real: torch.Tensor) -> Callable[[], None]:
    judge = new_judge()
    adam = torch.optim.Adam(judge.parameters(), lr=1e-4, fused=True)  # as Game has it

    def step() -> None:
        adam.zero_grad()
        judge.loss(batch, real).backward()
        adam.step()

    return step


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


def compare(
    name: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int, repeat: int, scale: float = 1
) -> None:
    """``rounds`` times in turn, ``repeat`` times a round each. The time of ``usual`` is multiplied by ``scale``."""
    usual(), ours()  # warm up
    times = [(seconds(usual, repeat) * scale, seconds(ours, repeat)) for _ in range(rounds)]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(u / o for u, o in times)
    print(f"{name:<34}{1e3 * before:>10.1f} ms{1e3 * after:>10.1f} ms{ratio:>8.1f} times", flush=True)


def milliseconds(work: Callable[[], object], repeat: int) -> float:
    """The median of ``repeat`` times on the GPU, each from one event to the next, after calls that warm up."""
    for _ in range(6 if repeat > 1 else 1):  # enough for a graph to be recorded
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeat + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False))


def cuda_work(count: int) -> list[tuple[str, Callable[[], object], int]]:
    """What to time at the paper's sizes, and how often."""
    generator = new_generator(0, "cuda")
    model, judge = LanguageModel(VOCABULARY, generator=generator).to("cuda"), new_judge().to("cuda").train()
    game = Game(model, judge, model.sample(count, LENGTH, generator=generator), generator=generator)
    batch, real = game.data[:BATCH].clone(), torch.arange(BATCH, device="cuda") % 2
    weights = [p for p in model.parameters() if p.requires_grad]
    adam, d_adam = (torch.optim.Adam(p, lr=1e-6, fused=True) for p in (weights, judge.parameters()))
    mle = graphed_step(model.nll, adam, 5.0, [])
    d_step = graphed_step(judge.loss, d_adam, float("inf"), [judge.stream])
    draws = {"rollouts": ROLLOUTS, "generator": generator}
    return [
        ("MLE step", lambda: mle(batch), 200),
        ("D step", lambda: d_step(batch, real), 200),
        ("rewards", lambda: action_values(model, batch, judge, **draws), 20),
        ("g-step", game._g_step, 20),
        (f"{count} sequences", lambda: model.sample(count, LENGTH, generator=generator), 20),
        ("round", game._round, 1),
    ]


def on_cuda(count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, with CUDA graphs and without."""
    results: dict[str, dict[str, float]] = {}
    for column in ("graphs", "plain"):
        os.environ["SEQGAN_NO_GRAPHS"] = "" if column == "graphs" else "1"
        for name, work, repeat in cuda_work(count):
            if column == "graphs" or name != "round":  # without graphs it is a quarter of a minute, and mostly D steps
                results.setdefault(name, {})[column] = milliseconds(work, repeat)
    for name, row in results.items():
        print(f"{name:<24}" + "".join(f"{value:>12.3f} ms" for value in row.values()), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000, help="how many to generate (default: all 10 000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--textbook-rollouts",
        type=int,
        choices=range(1, ROLLOUTS + 1),
        default=2,
        metavar="N",
        help=f"how many of the {ROLLOUTS} roll-outs the usual loop plays, its time being multiplied (default: 2)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the library alone, in ms")
    parser.add_argument("--out", type=Path, help="with --device cuda: add the numbers to the list in this JSON file")
    args = parser.parse_args()
    count = args.sequences
    if args.device == "cuda":
        device, torch_version = torch.cuda.get_device_name(), torch.__version__
        print(f"torch {torch_version}, {device}\n{'':<24}{'graphs':>15}{'without':>15}")
        report = {"commit": code_commit(), "device": device, "torch": torch_version, "milliseconds": on_cuda(count)}
        report |= {
            "peak_allocated": torch.cuda.max_memory_allocated(),
            "peak_reserved": torch.cuda.max_memory_reserved(),
        }
        print(
            f"peak memory: {report['peak_allocated'] / 2**30:.2f} GiB, {report['peak_reserved'] / 2**30:.2f} with spare"
        )
        if args.out:
            before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
            args.out.write_text(json.dumps([*before, report], indent=2) + "\n", encoding="utf-8")
        return
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
    played = args.textbook_rollouts
    compare(
        f"rewards, N {ROLLOUTS}" + (f" (usual: {played}, times {ROLLOUTS / played:g})" if played < ROLLOUTS else ""),
        textbook_rewards(batch, played),
        library_rewards(batch),
        args.rounds if played < ROLLOUTS else 1,
        1,
        scale=ROLLOUTS / played,
    )
    real = torch.arange(BATCH) % 2
    compare("D step, batch 64", textbook_judge_step(batch, real), library_judge_step(batch, real), args.rounds, 3)


if __name__ == "__main__":
    main()
