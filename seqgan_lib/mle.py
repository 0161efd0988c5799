"""Maximum likelihood: make the training data likely, with the true past (teacher forcing) or a mixed one."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from .checks import check_at_least, check_positive, check_share, check_tokens
from .history import History
from .language_model import LanguageModel
from .sampling import stream_on
from .training import keep_last_good, stoppable, train_epoch


def scheduled_inputs(model: LanguageModel, sequences: Tensor, omega: float | Tensor, *, generator: Generator) -> Tensor:
    """What the model reads under scheduled sampling: each true token with probability ω, else its own draw.

    ``sequences`` (batch, time) int64 → inputs (batch, time), the start token first. The targets stay the true tokens,
    and no gradient flows through a draw (Bengio et al. 2015, section 2.4).
    """
    check_tokens(sequences, model.vocabulary)
    if not isinstance(omega, Tensor):  # on a GPU, a look at it would make the host wait
        check_share(omega, "omega")
    keep = torch.rand(sequences.shape, generator=generator, device=generator.device) < omega
    return model.shift(model.rewrite(sequences, keep, generator=generator))


def train_mle(
    model: LanguageModel,
    data: Tensor,
    *,
    epochs: int,
    generator: Generator,
    batch_size: int = 64,
    learning_rate: float = 0.01,
    clip: float = 5.0,
    omega_decay: float = 0.0,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    progress: bool = True,
) -> History:
    """Train ``model`` in place on ``data`` (sequences, time) int64 with Adam, a new shuffle every epoch.

    Defaults are the published code's, which however never shuffles. ``clip`` is the largest gradient norm of a step.
    ``omega_decay`` is scheduled sampling's: ω = max(0, 1 − omega_decay · epoch), epochs from 0; 0.002 in the paper.
    ``evaluate`` gives named numbers for the history: before the first epoch, every ``evaluate_every``, after the last.

    Returns a history of ``epoch``, ``loss`` (mean training NLL of that epoch, nats per token) and what ``evaluate``
    gave; interrupting it (Ctrl-C, a notebook's stop button) returns the history so far. Raises ValueError for data or
    settings that are not allowed, and TrainingDiverged if the loss stops being finite: that epoch is undone.
    """
    check_tokens(data.cpu() if isinstance(data, Tensor) else data, model.vocabulary, "data")
    for value, name in ((epochs, "epochs"), (batch_size, "batch_size"), (evaluate_every, "evaluate_every")):
        check_at_least(value, 1, name)
    check_positive(learning_rate, "learning_rate")
    check_positive(clip, "clip")
    check_positive(omega_decay, "omega_decay", or_zero=True)
    data = data.to(model.device)
    model.lstm.flatten_parameters()  # a copied model's lie apart, which cuDNN would mend at every step
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=learning_rate, fused=True)
    history, generator = History(), stream_on(generator, model.device)
    share = torch.ones((), device=model.device)  # ω, where a recorded step finds its new value

    def record(epoch: int, **row: float) -> None:
        history.rows.append({"epoch": epoch, **row, **(evaluate(model) if evaluate else {})})

    def mixed(batch: Tensor) -> Tensor:
        now = share if model.device.type == "cuda" else omega
        return model.nll(batch, scheduled_inputs(model, batch, now, generator=generator))

    bar = tqdm(range(1, epochs + 1), desc="MLE", unit="epoch", disable=not progress, leave=False)
    with stoppable(history):
        record(0)
        for epoch in bar:
            omega = max(0.0, 1 - omega_decay * (epoch - 1))
            share.fill_(omega)
            with keep_last_good(f"epoch {epoch}", history, model, optimiser):
                how = {"clip": clip, "streams": [] if omega == 1 else [generator]}
                loss_of = model.nll if omega == 1 else mixed
                mean = train_epoch(loss_of, [data], optimiser, generator, batch_size, **how)
            bar.set_postfix(loss=f"{mean:.3f}")
            if epoch % evaluate_every == 0 or epoch == epochs:
                record(epoch, loss=mean)
    return history
