"""Maximum likelihood: make the training data likely, with the true past (teacher forcing) or a mixed one."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .checks import check_at_least, check_positive, check_share, check_tokens
from .history import History
from .language_model import LanguageModel
from .sampling import stream_on
from .training import Keeper, run_steps, train_epoch


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
    keeper: Keeper | None = None,
) -> History:
    """Train ``model`` in place on ``data`` (sequences, time) int64 with Adam, a new shuffle every epoch.

    Defaults are the published code's, which however never shuffles. ``clip`` is the largest gradient norm of a step.
    ``omega_decay`` is scheduled sampling's: ω = max(0, 1 − omega_decay · epoch), epochs from 0; 0.002 in the paper.
    ``evaluate`` gives named numbers for the history: before the first epoch, every ``evaluate_every``, after the last.

    Returns a history of ``epoch``, ``loss`` (mean training NLL of that epoch, nats per token) and what ``evaluate``
    gave. Raises ValueError for data or settings that are not allowed. What happens when it is interrupted, meets a
    number that is not finite, or has a ``keeper``: :func:`~seqgan_lib.training.run_steps`.
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
    generator = stream_on(generator, model.device)
    omega, share = 1.0, torch.ones((), device=model.device)  # the same, where a recorded step finds its new value

    def mixed(batch: Tensor) -> Tensor:
        now = share if model.device.type == "cuda" else omega
        return model.nll(batch, scheduled_inputs(model, batch, now, generator=generator))

    def step(epoch: int) -> dict[str, float]:
        nonlocal omega
        omega = max(0.0, 1 - omega_decay * (epoch - 1))
        share.fill_(omega)
        loss_of, streams = (model.nll, []) if omega == 1 else (mixed, [generator])
        return {"loss": train_epoch(loss_of, [data], optimiser, generator, batch_size, clip, streams=streams)}

    how = {"unit": "epoch", "note_every": evaluate_every, "keeper": keeper, "progress": progress}
    note = (lambda _: evaluate(model)) if evaluate else (lambda _: {})
    return run_steps("MLE", epochs, step, note, [model, optimiser, generator], **how)
