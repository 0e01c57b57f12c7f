"""Whether a model keeps the contract of :mod:`vaeaudit.model.vae`: each attribute asked for, and the wrong one named.

A fault is told in one sentence: the attribute, what came, what was expected, and the page that shows it.
"""

from collections.abc import Callable, Iterator
from inspect import isroutine, signature
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor, nn

from vaeaudit.errors import ContractError, clipped, listed
from vaeaudit.model.divergence import Density, closed_form
from vaeaudit.model.families import FullGaussian
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, Discrete, GaussianLikelihood, Joint, Likelihood, Posterior

PAGE = "docs/adapters.md"
_POSTERIOR = ("mean", "noise_shape", "sample", "kl", "wasserstein2", "rows")
_LIKELIHOOD = ("mean", "route", "support", "log_prob")
_GAUSSIAN = "vaeaudit.DiagonalGaussian(mean, logvar / 2)"
_CONDITIONAL = f"see {PAGE}#labels-and-covariates"
_DRAWS = 3  # another number than that of the rows, so that the axes cannot be confused


def fault_of(vae: object) -> str:
    """What is wrong with a model before it is run, in words that follow "returned a X", or ""."""
    if vae is None:
        return f"where a model was expected; is a return missing at the end of open? See {PAGE}#the-adapter"
    if isinstance(vae, type):
        name = clipped(vae.__name__)
        return f"that is the class {name} itself, where an object of it was expected: {name}(...)"
    absent = [name for name in ("input_shape", "range", "prior", "encode", "decode") if not hasattr(vae, name)]
    if absent:
        hint = "; range is None where inputs have none" if "range" in absent else ""
        if isinstance(getattr(vae, "module", None), nn.Module):
            hint = "; it wraps a model, so return its .module"
        return f"without {', '.join(absent)}{hint}; see {PAGE}#what-the-contract-asks"
    shape = getattr(vae, "input_shape", None)
    if isinstance(shape, Integral) and not isinstance(shape, bool):
        return f"whose input_shape is {shape}, where a tuple was expected: ({shape},) for vectors of {shape} numbers"
    if not (isinstance(shape, tuple | list) and shape and all(isinstance(n, Integral) and int(n) > 0 for n in shape)):
        return f"whose input_shape is {clipped(repr(shape))}, where positive integers such as (1, 28, 28) were expected"
    for name in ("encode", "decode"):
        if not callable(getattr(vae, name)):
            kind = type(getattr(vae, name)).__name__
            return f"whose {name} is of type {kind}, where a method was expected; see {PAGE}#what-the-contract-asks"
        conditional, of = hasattr(vae, "condition_shape"), {"encode": "x", "decode": "z"}[name]
        if place := _cannot_take(getattr(vae, name), 2 if conditional else 1):
            if conditional:
                return f"whose {name}{place} cannot be called with {of} and conditions, as condition_shape promises"
            also = (
                ""
                if _cannot_take(getattr(vae, name), 2)
                else f"; a conditional model says condition_shape: {_CONDITIONAL}"
            )
            return f"whose {name}{place} cannot be called with one batch, where {name}(self, {of}) was expected{also}"
    return ""


def _cannot_take(method: Callable[..., object], arguments: int) -> str:
    """Where a method stands that cannot be called with so many, as " (file.py, line 12)"; "" for one that can."""
    try:
        signature(method).bind(*[None] * arguments)
    except TypeError:
        pass
    except ValueError as error:  # of a bound method without even self; or what is written in C has no signature
        if "invalid method signature" not in str(error):
            return ""
    else:
        return ""
    code = getattr(method, "__code__", None)
    return f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code else " "


@torch.no_grad()
def check_contract(vae: VAE, x: Tensor) -> None:
    """Try every attribute of the model on items ``x`` (two or more, *input_shape).

    Raises :class:`ContractError` at the first that is not as it should be.
    """
    for fault in _faults(vae, x):
        raise ContractError(f"the model's {fault}; correct its adapter")


def _faults(vae: VAE, x: Tensor) -> Iterator[str]:
    q, n = vae.encode(x), len(x)
    yield from _of_posterior("encode(x)", q, "encoder")
    yield from _of_posterior("prior", vae.prior, "prior")
    yield from _rows("mean of encode(x)", q.mean, n)
    yield from _rows("mean of prior", vae.prior.mean, 1)
    if isinstance(vae.prior, Chain) and not isinstance(q, Chain):
        yield (
            f"encode(x) is a {_kind(q)}, where a chain such as vaeaudit.GaussianChain was expected, as prior is one; "
            f"see {PAGE}#several-stochastic-layers"
        )
    latent = tuple(q.mean.shape[1:])
    if tuple(vae.prior.mean.shape[1:]) != latent:
        yield (
            f"prior has latents of shape {tuple(vae.prior.mean.shape[1:])}, where {latent} was expected, those of "
            "encode(x)" + (f", all layers side by side: see {PAGE}#several-stochastic-layers" * isinstance(q, Chain))
        )
    for name, p in (("encode(x)", q), ("prior", vae.prior)):
        if isinstance(p, DiagonalGaussian):
            yield from _shape(f"log_stddev of {name}", p.log_stddev, tuple(p.mean.shape), "that of its mean")
        if isinstance(p, FullGaussian):
            square = (*p.mean.shape, p.mean.shape[-1])
            yield from _shape(f"cholesky of {name}", p.cholesky, square, "a matrix for each row of its mean")
            if bool(p.cholesky.triu(1).any()) or bool((p.cholesky.diagonal(dim1=-2, dim2=-1) <= 0).any()):
                yield f"cholesky of {name} is no Cholesky factor, which has zeros above its diagonal and none on it"
        yield from _of_family(name, p)
    noise = q.mean.new_zeros((_DRAWS, n, *q.noise_shape))
    z = q.sample(noise)
    yield from _shape("sample(noise) of encode(x)", z, (_DRAWS, n, *latent), f"for noise of {tuple(noise.shape)}")
    several = torch.zeros(n + 1, dtype=torch.long, device=x.device)
    yield from _rows("rows(index) of encode(x), for as many numbers,", q.rows(several).mean, n + 1)
    exact = closed_form(q, vae.prior)
    if exact is not None:
        yield from _shape("kl(prior) of encode(x)", exact, (n,), "one number for each row, summed over latents")
    elif isinstance(q, Density) and isinstance(vae.prior, Density):
        for what, density in (("encode(x)", q), ("prior", vae.prior)):
            yield from _shape(f"log_prob(z) of {what}", density.log_prob(z[0]), (n,), "one number for each row of z")
    yield from _of_likelihood(vae.decode(q.mean), x)


def _of_posterior(name: str, q: object, which: str) -> Iterator[str]:
    """What is wrong with a posterior or prior as an object."""
    if isinstance(q, Posterior):
        return
    end = f"a posterior such as vaeaudit.DiagonalGaussian was expected; see {PAGE}#what-the-contract-asks"
    if which == "prior" and isroutine(q):
        yield f"prior is a method, where {end}: put @property above it"
    elif isinstance(q, tuple | list) and len(q) >= 2 and all(isinstance(part, Tensor) for part in q):
        yield f"{name} is a {_kind(q)} of {len(q)} tensors, where {end}: of mean and log-variance, return {_GAUSSIAN}"
    elif isinstance(q, Tensor):
        how = "" if which == "prior" else f", or {PAGE}#a-deterministic-encoder where there is no spread"
        yield f"{name} is a Tensor, where {end}{how}"
    elif isinstance(q, torch.distributions.Distribution):
        yield f"{name} is a torch.distributions.{_kind(q)}, where {end}: of a Normal, its mean and stddev.log()"
    else:
        lacking = [attribute for attribute in _POSTERIOR if not hasattr(q, attribute)]
        yield f"{name} is an object of type {_kind(q)} without {listed(lacking)}, where {end}"


def _of_family(name: str, p: Posterior) -> Iterator[str]:
    """What is wrong with attributes by whose names a family is known, in one that may mean something else by them."""
    page = f"see {PAGE}#categorical-latents-and-several-kinds-side-by-side"
    if isinstance(p, Joint):
        parts: object = p.parts
        if not (isinstance(parts, tuple | list) and all(isinstance(part, Posterior) for part in parts)):
            yield (
                f"parts of {name} is an object of type {_kind(parts)}, where a tuple of posteriors was expected; where "
                f"it means something else, give it another name: {page}"
            )
    if isinstance(p, Discrete):
        values: object = p.log_probabilities
        if not isinstance(values, Tensor) or values.ndim != 2:
            came = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"of type {_kind(values)}"
            yield f"log_probabilities of {name} is {came}, where (batch, classes) was expected; {page}"


def _of_likelihood(p: object, x: Tensor) -> Iterator[str]:
    """What is wrong with what ``decode`` gives."""
    if isinstance(p, GaussianLikelihood) and not isinstance(given := p.log_stddev, Tensor):
        yield (
            f"log_stddev of decode(z) is an object of type {_kind(given)}, where a tensor was expected: "
            "mean.new_tensor(it) if it is a number"
        )
        return
    if not isinstance(p, Likelihood):
        end = f"a likelihood was expected; see {PAGE}#what-the-contract-asks"
        if isinstance(p, tuple | list) and len(p) >= 2 and all(isinstance(part, Tensor) for part in p):
            yield (
                f"decode(z) is a {_kind(p)} of {len(p)} tensors, where {end}: of mean and log-variance, return "
                "vaeaudit.GaussianLikelihood(mean, logvar / 2)"
            )
        elif isinstance(p, torch.distributions.Distribution):
            yield (
                f"decode(z) is a torch.distributions.{_kind(p)}, where {end}: of a Normal, return "
                "vaeaudit.GaussianLikelihood(its mean, its stddev.log()); of a Bernoulli, "
                "vaeaudit.BernoulliLogits(its logits)"
            )
        elif isinstance(p, Tensor):
            yield (
                f"decode(z) is a Tensor, where {end}: return vaeaudit.BernoulliLogits(it) if these are logits, "
                "vaeaudit.BernoulliProbabilities(it) if a sigmoid came last, or "
                "vaeaudit.GaussianLikelihood(it, log_stddev)"
            )
        else:
            lacking = [attribute for attribute in _LIKELIHOOD if not hasattr(p, attribute)]
            yield f"decode(z) is an object of type {_kind(p)} without {listed(lacking)}, where {end}"
        return
    yield from _shape("mean of decode(z)", p.mean, tuple(x.shape), "that of the inputs")
    if isinstance(p, GaussianLikelihood) and not _broadcasts(p.log_stddev, p.mean):
        yield (
            f"log_stddev of decode(z) is of shape {tuple(p.log_stddev.shape)}, where one that broadcasts against its "
            f"mean {tuple(p.mean.shape)} was expected, or (batch, 1) for one of each item"
        )
    support: object = p.support
    if support is not None:
        ends = list(support) if isinstance(support, tuple | list) else []
        if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
            yield f"support of decode(z) is {clipped(repr(support))}, where (lo, hi), or None for any, was expected"
        if any(bool(((values < ends[0]) | (values > ends[1])).any()) for values in (p.mean, x)):
            return  # told as a finding: log p is not defined there
    yield from _shape(
        "log_prob(x) of decode(z)", p.log_prob(x), (len(x),), "one number for each row, summed over its elements"
    )


def _broadcasts(log_stddev: Tensor, mean: Tensor) -> bool:
    try:
        return tuple(log_stddev.shape) == (len(mean), 1) or log_stddev.expand(mean.shape).shape == mean.shape
    except RuntimeError:
        return False


def _rows(name: str, values: object, rows: int) -> Iterator[str]:
    if not isinstance(values, Tensor) or values.ndim < 2 or len(values) != rows:
        came = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"an object of type {_kind(values)}"
        yield f"{name} is {came}, where ({rows}, *latent) was expected; see {PAGE}#what-the-contract-asks"


def _shape(name: str, values: object, expected: tuple[int, ...], why: str) -> Iterator[str]:
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        came = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"an object of type {_kind(values)}"
        yield f"{name} is {came}, where shape {expected} was expected, {why}; see {PAGE}#what-the-contract-asks"


def _kind(value: object) -> str:
    return clipped(type(value).__name__)
