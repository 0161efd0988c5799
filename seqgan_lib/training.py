"""What every training needs: epochs, a stop by hand, and weights that no number spoils which is not finite."""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn, optim

from .checks import NotFinite, check_finite
from .graphs import Graphed
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
    loss_of: Callable[..., Tensor],
    data: Sequence[Tensor],
    optimiser: optim.Optimizer,
    generator: Generator,
    batch_size: int,
    clip: float = float("inf"),
    quantity: str = "the loss",
    streams: Sequence[Generator] = (),
) -> float:
    """One epoch over the rows of ``data`` in a new order; returns the mean loss, or raises NotFinite.

    ``loss_of`` gives the mean loss of a batch, so many rows of each of ``data``; ``clip`` is the largest gradient norm
    of a step, and ``streams`` are the random streams that ``loss_of`` draws from.
    """
    count = len(data[0])
    order = torch.randperm(count, generator=generator, device=generator.device).to(data[0].device)
    step, total = graphed_step(loss_of, optimiser, clip, streams), torch.zeros((), device=order.device)
    for batch in zip(*(x[order].split(batch_size) for x in data), strict=True):
        total += step(*batch) * len(batch[0])  # no .item() here: the host must not wait for every step
    check_finite(total, quantity)
    return total.item() / count


def graphed_step(
    loss_of: Callable[..., Tensor], optimiser: optim.Optimizer, clip: float, streams: Sequence[Generator]
) -> Graphed:
    """One step of ``optimiser`` on ``loss_of(*batch)``, which it returns. Kept with the optimiser, as its state is."""
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    what = (loss_of, clip, *streams)
    kept = getattr(optimiser, "_graphed_step", None)
    if kept is not None and kept[0] == what:
        return kept[1]

    def step(*batch: Tensor) -> Tensor:
        loss = loss_of(*batch)
        optimiser.zero_grad()
        loss.backward()
        if clip < float("inf"):
            nn.utils.clip_grad_norm_(weights, clip)
        optimiser.step()
        return loss.detach()

    graphed = Graphed(step, weights[0].device, lambda: baked(optimiser), lambda: streams)
    optimiser._graphed_step = what, graphed
    return graphed


def baked(optimiser: optim.Optimizer, *others: nn.Module) -> Hashable:
    """What a recorded step of ``optimiser`` holds: its learning rates, and where its weights and its state are."""
    for group in optimiser.param_groups:
        group["capturable"] = group["params"][0].is_cuda  # what PyTorch wants to hear before it records
    tensors = [p for group in optimiser.param_groups for p in group["params"]]
    tensors += [x for state in optimiser.state.values() for x in state.values()]
    tensors += [p for module in others for p in module.parameters()]
    return *(group["lr"] for group in optimiser.param_groups), *(x.data_ptr() for x in tensors)
