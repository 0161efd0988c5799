"""Figures carry their text, and are the same bytes each time."""

import io
import sys

import matplotlib
import pytest
from PIL import Image

matplotlib.use("agg")
plotting = pytest.importorskip("seqgan_lib.plotting", reason="the plot extra is not installed")
plt = pytest.importorskip("matplotlib.pyplot")


def figure():
    fig, ax = plt.subplots()
    ax.plot([0, 1], color=plotting.PALETTE["SeqGAN"])
    return fig


def test_a_shown_figure_carries_its_text_and_is_closed(monkeypatch):
    shown = []
    monkeypatch.setattr(plotting, "display", shown.append)
    plotting.use_style()
    plt.close("all")
    for _ in range(2):
        plotting.show(figure(), alt="A line rises from 0 to 1.")
    assert plt.get_fignums() == []
    data, metadata = shown[0]._repr_mimebundle_()
    assert list(data) == ["image/png"] and metadata["image/png"]["alt"] == "A line rises from 0 to 1."
    assert shown[0].data == shown[1].data


def test_an_animation_carries_its_text_moves_and_rests_on_its_last_picture(monkeypatch):
    shown, fig = [], figure()
    monkeypatch.setattr(plotting, "display", shown.append)

    def steps():
        for height in (1, 2):
            fig.axes[0].set_ylim(0, height)
            yield

    plotting.show_animation(fig, steps(), alt="A line falls and rests.", seconds=0.5)
    assert plt.get_fignums() == []
    data, metadata = shown[0]._repr_mimebundle_()
    assert list(data) == ["image/png"] and metadata["image/png"]["alt"] == "A line falls and rests."
    picture, times, pixels = Image.open(io.BytesIO(shown[0].data)), [], set()
    for frame in range(picture.n_frames):
        picture.seek(frame)
        times.append(picture.info["duration"])
        pixels.add(picture.convert("RGB").tobytes())
    assert times == [500, 2000] and len(pixels) == 2 and picture.info["loop"] == 0


def test_where_no_slider_can_be_had_a_line_says_why(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    plotting.interact(lambda n: pytest.fail("nothing to draw for"), n=(1, 9))
    assert "pip install ipywidgets" in capsys.readouterr().out


def test_colours_of_things_drawn_together_differ():
    curves = [plotting.PALETTE[name] for name in ("MLE", "scheduled sampling", "PG-BLEU", "SeqGAN", "oracle", "paper")]
    assert len(set(curves)) == len(curves)
