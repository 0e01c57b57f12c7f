"""`vaeaudit attack`: how far an input must move to be encoded as another."""

from typing import Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, carry_out
from vaeaudit.cli.common import SHARED_KEYS, settings_of

_KEYS = SHARED_KEYS | {
    "out": "run.out",
    "mode": "attack.modes",
    "pairs": "attack.pairs",
    "lambdas": "attack.lambdas",
    "pairing": "attack.pairing",
    "vary": "attack.vary",
    "pair": "attack.pair",
    "similarity": "attack.similarity",
    "on": "attack.on",
    "layers": "attack.layers",
    "penalty": "attack.penalty",
    "cap": "attack.caps",
    "norm": "attack.norm",
    "ref": "attack.ref",
    "restarts": "attack.restarts",
    "max_evaluations": "attack.max_evaluations",
}


def command(
    context: typer.Context,
    model: options.Model = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What is attacked: latent, output, damage, untargeted, latent-side or worst; repeatable. "
            "[default: latent]",
            envvar="VAEAUDIT_MODE",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Source and target pairs. [default: 10]", envvar="VAEAUDIT_PAIRS"),
    ] = None,
    pairing: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Pairs at random, or of different label, with success rates. [default: random]",
            envvar="VAEAUDIT_PAIRING",
        ),
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR",
            help="Pairs that differ in this one factor of the data, with success and progress.",
            envvar="VAEAUDIT_VARY",
        ),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE:TARGET", help="A pair itself, by item numbers; repeatable."),
    ] = None,
    lambdas: Annotated[
        int | None,
        typer.Option(metavar="N", help="Values of lambda from 2^-20 to 2^20. [default: 50]", envvar="VAEAUDIT_LAMBDAS"),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="kl, reverse-kl, symmetric-kl, mean, sample or wasserstein. [default: kl]",
            envvar="VAEAUDIT_SIMILARITY",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What of the posterior the perturbation reaches: mean, std or both. [default: both]",
            envvar="VAEAUDIT_ON",
        ),
    ] = None,
    layers: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Layer of a hierarchical posterior to compare, from 1; repeatable. [default: all]"
        ),
    ] = None,
    penalty: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="l2 (the norm) or l2sq (its square). [default: l2]", envvar="VAEAUDIT_PENALTY"
        ),
    ] = None,
    cap: Annotated[
        list[float] | None,
        typer.Option(
            metavar="C",
            help="Largest norm of the distortion in damage, untargeted, latent-side and worst; repeatable. "
            "[default: 0.5 1 2; for linf 2/255, 8/255, 16/255 of the range]",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Norm of the cap: l2 or linf. [default: l2]", envvar="VAEAUDIT_NORM"),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What damage is measured from: reconstruction or input. [default: reconstruction]",
            envvar="VAEAUDIT_REF",
        ),
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Points between source and target to search from besides the source. [default: 1]",
            envvar="VAEAUDIT_RESTARTS",
        ),
    ] = None,
    max_evaluations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Model evaluations for one problem, refining one lambda or one item and cap; up to four times as many "
            "where it still gains. [default: 600]",
            envvar="VAEAUDIT_MAX_EVALUATIONS",
        ),
    ] = None,
    adapter: options.Adapter = None,
    option: options.AdapterOption = None,
    data: options.Data = None,
    data_range: options.Range = None,
    resize: options.Resize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    out: options.Out = None,
    resume: options.Resume = False,
    output_format: options.Format = "table",
    output: options.Output = None,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Attack every pair for all lambda, or every item under caps, and report what it took and what it did."""
    resolved = settings_of(context, _KEYS, config, isolated, option)
    return carry_out(["attack"], resolved, resume, Delivery(output_format, output, quiet, verbose))
