"""Maximum likelihood: make the training data likely, with the true past (teacher forcing) or a mixed one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from .checks import check_at_least, check_positive, check_tokens
from .history import History
from .language_model import LanguageModel

__all__ = ["TrainingDiverged", "scheduled_inputs", "train_mle"]


class TrainingDiverged(ArithmeticError):
    """A loss that is no longer a finite number."""


def scheduled_inputs(
    model: LanguageModel, sequences: torch.Tensor, omega: float, *, generator: torch.Generator
) -> torch.Tensor:
    """What the model reads under scheduled sampling: each true token with probability ω, else its own draw.

    ``sequences`` (batch, time) int64 → inputs (batch, time), the start token first. The targets stay the true tokens,
    and no gradient flows through a draw (Bengio et al. 2015, section 2.4).
    """
    return model.shift(model.mix(sequences, omega, generator=generator))


def train_mle(
    model: LanguageModel,
    data: torch.Tensor,
    *,
    epochs: int,
    generator: torch.Generator,
    batch_size: int = 64,
    learning_rate: float = 0.01,
    clip: float = 5.0,
    omega_decay: float = 0.0,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    progress: bool = True,
) -> History:
    """Train ``model`` in place on ``data`` (sequences, time) int64 with Adam, a new shuffle every epoch.

    Defaults are the published code's, which however never shuffles and keeps no scheduled sampling.

    Args:
        clip: the largest gradient norm a step may have.
        omega_decay: scheduled sampling's rate ω is max(0, 1 − omega_decay · epoch), epochs from 0; the paper has 0.002.
            0 is teacher forcing throughout.
        evaluate: given the model, returns named numbers for the history: before the first epoch, then every
            ``evaluate_every`` epochs and after the last.
        progress: show a bar with the time left.

    Returns:
        A history with ``epoch``, ``loss`` (mean training NLL of that epoch, nats per token) and what ``evaluate`` gave.
        Interrupting it (Ctrl-C, or the stop button of a notebook) returns the history so far.

    Raises:
        ValueError: for data or settings outside what is allowed.
        TrainingDiverged: if the loss stops being finite, naming the epoch.
    """
    check_tokens(data, model.vocabulary, "data")
    for value, name in ((epochs, "epochs"), (batch_size, "batch_size"), (evaluate_every, "evaluate_every")):
        check_at_least(value, 1, name)
    check_positive(learning_rate, "learning_rate")
    check_positive(clip, "clip")
    if omega_decay < 0:
        raise ValueError(f"omega_decay lowers ω by this much an epoch and must be at least 0, but is {omega_decay!r}")

    data = data.to(model.device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=learning_rate, fused=True)
    history = History()

    def record(epoch: int, **row: float) -> None:
        history.append(epoch=epoch, **row, **(evaluate(model) if evaluate else {}))

    bar = tqdm(range(1, epochs + 1), desc="MLE", unit="epoch", disable=not progress, leave=False)
    try:
        record(0)
        for epoch in bar:
            omega = max(0.0, 1 - omega_decay * (epoch - 1))
            order = torch.randperm(len(data), generator=generator, device=generator.device).to(data.device)
            total = torch.zeros((), device=data.device)
            for rows in order.split(batch_size):
                batch = data[rows]
                inputs = None if omega == 1 else scheduled_inputs(model, batch, omega, generator=generator)
                loss = model.nll(batch, inputs)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, clip)
                optimiser.step()
                total += loss.detach() * len(batch)  # no .item() here: the host must not wait for every step
            mean = total.item() / len(data)
            if not mean < float("inf"):
                raise TrainingDiverged(f"the loss was {mean} in epoch {epoch}; lower learning_rate={learning_rate}")
            bar.set_postfix(loss=f"{mean:.3f}")
            if epoch % evaluate_every == 0 or epoch == epochs:
                record(epoch, loss=mean)
    except KeyboardInterrupt:
        print(f"stopped by hand; the history holds {len(history)} evaluations")
    return history
