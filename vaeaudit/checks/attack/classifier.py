"""What tells the class of a reconstruction, and whether it can be believed.

Success rates count classes of reconstructions, so they are worth no more than what names those classes. It is the
adapter's own classifier, or a logistic regression fitted on reconstructions; either is tried on reconstructions that
it was not fitted on, and rates from a classifier that fails there are inconclusive.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, runtime_checkable
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.checks.attack.metrics import ACCURACY
from vaeaudit.errors import ConfigError, ContractError, DataError, NonFiniteError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.vae import VAE, reconstruct
from vaeaudit.stats import estimates
from vaeaudit.stats.draws import uniform
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.inputs import require_finite

# images(items) -> (len(items), *input_shape), in the dtype and on the device of the model
Images = Callable[[Sequence[int]], Tensor]

SKILL = 0.5  # least accuracy, as a share of the way from always naming the commonest class to no error
_MOST_FITTED, _MOST_HELD_OUT = 4000, 2000
_MOST_NUMBERS = 2**25  # of all features together, 256 MiB in float64
_HELD_OUT = 0.25
_MAX_ITERATIONS = 1000
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@runtime_checkable
class Classifier(Protocol):
    """What names the class of an image; a model whose adapter gives it this method brings its own."""

    def classify(self, x: Tensor) -> Tensor:
        """Classes of x (batch, *input_shape), images in the model's range.

        Either the labels themselves, integers (batch,), or scores (batch, classes), whose column k speaks for label k.
        """
        ...


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """argmax over classes of x W + b: ``weight`` (features, classes), ``bias`` (classes,), ``labels`` (classes,)."""

    weight: Tensor
    bias: Tensor
    labels: Tensor

    def classify(self, x: Tensor) -> Tensor:
        """Labels of x (batch, *shape), integers (batch,)."""
        scores = x.flatten(1) @ self.weight.to(x) + self.bias.to(x)
        return self.labels.to(x.device)[scores.argmax(1)]


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier with what is known of it.

    ``accuracy`` is measured on reconstructions that it was not fitted on; ``commonest`` is the share of the commonest
    class among them, which a classifier that knows nothing reaches. ``how`` tells in words what it is.
    """

    classifier: Classifier
    accuracy: Measurement
    commonest: float
    how: str
    warnings: tuple[str, ...] = ()

    @property
    def least_accuracy(self) -> float:
        """What the lower end of the accuracy's interval must exceed: :data:`SKILL` of the way from chance to 1."""
        return self.commonest + SKILL * (1 - self.commonest)

    @property
    def fault(self) -> str | None:
        """Why rates from this classifier are inconclusive; None where they are not."""
        value, interval = self.accuracy.value, self.accuracy.ci
        if value is None or interval is None:
            return "the classifier could not be tried, since no labelled item is left that is not attacked"
        if interval[0] > self.least_accuracy:
            return None
        return (
            f"the classifier names {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] of {self.accuracy.n} held-out "
            f"reconstructions rightly, where the lower end must exceed {self.least_accuracy:.3f}, halfway from always "
            "naming the commonest class to no error"
        )


def judge(
    vae: VAE,
    images: Images,
    labels: NDArray[np.int64],
    *,
    attacked: Collection[int] = (),
    seed: int,
    batch_size: int | None = None,
) -> Judge:
    """The model's own classifier where it has one (:class:`Classifier`), else a logistic regression; either tried.

    Args:
        vae: the model; its reconstructions of labelled items are what is fitted on and tried on.
        images: items by their numbers.
        labels: of all items, (n,).
        attacked: items to leave out, so that no classifier has seen what it is asked about.
        seed: of the choice of items, a keyed sample of at most 4000 to fit on and 2000 to try on.
        batch_size: most rows that the model is given at once; chosen by size where None.

    Raises:
        DataError: fewer than two classes to fit on.
        ConfigError: a regression is needed, and scikit-learn is not installed.
        ContractError: the model's classifier gives something else than :class:`Classifier` says.
        NonFiniteError: a reconstruction or a score is NaN or infinite.
    """
    leave_out = set(attacked)
    order = uniform(len(labels), seed=seed, check="success.classifier", item=0).argsort(kind="stable").tolist()
    items = [item for item in order if item not in leave_out]
    rows = None if batch_size is None else RowBatches(batch_size)
    if isinstance(vae, Classifier):
        held_out = items[:_MOST_HELD_OUT]
        return _tried(vae, vae, images, labels, held_out, rows, "the model's own classifier")
    most = min(_MOST_FITTED + _MOST_HELD_OUT, max(8, _MOST_NUMBERS // max(1, torch.Size(vae.input_shape).numel())))
    items = items[:most]
    split = max(round(_HELD_OUT * len(items)), len(items) - _MOST_FITTED)
    held_out, fitted = items[:split], items[split:]
    if len(np.unique(labels[fitted])) < 2:
        raise DataError(
            f"a classifier needs items of two labels or more to be fitted on, but the {len(fitted)} left beside the "
            "attacked ones have fewer; give more labelled items"
        )
    regression, converged = _fit(_reconstructions(vae, images, fitted, rows), labels[fitted])
    warned = () if converged else (f"the logistic regression had not converged after {_MAX_ITERATIONS} iterations",)
    how = f"a logistic regression on reconstructions of {len(fitted)} items (seed {seed})"
    return _tried(regression, vae, images, labels, held_out, rows, how, warned)


def classes_of(classifier: Classifier, x: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Classes of images (batch, *shape) as integer labels, (batch,).

    Raises :class:`NonFiniteError` for images or scores that are not finite, :class:`ContractError` for any other
    answer than :class:`Classifier` allows.
    """
    rows = RowBatches.automatic(tuple(x.shape[1:]), x.device) if batch_size is None else RowBatches(batch_size)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            "a reconstruction is NaN or infinite, so it has no class; see what doctor says of the model"
        )

    @torch.no_grad()
    def classes(part: Tensor) -> tuple[Tensor]:
        answer = classifier.classify(part)
        told = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        scores = isinstance(answer, Tensor) and answer.ndim == 2 and answer.shape[1] > 1 and answer.is_floating_point()
        whole = isinstance(answer, Tensor) and answer.ndim == 1 and answer.dtype in _INTEGERS
        if not (scores or whole) or len(answer) != len(part):
            raise ContractError(
                f"classify must give integer labels ({len(part)},) or scores ({len(part)}, classes) for {len(part)} "
                f"images, but gave {told}; correct the adapter"
            )
        if scores and not bool(torch.isfinite(answer).all()):
            raise NonFiniteError("classify gave scores that are NaN or infinite for finite images; correct the adapter")
        return ((answer.argmax(1) if scores else answer).long(),)

    return rows.map(classes, x)[0]


def _tried(
    classifier: Classifier,
    vae: VAE,
    images: Images,
    labels: NDArray[np.int64],
    held_out: list[int],
    rows: RowBatches | None,
    how: str,
    warned: tuple[str, ...] = (),
) -> Judge:
    """The classifier with its accuracy on the items held out."""
    right, commonest = 0, 1.0
    if held_out:
        x = _reconstructions(vae, images, held_out, rows)
        found = classes_of(classifier, x, batch_size=rows.size if rows else None).cpu().numpy()
        right = int((found == labels[held_out]).sum())
        commonest = float(np.unique(labels[held_out], return_counts=True)[1].max()) / len(held_out)
    accuracy = estimates.proportion(right, len(held_out), unit=ACCURACY.unit, direction=ACCURACY.direction)
    return Judge(classifier, accuracy, commonest, how, warned)


def _reconstructions(vae: VAE, images: Images, items: list[int], rows: RowBatches | None) -> Tensor:
    """rec(x) of the items, (len(items), *shape)."""

    @torch.no_grad()
    def look(numbers: Tensor) -> tuple[Tensor]:
        return (reconstruct(under(vae, numbers), images(numbers.tolist())),)

    if rows is None:
        rows = RowBatches.automatic(tuple(vae.input_shape), images(items[:1]).device)
    x = rows.map(look, torch.tensor(items))[0]
    require_finite("reconstruction", x, items)
    return x


def _fit(x: Tensor, labels: NDArray[np.int64]) -> tuple[LogisticRegression, bool]:
    """The regression and whether it converged; features (b, *shape) in float64, one scale for all of them."""
    try:
        linear_model, problems = import_module("sklearn.linear_model"), import_module("sklearn.exceptions")
        threads = import_module("threadpoolctl")  # comes with scikit-learn
    except ImportError as error:
        raise ConfigError(
            "success rates need a classifier, and fitting one needs scikit-learn, which is not installed; "
            "pip install 'vaeaudit[classifier]', or give the model a method classify"
        ) from error
    features = x.flatten(1).to("cpu", torch.float64).numpy()
    centre, scale = features.mean(0), max(float(features.std()), np.finfo(np.float64).tiny)
    model = linear_model.LogisticRegression(max_iter=_MAX_ITERATIONS)
    with catch_warnings(), threads.threadpool_limits(1):  # one thread sums in one order, whatever the machine
        simplefilter("ignore", problems.ConvergenceWarning)  # told in the result instead
        model.fit((features - centre) / scale, labels)
    coefficients, intercept = np.asarray(model.coef_) / scale, np.asarray(model.intercept_)
    if len(coefficients) == 1:  # two classes have one score, for the second
        coefficients, intercept = np.vstack([-coefficients, coefficients]), np.concatenate([-intercept, intercept])
    bias = intercept - coefficients @ centre
    regression = LogisticRegression(
        torch.from_numpy(coefficients.T.copy()), torch.from_numpy(bias), torch.from_numpy(np.asarray(model.classes_))
    )
    return regression, int(np.max(model.n_iter_)) < _MAX_ITERATIONS
