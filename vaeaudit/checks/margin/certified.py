"""The certified margins of all items: what their certificates share, which of them is best, and why one is missing."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, fx

from vaeaudit.certify.graph import Graph, Kind, reason, trace_decoder
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.local import local_margin
from vaeaudit.certify.propagation import first_norms
from vaeaudit.certify.rewriting import name_of
from vaeaudit.certify.sectors import Sectors
from vaeaudit.certify.theorem import Sigma, global_margin
from vaeaudit.errors import UnsupportedError, VaeauditError
from vaeaudit.model.box import flat_bounds
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Chain
from vaeaudit.progress import GoOn, Progress
from vaeaudit.stats.draws import noise_set

Effort = Literal["fast", "thorough", "boxed"]  # linear bounds alone, sectors too, and sectors within the box
EFFORTS: tuple[str, ...] = get_args(Effort)

_TOGETHER = 4  # items certified between two questions whether to go on
_SECTORS = "around each item from sectors: "
_MOST_NUMBERS = 2**22  # of noise held at once
_ROUNDING = 1e-9
_SAME_VALUES = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze"),
        *("unsqueeze", "select", "slice", "narrow", "unbind", "split", "split_with_sizes", "chunk", "getitem"),
        *("clone", "contiguous", "alias", "identity", "expand"),
    }
)


@dataclass(frozen=True, eq=False)
class Certified:
    """Lower bounds of R in input units, (items,) float64: NaN where the search was stopped before.

    ``radius`` is the best of ``everywhere``, from Lipschitz constants (NaN where there are none), and ``around``, from
    bounds that hold near each item (NaN where there are none); ``by`` names the certificate that gave it, "none" where
    it is 0. ``boxed`` bounds R where x + d stays in the range, at least ``radius``; NaN where that was not asked.
    ``pathwise`` is a bound of its own, which follows each draw as the input moves (THEOREM iii); NaN where
    there is none. It is not maximised into ``radius``: both hold with the full confidence, but rest on different
    events, so that the larger of the two would only hold with twice the error probability, or each with half of it.
    ``missing`` says of a certificate that there is none why.
    """

    radius: Tensor
    everywhere: Tensor
    around: Tensor
    boxed: Tensor
    pathwise: Tensor
    by: tuple[str, ...]
    missing: tuple[str, ...]


class Certificates:
    """What the certificates of all items and radii share: the traced encoder, its Lipschitz constants.

    ``trace`` gives the encoder's graph, or raises :class:`UnsupportedError`. A network of more than ``most`` neurons
    and outputs gets no bounds around the items. ``effort`` "thorough" asks sectors first, and linear bounds whether
    they reach further; "fast" linear bounds alone; "boxed" sectors also of x + d in the range ``box``. Nothing of
    what is found of one item bears on another, so that several processes may share the items out. ``like``
    (items, *input_shape) are any inputs.
    """

    def __init__(
        self,
        trace: Callable[[], Graph],
        like: Tensor,
        sigma: Sigma,
        effort: Effort,
        *,
        box: Range | None = None,
        most: float = math.inf,
    ) -> None:
        self._like, self._sigma, self._near, self._effort = like[:1], sigma, True, effort
        self._box = None if box is None or effort != "boxed" else flat_bounds(box, tuple(like.shape[1:]), like)
        self.missing: list[str] = []
        self._graph: Graph | None = None
        self._norms: dict[str, Tensor] | None = None
        self._sectors: Sectors | None = None
        self._bounds: LipschitzBounds | None = None
        self._log_lipschitz: Tensor | None = None
        self._latents = 0
        self._path: tuple[Tensor, Tensor, Tensor] | None = None
        self._asked_path = False
        with _refusals(self.missing):
            self._graph = trace()
        if self._graph is None:
            return
        neurons = _neurons(self._graph, self._like)
        if neurons > most:
            self._near = False
            self.missing.append(
                f"around each item: linear bounds of {neurons} neurons and outputs, more than {most}, take too long"
            )
        with _refusals(self.missing, "from Lipschitz constants: "):
            bounds = LipschitzBounds(self._graph)
            self._latents = _whitened(self._graph, bounds, self._like)[1]
            self._log_lipschitz = bounds.of_output(1) if sigma == "full" else None
            self._bounds = bounds

    def growth(self, vae: VAE, *, draws: int, items: Sequence[int], seed: int, check: str) -> Tensor | None:
        """W of theorem (iii) for the draws of ``draw_distances``, (draws, items) or less where they are all equal.

        W = Lip(g) (Lip(mu) + ||c * eta||), c_i = Lip(sigma_i), 0 where sigma is frozen. None where there is no such
        constant; ``missing`` then says which.
        """
        path = self._constants(vae)
        if path is None:
            return None
        decoder, mean, moves = path
        if not bool(moves.any()):
            return decoder * mean * (1 + _ROUNDING)
        with torch.no_grad():
            shape = under(vae, slice(1)).encode(self._like).noise_shape
        lengths = []
        together = max(1, _MOST_NUMBERS // (draws * math.prod(shape)))
        for first in range(0, len(items), together):
            part = items[first : first + together]
            eta = noise_set(shape, draws=draws, items=part, seed=seed, check=check, like=self._like)
            lengths.append(torch.linalg.vector_norm(moves * eta.double().flatten(2), dim=2))
        return decoder * (mean + torch.cat(lengths, dim=1)) * (1 + _ROUNDING)

    def _constants(self, vae: VAE) -> tuple[Tensor, Tensor, Tensor] | None:
        """Lip(g), Lip(mu) and the c_i, (latents,) or one for all; None where one is not there, which is told once."""
        if self._graph is None or self._asked_path:  # told already
            return self._path
        self._asked_path = True
        with _refusals(self.missing, "along the path of each draw: "):
            if self._bounds is None:
                raise UnsupportedError("it rests on the encoder's Lipschitz constant")
            with torch.no_grad():
                if isinstance(under(vae, slice(1)).encode(self._like), Chain):
                    raise UnsupportedError("the layers of a chain above the first move with it, by no constant known")
            decoder = LipschitzBounds(trace_decoder(vae, self._like)).of_output(0)
            mean, still = self._bounds.of_output(0), self._like.new_zeros(1, dtype=torch.float64)
            full = self._sigma == "full"
            moves = _stddev_lipschitz(self._graph, self._bounds, self._latents) if full else still
            self._path = decoder, mean, moves
        return self._path

    def lipschitz(self, x: Tensor) -> Tensor | None:
        """The constants of D0^-1 mu of items ``x``, (items,); None where there are none."""
        return None if self._graph is None or self._bounds is None else _whitened(self._graph, self._bounds, x)[0]

    def of(
        self,
        x: Tensor,
        lipschitz: Tensor | None,
        p_low: Tensor,
        m: float,
        go_on: GoOn,
        pathwise: Tensor | None = None,
    ) -> Certified:
        """The certified margins of ``x`` from ``p_low`` (items,), lower bounds of p0; ``pathwise`` (items,) is given.

        Asked between the balls of each few items whether to ``go_on``; on False what is left is NaN.
        """
        missing = list(self.missing)
        everywhere = torch.full_like(p_low, torch.nan)
        if lipschitz is not None:
            everywhere = global_margin(p_low, m, lipschitz, self._log_lipschitz)
        around, inside = torch.full((2, len(p_low)), torch.nan, dtype=p_low.dtype, device=p_low.device)
        by = ["Lipschitz constants"] * len(p_low)
        linear = True  # whether linear bounds have not refused
        for first in range(0, len(p_low) if self._near else 0, _TOGETHER):
            part = slice(first, first + _TOGETHER)
            asked = partial(go_on, Progress("certifying", len(p_low) - first, len(p_low)))
            if self._graph is None or not asked():
                break
            found, few, p = None, x[part], p_low[part]
            sectors, boxed = self._by_sectors(few, p, m, asked, missing)
            if linear:
                with _refusals(missing, "around each item: "):
                    if self._norms is None:
                        self._norms = first_norms(self._graph, self._like.double())
                    found = local_margin(self._graph, few, p, m, self._sigma, _TOGETHER, self._norms, asked, sectors)
                linear = found is not None
            if found is None:
                if not self._has_sectors(missing):
                    break
                around[part], by[part] = sectors, ["sectors"] * len(p)
            else:
                around[part] = torch.maximum(found.radius, sectors)
                wider = (sectors > found.radius).tolist()
                by[part] = ["sectors" if sector else won for sector, won in zip(wider, found.won, strict=True)]
            inside[part] = boxed
        better = torch.fmax(everywhere, around)
        wins = [
            "none" if not radius > 0 else near if near_radius >= radius else "Lipschitz constants"
            for radius, near_radius, near in zip(better.tolist(), around.tolist(), by, strict=True)
        ]
        paths = torch.full_like(better, torch.nan) if pathwise is None else pathwise
        boxed = torch.full_like(better, torch.nan) if self._box is None else torch.fmax(better, inside)
        return Certified(better, everywhere, around, boxed, paths, tuple(wins), tuple(missing))

    def _by_sectors(
        self, x: Tensor, p_low: Tensor, m: float, asked: Callable[[], bool], missing: list[str]
    ) -> tuple[Tensor, Tensor]:
        """The margins of some items from sectors, and those in the box, 0 where these say nothing.

        Once sectors are ``missing`` they are not asked.
        """
        nothing = torch.zeros_like(p_low), torch.zeros_like(p_low)
        if self._graph is None or not self._has_sectors(missing):
            return nothing
        with _refusals(missing, _SECTORS):
            if self._sectors is None:
                self._sectors = Sectors(self._graph, self._like)
            return self._sectors.margins(x, p_low, m, self._sigma, self._box, asked)
        return nothing

    def _has_sectors(self, missing: Sequence[str]) -> bool:
        return self._effort != "fast" and not any(told.startswith(_SECTORS) for told in missing)


@contextmanager
def _refusals(missing: list[str], which: str = "") -> Iterator[None]:
    """Puts among the ``missing`` what says that there is no certificate of the kind ``which``.

    Bounds take the model's own operations through autograd and vmap, and what these cannot take they refuse with
    errors of no common class: a certificate that cannot be had must never end an audit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how slowly it takes some operations
            yield
    except UnsupportedError as error:
        # The interpreter of a graph appends where it was, at length.
        missing.append(f"{which}{str(error).splitlines()[0]}")
    except VaeauditError:
        raise
    except Exception as error:
        missing.append(
            f"{which}torch cannot carry bounds through the model ({reason(error)}); the empirical margin needs none"
        )


def _whitened(graph: Graph, bounds: LipschitzBounds, x: Tensor) -> tuple[Tensor, int]:
    """Lip(D0^-1 mu) of each item, (items,), and the number of latents."""
    with torch.no_grad():
        log_stddev = graph.module(x.double())[1]
    return bounds.of_output(0, torch.exp(-log_stddev)), log_stddev.shape[1]


@torch.no_grad()
def _neurons(graph: Graph, x: Tensor) -> int:
    """How many inputs activations have, and how many elements the first output."""
    run = fx.Interpreter(graph.module, garbage_collect_values=False)
    outputs: tuple[Tensor, ...] = run.run(x[:1].double())
    bending = graph.of(Kind.ACTIVATION, Kind.MAXIMUM)
    return outputs[0].numel() + sum(int(run.env[node].numel()) for node in bending)


def _stddev_lipschitz(graph: Graph, bounds: LipschitzBounds, latents: int) -> Tensor:
    """Lip(sigma_i) of each latent, (latents,), from that of log sigma_i and the largest value that it can take."""
    each = bounds.of_output(1, torch.eye(latents, dtype=torch.float64))
    if not bool(each.any()):
        return each
    most = _ceiling(graph.outputs[1], graph)
    largest = torch.tensor(most, dtype=each.dtype).exp()
    if not largest.isfinite():
        raise UnsupportedError(
            "sigma = full needs a Lipschitz constant of sigma itself, and the exponential of a log sigma without an "
            "upper limit, or with one above 709, has none; sigma = frozen needs none"
        )
    return each * largest * (1 + _ROUNDING)


def _ceiling(node: fx.Node, graph: Graph) -> float:
    """An upper bound of a value's elements from what they are clamped to; infinite where nothing limits them."""
    name, given = name_of(node), node.args
    if graph.kinds[node] not in (Kind.ACTIVATION, Kind.AFFINE) or not isinstance(given[0], fx.Node):
        return math.inf
    before = given[0]
    other = given[1] if len(given) > 1 else None
    match name:
        case "clamp":
            low, high = (
                node.kwargs.get(key, given[k] if k < len(given) else None) for k, key in ((1, "min"), (2, "max"))
            )
            if isinstance(high, (int, float)):
                return float(high)
            return max(_ceiling(before, graph), float(low)) if isinstance(low, (int, float)) else math.inf
        case "hardtanh":
            return float(given[2]) if len(given) > 2 and isinstance(given[2], (int, float)) else 1.0
        case "tanh" | "sigmoid":
            return 1.0
        case "mul" | "div" if isinstance(other, (int, float)) and other > 0:
            return _ceiling(before, graph) * (other if name == "mul" else 1 / other)
        case "add" | "sub" if isinstance(other, (int, float)) and not node.kwargs:
            return _ceiling(before, graph) + (other if name == "add" else -other)
        case _ if name in _SAME_VALUES:
            return _ceiling(before, graph)
    return math.inf
