"""Which items are drawn, and as what: images in the shape of the model's input or of the data, nothing guessed."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vaeaudit.checks.margin import figures
from vaeaudit.data.items import Stored, fit
from vaeaudit.layout.figures import as_images, scale
from vaeaudit.model.ranges import Range

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SHORT = ("--limit", "40", "-q")
ATTACK = ("--pairs", "2", "--lambdas", "2", "--max-evaluations", "20", "--mode", "latent", "--mode", "damage", *SHORT)
LATENTS = ("--traverse", "1", "--draws", "2", *SHORT)

# The bundled model for inputs that are rows of 784 numbers.
FLAT = """
import torch
from vaeaudit import BernoulliLogits
from vaeaudit.model.registry import open_model


class Flat(torch.nn.Module):
    input_shape = (784,)

    def __init__(self, vae):
        super().__init__()
        self.vae, self.range = vae, vae.range

    @property
    def prior(self):
        return self.vae.prior

    def encode(self, x):
        return self.vae.encode(x.unflatten(1, (1, 28, 28)))

    def decode(self, z):
        return BernoulliLogits(self.vae.decode(z).logits.flatten(1))


def open(checkpoint, config):
    return Flat(open_model(checkpoint.path, "mlp").vae)
"""


@pytest.mark.parametrize(
    ("stored", "taken", "drawn"),
    [
        ((28, 28), (784,), (28, 28)),
        ((8, 6, 3), (144,), (8, 6, 3)),
        ((3, 8, 6), (144,), (3, 8, 6)),
        ((1, 28, 28), (784,), (1, 28, 28)),
        ((28, 28), (1, 28, 28), (1, 28, 28)),
        ((784,), (1, 28, 28), (1, 28, 28)),
        ((8, 6, 3), (3, 8, 6), (3, 8, 6)),
        ((8, 6, 3), (8, 6, 3), (8, 6, 3)),
        ((28, 28), (28, 28), (28, 28)),
        ((784,), (784,), None),  # a square number of numbers is no image
        ((1, 100), (100,), None),
        ((1, 1, 100), (100,), None),
        ((5, 8, 6), (240,), None),
        ((2, 8, 8), (2, 8, 8), None),
    ],
)
def test_an_item_is_drawn_as_the_image_that_the_model_takes_or_the_data_are_stored_as(
    stored: tuple[int, ...], taken: tuple[int, ...], drawn: tuple[int, ...] | None
) -> None:
    values = np.zeros((4, *stored), np.float32)
    data = fit(Stored(values, None, None, "it", ""), input_shape=taken, data_range=(0.0, 1.0))
    assert data.picture_shape == drawn


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3)])
def test_every_pixel_lands_where_it_was_stored(lead: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    grey, first, last = (random.random((*lead, *shape)) for shape in ((4, 7), (3, 4, 7), (4, 7, 3)))
    for flat in (False, True):
        given = [image.reshape(*lead, -1) if flat else image for image in (grey, first, last)]
        drawn = [
            as_images(values, shape, len(lead))
            for values, shape in zip(given, ((4, 7), (3, 4, 7), (4, 7, 3)), strict=True)
        ]
        assert [image.shape[len(lead) :] for image in drawn] == [(1, 4, 7), (3, 4, 7), (3, 4, 7)]
        np.testing.assert_array_equal(drawn[0][..., 0, :, :], grey)
        np.testing.assert_array_equal(drawn[1], first)
        for channel in range(3):
            np.testing.assert_array_equal(drawn[2][..., channel, :, :], last[..., channel])


def test_images_share_the_box_each_channel_its_own_and_rows_of_features_the_hull() -> None:
    def ends(box: Range | None, channels: int) -> tuple[list[float], list[float]]:
        low, width = scale(np.full((1, channels, 28, 28), 0.5), box)
        return low.ravel().tolist(), (low + width).ravel().tolist()

    assert ends((-1.0, 1.0), 3) == ([-1.0], [1.0])
    assert ends(((0.0, 1.0), (-1.0, 1.0), (0.0, 2.0)), 3) == ([0.0, -1.0, 0.0], [1.0, 1.0, 2.0])
    assert ends(((0.0, 1.0),) * 391 + ((-2.0, 3.0),) * 393, 1) == ([-2.0], [3.0])
    assert ends((0.0, math.inf), 1) == ([0.0], [0.5])


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and bars take most of the time, and show no item."""
    for name in ("attack.record.distortion_curves", "attack.record.damage_curves", "latents.record.kl_bars"):
        monkeypatch.setattr(f"vaeaudit.checks.{name}", lambda *_: b"png")


def pictures(command: Callable[..., Any], name: str, *arguments: object) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The panels and traversals by their names, and the report."""
    done = command(*arguments, "--out", name)
    assert done.code in (0, 5), done.err
    written = json.loads(Path(name, "report.json").read_text())
    drawn = [file for file in Path(name).glob("*.png") if "panel" in file.name or "traversals" in file.name]
    return {file.name: file.read_bytes() for file in drawn}, written


def test_flat_inputs_get_the_pictures_of_the_same_model_for_images(command: Callable[..., Any]) -> None:
    Path("flat.py").write_text(FLAT)
    for check, more in (("attack", ATTACK), ("latents", LATENTS)):
        as_it_is, _ = pictures(command, "plain", check, MODEL, "--data", DATA, *more)
        flat, report = pictures(command, "flat", check, MODEL, "--adapter", "flat.py:open", "--data", DATA, *more)
        assert as_it_is
        assert flat == as_it_is
        assert not any("pictures" in name for name in report["skipped"])


def test_flat_data_of_a_flat_model_are_not_guessed_to_be_images_and_the_report_says_so(
    command: Callable[..., Any],
) -> None:
    Path("flat.py").write_text(FLAT)
    np.save("rows.npy", np.load(DATA)["imgs"].reshape(-1, 784))
    model = (MODEL, "--adapter", "flat.py:open", "--data", "rows.npy")
    for check, more in (("attack", ATTACK), ("latents", LATENTS)):
        drawn, report = pictures(command, "out", check, *model, *more)
        assert drawn == {}
        assert report["skipped"] == {
            f"{check}.pictures": "items of shape 784, for a model that takes 784, are no images of one or three "
            "channels; data stored in the shape of images, as (n, height, width), are drawn"
        }
        assert "are no images of one or three channels" in Path("out", "report.md").read_text(encoding="utf-8")
    _, report = pictures(command, "out", "latents", *model, *LATENTS, "--traverse", "0")
    assert report["skipped"] == {}


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.7, 3.0, 12.0])
def test_labels_of_the_margins_stand_apart_and_the_legend_hides_no_curve(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "to_png", lambda figure: (drawn.append(figure), b"")[1])
    estimate = 0.3 * np.exp(spread * np.random.default_rng(0).normal(size=20))
    kinds = ("certified", "whitened estimate", "spectral estimate", "Frobenius estimate", "empirical")
    margins = {kind: estimate * share for kind, share in zip(kinds, (0.15, 1, 0.7, 0.4, 2), strict=True)}
    figures.margin_panel(margins, estimate, 2 * estimate, np.zeros(20), 4 * estimate, 2.0, "")
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    left, right = figure.axes
    for axis, side in ((left.xaxis, "x"), (right.xaxis, "x"), (right.yaxis, "y")):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels(which="both") if label.get_text()]
        ends = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in boxes)
        assert ends and all(before[1] < after[0] for before, after in pairwise(ends))
    legend = left.get_legend()
    assert legend is not None and not legend.get_window_extent().overlaps(left.get_window_extent())
