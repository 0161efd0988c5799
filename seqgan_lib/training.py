"""What every training needs: it can be stopped by hand, and a number that is not finite does not spoil the weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn, optim

from .checks import NotFinite
from .history import History


class TrainingDiverged(FloatingPointError):
    """A NaN or an infinity came up. The weights are those before ``step``; ``quantity`` says what was not finite.

    ``history`` holds the evaluations up to there.
    """

    def __init__(self, step: str, quantity: str, history: History) -> None:
        super().__init__(
            f"{quantity} not finite in {step}; weights and optimisers are back as they were before it. "
            "Lower the learning rate, or look at the data and the rewards"
        )
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
        quantity = error.quantity if isinstance(error, NotFinite) else "logits"  # draw() refuses those
        raise TrainingDiverged(step, quantity, history) from error
