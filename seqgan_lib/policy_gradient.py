"""The policy gradient: make the tokens that were worth more than expected likelier, and the others less."""

from torch import Tensor

from .checks import check_finite
from .language_model import LanguageModel

#: What is subtracted from an action value before it weighs its token; see :func:`advantages`.
BASELINES = ("none", "batch", "prefix")


def check_baseline(baseline: str, batch_size: int) -> None:
    """Raise ValueError for a baseline that is none, and for one that has nothing to compare a sequence with."""
    if baseline not in BASELINES:
        raise ValueError(f"no baseline {baseline!r}; there are {', '.join(BASELINES)}")
    if baseline != "none" and batch_size < 2:
        raise ValueError(f"baseline {baseline!r} compares sequences and needs a batch of at least 2")


def advantages(values: Tensor, baseline: str = "none") -> Tensor:
    """Action values (batch, T) less a baseline that does not depend on the action, (batch, T).

    - ``"none"``: nothing is subtracted, as in the paper.
    - ``"batch"``: the mean value at the same position over the *other* sequences of the batch.
    - ``"prefix"``: the value of the token before, an estimate of what the prefix was worth; at first, the batch's.

    Each leaves the expected gradient as it is. The mean over the whole batch would not: it contains the action's own
    value. Raises ValueError for another baseline, values that are not finite, and a comparison of one sequence.
    """
    if values.ndim != 2:
        raise ValueError(f"values must have shape (batch, time), but have shape {tuple(values.shape)}")
    check_baseline(baseline, len(values))
    if values.device.type == "cpu":  # on a GPU the host would wait; there training looks at the loss, once a round
        check_finite(values, "action values")
    if baseline == "none":
        return values
    others = (values.sum(0) - values) / (len(values) - 1)
    if baseline == "prefix":
        others[:, 1:] = values[:, :-1]
    return values - others


def policy_gradient_loss(model: LanguageModel, sequences: Tensor, values: Tensor, baseline: str = "none") -> Tensor:
    """The scalar whose gradient is −B · ∇J, estimated from B sequences that ``model`` wrote: (batch, T) int64.

    −Σ_b Σ_t log G(y_t | Y_{1:t-1}) · advantage of the action values (batch, T), which get no gradient: summed, not
    averaged, as in the published code (``generator.py``).
    """
    return model.nll(sequences, weights=advantages(values.detach(), baseline))
