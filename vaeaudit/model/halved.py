"""A VAE whose encoder and decoder run in bfloat16; draws, likelihoods and divergences stay as they are."""

from torch import Tensor

from vaeaudit.errors import UnsupportedError
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Hierarchical, Likelihood, Posterior
from vaeaudit.model.variant import Variant
from vaeaudit.model.variants import Running, in_precision, varied

HALF = Variant(dtype="bfloat16")


class Halved:
    """The VAE that a model ``running`` in lower precision is; without gradients."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.input_shape: tuple[int, ...] = tuple(running.vae.input_shape)
        self.range: Range | None = running.vae.range

    @property
    def prior(self) -> Posterior:
        """p(z), one row."""
        return in_precision(self.running.vae.prior, self.running.fine)

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x), from what the encoder gave."""
        return self.running.encode(x)

    def decode(self, z: Tensor) -> Likelihood:
        """p(x|z), likewise."""
        return self.running.likelihood(z)

    def of_items(self, items: Tensor | slice) -> "Halved":
        """The VAE for rows that belong to these items."""
        return type(self)(self.running.of_items(items))


class HalvedChain(Halved):
    """One of several stochastic layers, whose priors are known."""

    def conditional_priors(self, z: Tensor) -> tuple[Posterior, ...]:
        """As of a :class:`vaeaudit.model.vae.Hierarchical`."""
        return self.running.conditional_priors(z)


def halved(vae: VAE, x: Tensor) -> VAE:
    """The model with bfloat16 weights, tried on the first of ``x`` (batch, *input_shape).

    Raises :class:`UnsupportedError` where it is no torch.nn.Module, does not run in bfloat16, or has a posterior or
    likelihood of its own that is no dataclass, whose numbers would stay in it.
    """
    other = varied(vae, HALF, x.dtype, x.device)
    running = Running(other.vae, other.dtype, HALF, x.device, x.dtype)
    lower = (HalvedChain if isinstance(running.vae, Hierarchical) else Halved)(running)
    first = lower.of_items(slice(1))
    q = first.encode(x[:1])
    for part, mean in ((q, q.mean), (made := first.decode(q.mean), made.mean)):
        if mean.dtype != running.fine:
            raise UnsupportedError(
                f"--dtype bfloat16 needs posteriors and likelihoods that are dataclasses of tensors, but this model's "
                f"{type(part).__name__} is none; make it one in the adapter, or leave --dtype out"
            )
    return lower
