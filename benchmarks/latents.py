"""The latents check: its time against the bare encoder and decoder, and its mixture against torch's own.

    python -m benchmarks.latents [--model PATH --adapter NAME --data PATH --resize FILTER] [--items N] [--threads 1]

Without draws the check gives the KL of each item and unit and takes the KL apart; its floor is the encoder alone. With
a draw it gives the ELBO as well; its floor is encoder and decoder. Items lie in memory as the model takes them, so that
reading them is part of neither. The mixture of all posteriors is evaluated at the same points by
torch.distributions.MixtureSameFamily, as many points at once as a gigabyte holds. All take turns in one process; times
are medians over the turns, and ratios medians of those of each turn.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaeaudit.checks.latents.decomposition import Decomposition, decompose
from vaeaudit.checks.latents.measure import LatentsResult, latents
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.subject.encodings import Encodings, units_of

TURNS = 3


class Problem:
    """Items x (N, *input_shape) of a model, and everything that is timed on them."""

    def __init__(self, vae: VAE, x: Tensor) -> None:
        self.vae, self.x = vae, x
        self.rows = RowBatches.automatic(tuple(vae.input_shape), x.device)
        self.found: dict[str, LatentsResult] = {}
        self.parts: Decomposition | None = None

    @torch.no_grad()
    def encoder(self) -> None:
        """The bare encoder."""
        for part in torch.split(self.x, self.rows.size):
            _ = self.vae.encode(part).mean

    @torch.no_grad()
    def both(self) -> None:
        """The bare encoder and the bare decoder at z = the mean."""
        for part in torch.split(self.x, self.rows.size):
            _ = self.vae.decode(self.vae.encode(part).mean).mean

    def without_draws(self) -> None:
        """The check without ELBO."""
        self.found["without draws"] = latents(self.vae, self.x, draws=0)

    def with_draw(self) -> None:
        """The check with one draw an item."""
        self.found["with a draw"] = latents(self.vae, self.x)

    def apart(self) -> None:
        """The decomposition alone."""
        encoded = self.found["without draws"].encodings
        self.parts = decompose(encoded, Encodings(*units_of(self.vae.prior)))

    @torch.no_grad()
    def by_torch(self) -> None:
        """log q(z) and each log q(z_j) by torch's mixtures, in double precision, at as many points."""
        encoded, parts = self.found["without draws"].encodings, self.parts
        assert parts is not None
        mean, stddev = encoded.mean.double(), encoded.log_stddev.double().exp()
        even = Categorical(torch.ones(len(mean), dtype=mean.dtype))
        joint = MixtureSameFamily(even, Independent(Normal(mean, stddev), 1))
        units = [MixtureSameFamily(even, Normal(mean[:, j], stddev[:, j])) for j in range(mean.shape[1])]
        z = mean[torch.arange(parts.points) % len(mean)]
        for part in torch.split(z, max(1, 2**27 // mean.numel())):
            joint.log_prob(part)
            for j, unit in enumerate(units):
                unit.log_prob(part[:, j])


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--items", type=int, help="of the data, from the first on; all of them where left out")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    count = len(data) if given.items is None else given.items
    if not 2 <= count <= len(data):
        parser.error(f"--items must lie between 2 and {len(data):,}")
    parts = [data.batch(range(first, min(first + 1024, count))) for first in range(0, count, 1024)]
    problem = Problem(vae, torch.cat(parts))
    del parts
    lines: dict[str, tuple[Callable[[], None], str | None]] = {
        "encoder": (problem.encoder, None),
        "encoder and decoder": (problem.both, None),
        "latents, no draw": (problem.without_draws, "encoder"),
        "latents, a draw": (problem.with_draw, "encoder and decoder"),
        "of which taking the KL apart": (problem.apart, "encoder"),
        "torch's mixtures": (problem.by_torch, "of which taking the KL apart"),
    }
    some = Problem(vae, problem.x[: min(count, 512)])
    for work in (some.encoder, some.both, some.without_draws, some.with_draw, some.apart, some.by_torch):
        work()  # nobody's first call is timed
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(TURNS):
        for name, (work, _floor) in lines.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    rows: list[list[object]] = []
    for name, (_work, floor) in lines.items():
        row: list[object] = [name, statistics.median(seconds[name]), count / statistics.median(seconds[name])]
        if floor is not None:
            over = [a / b for a, b in zip(seconds[name], seconds[floor], strict=True)]
            row += [statistics.median(over), floor]
        rows.append(row)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{given.model}: {count:,} items, {problem.x.dtype}, torch {torch.__version__}, {given.threads} thread(s),")
    print(f"medians of {TURNS}; peak memory {peak:.2f} GB, of which {problem.x.nbytes / 2**30:.2f} GB are the items\n")
    print(tabulate(rows, headers=["", "seconds", "items / s", "ratio", "to"], floatfmt=".4g"), "", sep="\n")
    found = problem.found["with a draw"]
    assert found.elbo is not None and found.decomposition is not None
    figures: list[tuple[str, float, float]] = [
        ("ELBO", float(found.elbo.double().mean()), float(found.elbo.double().std()) / count**0.5),
        ("KL", float(found.kl.double().mean()), float(found.kl.double().std()) / count**0.5),
    ]
    apart = found.decomposition
    for name, part in (
        ("mutual information", apart.mutual_information),
        ("total correlation", apart.total_correlation),
        ("dimension-wise KL", apart.dimension_wise),
    ):
        figures.append((name, part.value, part.standard_error))
    print(tabulate(figures, headers=["nats", "mean", "standard error"], floatfmt=".4g"), apart.estimator, sep="\n")


if __name__ == "__main__":
    main()
