"""On a GPU: hundreds of small launches recorded once and replayed as one CUDA graph, and where TF32 is allowed."""

import gc
import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Generator, Tensor

# float32 is to mean float32: from Ampere on, cuDNN would round the LSTM's products to TF32's 10 bits.
torch.backends.cudnn.allow_tf32 = False

_WARM_UP = 3  # plain calls before one is recorded: libraries start up, Triton compiles, Adam makes its state


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products inside may round their factors to 10 bits (errors near 1e-3), for several times the speed."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def beside(device: torch.device) -> Iterator[Callable[[], None]]:
    """On a GPU, what is inside goes beside what follows, until the function that this gives is called, which joins.

    Elsewhere it is done at once. For work that is too small to fill the card; a recorded graph keeps it side by side.
    What is inside may read all that was made before it. Until the join, what it reads must be kept and left unchanged,
    and what it makes must not be looked at: nobody waits before that.
    """
    if device.type != "cuda":
        yield lambda: None
        return
    here, aside = torch.cuda.current_stream(device), _second_stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        yield lambda: here.wait_stream(aside)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Graphed:
    """``function`` of tensors on ``device``: on a GPU one CUDA graph for each shape of its arguments, else plain calls.

    It must do the same work every time: no look at a number, no other randomness than that of ``streams()``, and its
    state in tensors that are changed in place. ``baked()`` is all else that a recording holds, such as the addresses
    of that state; once it differs, the graphs are made anew. The first calls are plain, so that nothing needs to be
    undone, and with and without graphs a training takes the same path. **The next call overwrites the result.**

    What cannot be recorded is called plainly from then on, after a warning. So is everything while the environment
    variable SEQGAN_NO_GRAPHS is set.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        device: torch.device,
        baked: Callable[[], Hashable],
        streams: Callable[[], Sequence[Generator]],
    ) -> None:
        self.function, self.device, self.baked, self.streams = function, device, baked, streams
        self._works, self._holds, self._calls, self._graphs = device.type == "cuda", None, Counter(), {}
        self._aside = torch.cuda.Stream(device) if self._works else None  # the default stream cannot be recorded

    def __call__(self, *given: Tensor) -> Tensor:
        if not self._works or os.environ.get("SEQGAN_NO_GRAPHS"):
            return self.function(*given)
        if (holds := self.baked()) != self._holds:
            self._holds, self._calls, self._graphs = holds, Counter(), {}
        shapes = tuple(x.shape for x in given)
        if shapes not in self._graphs:
            self._calls[shapes] += 1
            if self._calls[shapes] <= _WARM_UP:
                return self._warm_up(given)
            try:
                self._graphs[shapes] = self._record(given)
            except Exception as error:  # a GPU or a version of PyTorch that cannot: slower, not wrong
                self._works, self._graphs = False, {}
                cause = error.__context__ or error  # the end of a broken recording is an error, too
                warnings.warn(f"no CUDA graph, so training is slower: {cause}", RuntimeWarning, stacklevel=2)
                for stream in self.streams():  # a broken recording may leave a stream in use; its state is sound
                    fresh = Generator(stream.device)
                    fresh.set_state(stream.get_state())
                    stream.graphsafe_set_state(fresh.graphsafe_get_state())
                return self.function(*given)
        replay, inputs, result = self._graphs[shapes]
        for ours, theirs in zip(inputs, given, strict=True):
            ours.copy_(theirs)
        replay()
        return result

    def _warm_up(self, given: Sequence[Tensor]) -> Tensor:
        """A plain call on the stream that the recording will use, in order with what is before and after it.

        Its arguments lie as the recording's will: Triton compiles anew for another alignment, and while one records it
        may not.
        """
        here = torch.cuda.current_stream(self.device)
        self._aside.wait_stream(here)
        with torch.cuda.stream(self._aside):
            result = self.function(*(x.clone() for x in given))
        here.wait_stream(self._aside)
        return result

    def _record(self, given: Sequence[Tensor]) -> tuple[Callable[[], None], list[Tensor], Tensor]:
        """Record one call, which is not executed; returns how to replay it, its arguments and its result."""
        inputs, graph = [x.clone() for x in given], torch.cuda.CUDAGraph()
        self._begun = graph  # PyTorch's memory allocator keeps its address if the recording breaks
        for stream in self.streams():
            graph.register_generator_state(stream)
        gc.collect()  # now, and not within the recording, where an old graph's end would disturb
        # The outer context gives the current stream back even if the recording ends in an error.
        with torch.cuda.stream(self._aside), torch.cuda.graph(graph, stream=self._aside):
            result = self.function(*inputs)
        return graph.replay, inputs, result
