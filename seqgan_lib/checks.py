"""Wrong input, refused at the door: what was given, and what is allowed."""

from torch import Tensor, int64


def check_tokens(tokens: Tensor, vocabulary: int, name: str = "sequences", empty_time: bool = False) -> None:
    """Raise ValueError unless ``tokens`` is a non-empty int64 (batch, time) tensor of tokens below ``vocabulary``."""
    if not isinstance(tokens, Tensor) or tokens.dtype != int64:
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{name} must be an int64 tensor, but this is {kind}; torch.as_tensor(x, dtype=torch.int64)")
    if tokens.ndim != 2 or tokens.shape[0] == 0 or (tokens.shape[1] == 0 and not empty_time):
        raise ValueError(f"{name} must have shape (batch, time), neither of them 0, but has {tuple(tokens.shape)}")
    if tokens.device.type == "cpu" and tokens.numel():  # on a GPU the host would wait; training checks its data before
        low, high = (int(x) for x in tokens.aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"{name} holds tokens {low} to {high}; here 0 to {vocabulary - 1} are allowed")


class NotFinite(ValueError):
    """A number that is NaN or infinite where it must not be."""

    quantity = ""  # what it is


def check_finite(values: Tensor, quantity: str) -> None:
    """Raise NotFinite if one of ``values`` is NaN or infinite. On a GPU the host waits for the answer."""
    if (wrong := int((~values.isfinite()).sum())) > 0:
        error = NotFinite(f"{quantity} must be finite, but {wrong} of {values.numel()} are not")
        error.quantity = quantity
        raise error


def check_at_least(value: int, least: int, name: str) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")


def check_positive(value: float, name: str, or_zero: bool = False) -> None:
    """Raise ValueError unless ``value`` is a finite number above 0, or 0 where that is allowed."""
    if not 0 < value < float("inf") and not (or_zero and value == 0):
        raise ValueError(f"{name} must be a finite number {'of at least' if or_zero else 'above'} 0, but is {value!r}")


def check_share(value: float, name: str) -> None:
    """Raise ValueError unless ``value`` is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, but is {value!r}")
