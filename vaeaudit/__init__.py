"""vaeaudit: audit trained variational autoencoders.

The names below are the public interface; they are imported on first use, so that the command line answers
``--help`` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaeaudit.chain import GaussianChain as GaussianChain
    from vaeaudit.checkpoints import Checkpoint as Checkpoint
    from vaeaudit.checkpoints import load_state as load_state
    from vaeaudit.checks.attack import AttackResult as AttackResult
    from vaeaudit.checks.attack import attack as attack
    from vaeaudit.checks.capped import CappedResult as CappedResult
    from vaeaudit.checks.capped import capped_attack as capped_attack
    from vaeaudit.checks.latents import LatentsResult as LatentsResult
    from vaeaudit.checks.latents import latents as latents
    from vaeaudit.checks.margin import MarginResult as MarginResult
    from vaeaudit.checks.margin import margin as margin
    from vaeaudit.checks.mig import MigResult as MigResult
    from vaeaudit.checks.mig import mig as mig
    from vaeaudit.checks.noise import NoiseResult as NoiseResult
    from vaeaudit.checks.noise import noise as noise
    from vaeaudit.checks.weights import WeightsResult as WeightsResult
    from vaeaudit.checks.weights import weights as weights
    from vaeaudit.ranges import Range as Range
    from vaeaudit.ranges import as_range as as_range
    from vaeaudit.registry import load as load
    from vaeaudit.vae import VAE as VAE
    from vaeaudit.vae import BernoulliLogits as BernoulliLogits
    from vaeaudit.vae import BernoulliProbabilities as BernoulliProbabilities
    from vaeaudit.vae import DiagonalGaussian as DiagonalGaussian
    from vaeaudit.vae import GaussianLikelihood as GaussianLikelihood
    from vaeaudit.vae import Likelihood as Likelihood
    from vaeaudit.vae import Posterior as Posterior

_HOME = {
    "AttackResult": "checks.attack",
    "attack": "checks.attack",
    "CappedResult": "checks.capped",
    "capped_attack": "checks.capped",
    "MarginResult": "checks.margin",
    "margin": "checks.margin",
    "LatentsResult": "checks.latents",
    "latents": "checks.latents",
    "MigResult": "checks.mig",
    "mig": "checks.mig",
    "NoiseResult": "checks.noise",
    "noise": "checks.noise",
    "WeightsResult": "checks.weights",
    "weights": "checks.weights",
    "Checkpoint": "checkpoints",
    "load_state": "checkpoints",
    "load": "registry",
    "Range": "ranges",
    "as_range": "ranges",
    "VAE": "vae",
    "BernoulliLogits": "vae",
    "BernoulliProbabilities": "vae",
    "DiagonalGaussian": "vae",
    "GaussianChain": "chain",
    "GaussianLikelihood": "vae",
    "Likelihood": "vae",
    "Posterior": "vae",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vaeaudit' has no attribute '{name}'")
    return getattr(import_module(f"vaeaudit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
