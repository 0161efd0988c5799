"""What every training needs: its loop, a stop by hand, and weights that no number spoils which is not finite."""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Generator, Tensor, nn, optim
from tqdm import tqdm

from .checks import NotFinite, check_at_least, check_finite
from .fused import own_kernels
from .graphs import Graphed
from .history import History

_SHOWN = ("loss", "d_accuracy", "nll_oracle")  # by the progress bar, beside the time left
#: What a training changes, and what a checkpoint has to hold: anything with a state.
Part = nn.Module | optim.Optimizer | Generator


class TrainingDiverged(FloatingPointError):
    """A ``quantity`` was not finite in ``step``, which is undone; ``history`` holds the evaluations up to there."""

    def __init__(self, step: str, quantity: str, history: History) -> None:
        super().__init__(f"{quantity} not finite in {step}, which is undone; lower the learning rate, check the data")
        self.step, self.quantity, self.history = step, quantity, history


class Keeper(Protocol):
    """Whoever keeps a training, so that it can go on later: :class:`~seqgan_lib.checkpoint.Checkpoints`."""

    def resume(self, phase: str, parts: list[Part], history: History) -> int:
        """Restore ``parts`` and ``history`` as they were saved; how many steps of ``phase`` are done, 0 at first."""

    def keep(self, phase: str, done: int, parts: list[Part], history: History) -> None:
        """A step is done, and its evaluation is in the history: look, and save what is worth saving."""

    def save(self, parts: list[Part]) -> None:
        """Save the last step that was kept, after which ``parts`` are as they were."""


def state_of(part: Part) -> dict | Tensor:
    """The state of a module, an optimiser or a generator, still shared with it where it is made of tensors."""
    return part.get_state() if isinstance(part, Generator) else part.state_dict()


def restore(part: Part, state: dict | Tensor) -> None:
    """Give a part the state that :func:`state_of` took from it or from its twin."""
    if isinstance(part, Generator):
        part.set_state(state.cpu())
    else:
        part.load_state_dict(state)


def run_steps(
    phase: str,
    steps: int,
    step: Callable[[int], dict[str, float] | None],
    note: Callable[[int], dict[str, float]],
    parts: list[Part],
    *,
    unit: str,
    note_every: int = 1,
    keeper: Keeper | None = None,
    enough: Callable[[], bool] = lambda: False,
    progress: bool = True,
) -> History:
    """The loop of every training: ``step(n)`` for n = 1 … ``steps``, each done wholly or undone.

    A row of the history holds the step's number under the name of ``unit``, what ``step`` returned, and what
    ``note(n)`` has to say; there is one before the first step, every ``note_every``, and after the last. ``parts`` is
    all that a step changes. With a ``keeper`` the training goes on where that left off. ``enough`` ends it early.

    Interrupted by hand (Ctrl-C, a notebook's stop button) it undoes the step it is in and returns the history so far,
    or with a keeper, which has its own way to go on, raises KeyboardInterrupt. A number that is not finite raises
    TrainingDiverged.
    """
    check_at_least(steps, 1, f"{unit}s")
    check_at_least(note_every, 1, "evaluate_every")
    history = History()
    done = keeper.resume(phase, parts, history) if keeper else 0
    left = range(done + 1, steps + 1)
    bar = tqdm(left, phase, steps, initial=done, unit=unit, disable=not progress, leave=False)
    try:
        if done == 0:
            history.rows.append({unit: 0, **note(0)})
        for n in bar:
            if enough():  # asked before the step, so that a run that was resumed hears it too
                break
            try:
                with _whole_or_undone(f"{unit} {n} ({phase})", history, parts):
                    row = step(n) or {}
            except KeyboardInterrupt:
                if keeper and n > 1:  # step n is undone, so the parts are those of the step before
                    keeper.save(parts)
                raise
            if n % note_every == 0 or n == steps:
                history.rows.append({unit: n, **row, **note(n)})
            bar.set_postfix({k: f"{v:.2f}" for k, v in (history.rows[-1] | row).items() if k in _SHOWN})
            if keeper:
                keeper.keep(phase, n, parts, history)
    except KeyboardInterrupt:
        if keeper:
            raise
        print(f"stopped by hand; the history holds {len(history.rows)} evaluations")
    return history


@contextmanager
def _whole_or_undone(step: str, history: History, parts: list[Part]) -> Iterator[None]:
    """Do one ``step`` of a training. Stopped by hand or by a number that is not finite, for which it raises
    TrainingDiverged, it is undone.
    """
    saved = [copy.deepcopy(state_of(part)) for part in parts]
    try:
        yield
    except (KeyboardInterrupt, NotFinite, FloatingPointError) as error:
        for part, state in zip(parts, saved, strict=True):
            restore(part, state)
        if isinstance(error, KeyboardInterrupt):
            raise
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
        adam_step(optimiser)
        return loss.detach()

    graphed = Graphed(step, weights[0].device, lambda: baked(optimiser), lambda: streams)
    optimiser._graphed_step = what, graphed
    return graphed


def adam_step(optimiser: optim.Optimizer) -> None:
    """``optimiser.step()``, of Adam on a GPU by a kernel of our own where it runs: from Ampere on, with Triton.

    PyTorch's gives a block of threads 65 536 weights to do one after the other, which are too few blocks to fill the
    card.
    """
    if not _does_the_same(optimiser):
        optimiser.step()
        return
    from .kernels import adam

    (group,) = optimiser.param_groups
    weights = group["params"]
    for p in weights:
        if not optimiser.state[p]:  # what its own step makes at first
            zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            optimiser.state[p] = {"step": torch.zeros((), device=p.device), **zeros}
    states = [optimiser.state[p] for p in weights]
    torch._foreach_add_([state["step"] for state in states], 1)
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    how = {name: group[name] for name in ("lr", "betas", "eps")}
    adam(weights, [p.grad for p in weights], means, squares, states[0]["step"], **how)


def _does_the_same(optimiser: optim.Optimizer) -> bool:
    """Whether our kernel does: for Adam without extras, on a GPU with its state, whose weights all have a gradient."""
    group, *others = optimiser.param_groups
    if others or type(optimiser) is not optim.Adam or not own_kernels(group["params"][0].device):
        return False
    extras = ("weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    if isinstance(group["lr"], Tensor) or min(group["betas"]) == 0 or any(group.get(name) for name in extras):
        return False
    weights = group["params"]
    steps = [state["step"] for p in weights if (state := optimiser.state.get(p))]
    if len(steps) not in (0, len(weights)) or any(x.device != weights[0].device for x in steps):
        return False
    return all(p.dtype == torch.float32 and p.is_contiguous() and p.grad is not None for p in weights)


def baked(optimiser: optim.Optimizer, *others: nn.Module) -> Hashable:
    """What a recorded step of ``optimiser`` holds: its learning rates, and where its weights and its state are."""
    for group in optimiser.param_groups:
        group["capturable"] = group["params"][0].is_cuda  # what PyTorch wants to hear before it records
    tensors = [p for group in optimiser.param_groups for p in group["params"]]
    tensors += [x for state in optimiser.state.values() for x in state.values()]
    tensors += [p for module in others for p in module.parameters()]
    return *(group["lr"] for group in optimiser.param_groups), *(x.data_ptr() for x in tensors)
