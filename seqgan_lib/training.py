"""What every training needs: epochs, a stop by hand, and weights that no number spoils which is not finite."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn, optim

from .checks import NotFinite, check_finite
from .history import History


class TrainingDiverged(FloatingPointError):
    """A ``quantity`` was not finite in ``step``, which is undone; ``history`` holds the evaluations up to there."""

    def __init__(self, step: str, quantity: str, history: History) -> None:
        super().__init__(f"{quantity} not finite in {step}, which is undone; lower the learning rate, check the data")
        self.step, self.quantity, self.history = step, quantity, history


@contextmanager
def stoppable(history: History) -> Iterator[None]:
    """A training inside can be stopped by hand (Ctrl-C, a notebook's stop button) without losing its history."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped by hand; the history holds {len(history.rows)} evaluations")


@contextmanager
def keep_last_good(step: str, history: History, *parts: nn.Module | optim.Optimizer) -> Iterator[None]:
    """Do one ``step`` of a training; should it meet a number that is not finite, undo it and raise TrainingDiverged."""
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    try:
        yield
    except (NotFinite, FloatingPointError) as error:
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
        raise TrainingDiverged(step, getattr(error, "quantity", "logits"), history) from error  # draw() refuses those


def train_epoch(
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    optimiser: optim.Optimizer,
    generator: Generator,
    batch_size: int,
    clip: float = float("inf"),
    quantity: str = "the loss",
) -> float:
    """One epoch over ``count`` rows in a new order; returns the mean loss, or raises NotFinite.

    ``loss_of(rows)`` is the mean loss of these rows, ``clip`` the largest gradient norm of a step.
    """
    weights = optimiser.param_groups[0]["params"]
    order = torch.randperm(count, generator=generator, device=generator.device).to(weights[0].device)
    total = torch.zeros((), device=order.device)
    for rows in order.split(batch_size):
        loss = loss_of(rows)
        optimiser.zero_grad()
        loss.backward()
        if clip < float("inf"):
            nn.utils.clip_grad_norm_(weights, clip)
        optimiser.step()
        total += loss.detach() * len(rows)  # no .item() here: the host must not wait for every step
    check_finite(total, quantity)
    return total.item() / count
