"""The book's look: one colour-blind-safe palette, and figures that carry a text for those who cannot see them."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import PIL.Image
import seaborn as sns
from IPython.display import Image, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _SKY = sns.color_palette("colorblind").as_hex()
#: One colour a role, the same in every chapter.
PALETTE = {"oracle": "#222222", "generator": _BLUE, "held-out": _ORANGE, "train": _GREY, "random": _PINK}
PALETTE |= {"MLE": _BLUE, "scheduled sampling": _GREEN, "PG-BLEU": _PURPLE, "SeqGAN": _RED, "paper": _BROWN}


def use_style() -> None:
    """Set the book's style for all figures that follow, with the font that comes with matplotlib: the same anywhere."""
    sns.set_theme(
        style="whitegrid",
        palette="colorblind",
        font="DejaVu Sans",
        rc={"figure.figsize": (7, 3.6), "legend.frameon": False},
    )


def show(fig: Figure, alt: str) -> None:
    """Show a figure under a cell, with ``alt``: one or two sentences that say what it shows to who cannot see it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=120, bbox_inches="tight", metadata={"Software": None})  # no version, no needless change
    plt.close(fig)
    display(Image(buffer.getvalue(), alt=alt))


def show_animation(fig: Figure, steps: Iterable, alt: str, seconds: float = 1.0) -> None:
    """Show a figure that changes: whenever ``steps`` is advanced, it draws the next picture; the last stays longer.

    It becomes an animated PNG, which moves wherever pictures are shown and needs no script; GitHub leaves out GIFs.
    """
    frames, buffer = [], io.BytesIO()
    for _ in steps:
        fig.canvas.draw()
        frames.append(PIL.Image.fromarray(np.array(fig.canvas.buffer_rgba())))
    times = [1000 * seconds] * (len(frames) - 1) + [4000 * seconds]  # milliseconds
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=times, loop=0)
    plt.close(fig)
    display(Image(buffer.getvalue(), alt=alt))


def interact(draw: Callable[..., None], **controls: Any) -> None:
    """A slider under the cell, by ipywidgets' ``interact``: wherever it is moved, ``draw`` is called with its value.

    ``controls`` name the arguments of ``draw``, each with (least, greatest, step); it begins at the argument's default.
    Where ipywidgets is not installed, a line says how to get it. A stored notebook and the site keep the cell alone.
    """
    try:
        import ipywidgets
    except ModuleNotFoundError:
        print("A slider needs ipywidgets: pip install ipywidgets, then run the notebook again.")
    else:
        ipywidgets.interact(draw, **controls)
