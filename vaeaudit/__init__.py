"""vaeaudit: audit trained variational autoencoders.

The names below are the public interface, for adapters and for checks of one's own; they are imported on first use, so
that the command line answers ``--help`` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaeaudit.checks.attack.capped import CappedResult as CappedResult
    from vaeaudit.checks.attack.capped import capped_attack as capped_attack
    from vaeaudit.checks.attack.measure import AttackResult as AttackResult
    from vaeaudit.checks.attack.measure import attack as attack
    from vaeaudit.checks.equivalence.measure import EquivalenceResult as EquivalenceResult
    from vaeaudit.checks.equivalence.measure import equivalence as equivalence
    from vaeaudit.checks.latents.measure import LatentsResult as LatentsResult
    from vaeaudit.checks.latents.measure import latents as latents
    from vaeaudit.checks.margin.measure import MarginResult as MarginResult
    from vaeaudit.checks.margin.measure import margin as margin
    from vaeaudit.checks.mig.measure import MigResult as MigResult
    from vaeaudit.checks.mig.measure import mig as mig
    from vaeaudit.checks.noise.measure import NoiseResult as NoiseResult
    from vaeaudit.checks.noise.measure import noise as noise
    from vaeaudit.checks.reconstruction.measure import ReconstructionResult as ReconstructionResult
    from vaeaudit.checks.reconstruction.measure import reconstruction as reconstruction
    from vaeaudit.checks.record import Drawing as Drawing
    from vaeaudit.checks.record import Record as Record
    from vaeaudit.checks.record import metric_entry as metric_entry
    from vaeaudit.checks.registry import Check as Check
    from vaeaudit.checks.weights.measure import WeightsResult as WeightsResult
    from vaeaudit.checks.weights.measure import weights as weights
    from vaeaudit.layout.entry import Entry as Entry
    from vaeaudit.layout.entry import MetricEntry as MetricEntry
    from vaeaudit.layout.section import Section as Section
    from vaeaudit.layout.section import Shown as Shown
    from vaeaudit.model.chain import GaussianChain as GaussianChain
    from vaeaudit.model.checkpoints import Checkpoint as Checkpoint
    from vaeaudit.model.checkpoints import load_state as load_state
    from vaeaudit.model.conditions import Conditional as Conditional
    from vaeaudit.model.conditions import Conditioned as Conditioned
    from vaeaudit.model.families import Concrete as Concrete
    from vaeaudit.model.families import FullGaussian as FullGaussian
    from vaeaudit.model.families import Mixture as Mixture
    from vaeaudit.model.families import Point as Point
    from vaeaudit.model.families import Product as Product
    from vaeaudit.model.likelihoods import CategoricalLikelihood as CategoricalLikelihood
    from vaeaudit.model.likelihoods import LaplaceLikelihood as LaplaceLikelihood
    from vaeaudit.model.likelihoods import LogisticMixtureLikelihood as LogisticMixtureLikelihood
    from vaeaudit.model.likelihoods import NegativeBinomialLikelihood as NegativeBinomialLikelihood
    from vaeaudit.model.likelihoods import StudentTLikelihood as StudentTLikelihood
    from vaeaudit.model.likelihoods import ZeroInflatedLikelihood as ZeroInflatedLikelihood
    from vaeaudit.model.ranges import Range as Range
    from vaeaudit.model.ranges import as_range as as_range
    from vaeaudit.model.registry import load as load
    from vaeaudit.model.vae import VAE as VAE
    from vaeaudit.model.vae import BernoulliLogits as BernoulliLogits
    from vaeaudit.model.vae import BernoulliProbabilities as BernoulliProbabilities
    from vaeaudit.model.vae import DiagonalGaussian as DiagonalGaussian
    from vaeaudit.model.vae import GaussianLikelihood as GaussianLikelihood
    from vaeaudit.model.vae import LatentScale as LatentScale
    from vaeaudit.model.vae import Likelihood as Likelihood
    from vaeaudit.model.vae import Posterior as Posterior
    from vaeaudit.progress import Progress as Progress
    from vaeaudit.settings.sections import BaseSettings as BaseSettings
    from vaeaudit.stats.estimates import Measurement as Measurement
    from vaeaudit.stats.estimates import statistics as statistics
    from vaeaudit.stats.metric import Metric as Metric
    from vaeaudit.stats.metric import meanings as meanings
    from vaeaudit.subject.device import compute_exactly as compute_exactly
    from vaeaudit.subject.opened import Subject as Subject

_HOME = {
    "AttackResult": "checks.attack.measure",
    "attack": "checks.attack.measure",
    "CappedResult": "checks.attack.capped",
    "capped_attack": "checks.attack.capped",
    "MarginResult": "checks.margin.measure",
    "margin": "checks.margin.measure",
    "LatentsResult": "checks.latents.measure",
    "latents": "checks.latents.measure",
    "MigResult": "checks.mig.measure",
    "mig": "checks.mig.measure",
    "NoiseResult": "checks.noise.measure",
    "noise": "checks.noise.measure",
    "ReconstructionResult": "checks.reconstruction.measure",
    "reconstruction": "checks.reconstruction.measure",
    "EquivalenceResult": "checks.equivalence.measure",
    "equivalence": "checks.equivalence.measure",
    "WeightsResult": "checks.weights.measure",
    "weights": "checks.weights.measure",
    "Check": "checks.registry",
    "Record": "checks.record",
    "Drawing": "checks.record",
    "metric_entry": "checks.record",
    "Entry": "layout.entry",
    "MetricEntry": "layout.entry",
    "Section": "layout.section",
    "Shown": "layout.section",
    "Progress": "progress",
    "BaseSettings": "settings.sections",
    "Measurement": "stats.estimates",
    "statistics": "stats.estimates",
    "Metric": "stats.metric",
    "meanings": "stats.metric",
    "compute_exactly": "subject.device",
    "Subject": "subject.opened",
    "Checkpoint": "model.checkpoints",
    "load_state": "model.checkpoints",
    "load": "model.registry",
    "Range": "model.ranges",
    "as_range": "model.ranges",
    "Conditional": "model.conditions",
    "Conditioned": "model.conditions",
    "VAE": "model.vae",
    "BernoulliLogits": "model.vae",
    "BernoulliProbabilities": "model.vae",
    "DiagonalGaussian": "model.vae",
    "GaussianChain": "model.chain",
    "GaussianLikelihood": "model.vae",
    "LatentScale": "model.vae",
    "Likelihood": "model.vae",
    "Posterior": "model.vae",
    "CategoricalLikelihood": "model.likelihoods",
    "LaplaceLikelihood": "model.likelihoods",
    "LogisticMixtureLikelihood": "model.likelihoods",
    "NegativeBinomialLikelihood": "model.likelihoods",
    "StudentTLikelihood": "model.likelihoods",
    "ZeroInflatedLikelihood": "model.likelihoods",
    "Concrete": "model.families",
    "FullGaussian": "model.families",
    "Mixture": "model.families",
    "Point": "model.families",
    "Product": "model.families",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vaeaudit' has no attribute '{name}'")
    return getattr(import_module(f"vaeaudit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
