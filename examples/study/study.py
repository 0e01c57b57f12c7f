"""Train and audit every row of a table, and gather what the audits found in one tidy file; see README.md.

    python examples/study/study.py examples/study/small.toml --out study

Ctrl-C ends it at any time, and the same command goes on from there.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from data import audited, chosen, image_shape, training_images
from table import SETTINGS, Row, Study, read_table
from train import MODEL, DivergedError, train

import vaeaudit
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import VaeauditError
from vaeaudit.report.reading import ReportError, read_report
from vaeaudit.report.results import Figure, figures_of, read_results, to_csv

SCALED = 50  # items whose encoder's scale is measured


def carry_out(study: Study, folder: Path, data: Path | None, told: Callable[[str], None]) -> Path:
    """Train and audit all rows, and write the results; what is there already is taken. Returns the file.

    Raises:
        ValueError: data are missing, or a folder holds a model of another row.
        RuntimeError: an audit ended without a complete report.
        ResultsError: reports of another version of the tool lie there.
    """
    figures: list[Figure] = []
    for row in study.rows:
        place = folder / row.name
        place.mkdir(parents=True, exist_ok=True)
        why = _train(row, place, data, told)
        if why is not None:
            told(f"{row.name}: diverged and not audited, {why}")
        else:
            _audit(row, study.audits[row.audit], place / MODEL, data, told)
        figures += gathered(row, place / row.audit, why is not None)
    file = folder / "results.csv"
    file.write_text(to_csv(figures), encoding="utf-8")
    read_results([file])  # which refuses what is of several versions
    return file


def gathered(row: Row, place: Path, diverged: bool) -> list[Figure]:
    """The figures of one audit in its folder: its own, the scale of the encoder, and whether the model is none.

    A model that diverged was not audited, and of one that is not plausible the audit measures nothing: figures that are
    merely missing would tell neither.
    """
    settings = {name: str(value) for name in SETTINGS if (value := getattr(row, name)) is not None}
    found = [] if diverged else figures_of(place / "report", settings, str(row.seed))
    version = found[0].version if found else f"vaeaudit {vaeaudit.__version__}"
    scale: dict[str, list[float]] = {} if diverged else json.loads((place / "scale.json").read_text())
    for name, values in scale.items():
        parts = (settings, str(row.seed), name)
        found += [Figure(*parts, None, math.fsum(values) / len(values), None, None, len(values), None, version)]
        found += [Figure(*parts, i, value, None, None, None, None, version) for i, value in enumerate(values)]
    faults = {"diverged": diverged, "implausible": not diverged and not _plausible(place / "report")}
    told = [Figure(settings, str(row.seed), n, None, float(v), None, None, 1, None, version) for n, v in faults.items()]
    return [*found, *told]


def _train(row: Row, place: Path, data: Path | None, told: Callable[[str], None]) -> str | None:
    """Why the model diverged; None where it did not, and is there."""
    try:
        train(row, lambda: training_images(row.data, data, image_shape(row), row.items, row.seed), place, told)
    except DivergedError as error:
        return str(error)
    return None


def _audit(
    row: Row, settings: dict[str, dict[str, object]], model: Path, data: Path | None, told: Callable[[str], None]
) -> None:
    """Audit a trained model with the command, unless the same audit lies beside it."""
    place = model.parent / row.audit
    place.mkdir(exist_ok=True)
    config, report, scale = (place / name for name in ("vaeaudit.toml", "report", "scale.json"))
    source = {"data": {"source": str(audited(row.data, data).resolve()), "resize": "bilinear"}}
    wanted = "".join(
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for section, keys in {**source, **settings}.items()
    )
    if scale.exists() and config.read_text(encoding="utf-8") == wanted and _complete(report, model):
        return
    scale.unlink(missing_ok=True)  # written last: without it no settings say what the report is of
    config.write_text(wanted, encoding="utf-8")
    start = time.monotonic()
    code = _command("audit", model, "--config", config, "--out", report, "--resume", "--quiet")
    if code not in (0, 5) or not _complete(report, model):
        raise RuntimeError(f"the audit '{row.audit}' of {row.name} ended with {code}; see {report}")
    scale.write_text(json.dumps(_scale(model, row, data)), encoding="utf-8")
    doubt = "" if _plausible(report) else "; it is no plausible model, and has no figures"
    told(f"{row.name}: audited, {row.audit}, {time.monotonic() - start:.0f} s{doubt}")


def _plausible(report: Path) -> bool:
    """Whether the model passed what is asked of it before anything is measured."""
    found, _ = read_report(report)
    return found.plausibility is None or found.plausibility.passed


def _complete(report: Path, model: Path) -> bool:
    """Whether there is a report of an audit of this very file that was not cut off."""
    try:
        found, _ = read_report(report)
    except ReportError:
        return False
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return found.status == "complete" and found.model.file.sha256 == digest


def _command(*arguments: object) -> int:
    """Exit code of `vaeaudit` with these arguments."""
    done = subprocess.run([sys.executable, "-m", "vaeaudit", *map(str, arguments)], stdout=subprocess.DEVNULL)
    return done.returncode


def _scale(model: Path, row: Row, data: Path | None) -> dict[str, list[float]]:
    """Of some items, the mean standard deviation of the posterior and the Frobenius norm of the Jacobian of its mean.

    What theorem 1 of Camuto et al. explains margins by; of a hierarchy those of the first layer.
    """
    vae = vaeaudit.load(model)
    items = fit(read(audited(row.data, data)), input_shape=vae.input_shape, data_range=vae.range, resize="bilinear")
    x = items.batch(chosen(row.data, len(items), SCALED))
    q = _gaussian(vae.encode(x))

    def mean(one: torch.Tensor) -> torch.Tensor:
        return _gaussian(vae.encode(one.unsqueeze(0))).mean.flatten()

    norms = [torch.linalg.vector_norm(torch.func.jacrev(mean)(one)).item() for one in x]
    return {"encoder.stddev.mean": q.stddev.flatten(1).mean(1).tolist(), "encoder.jacobian.mean": norms}


def _gaussian(q: vaeaudit.Posterior) -> vaeaudit.DiagonalGaussian:
    """The part that the input itself moves."""
    found = getattr(q, "first", q)
    found = found.parts[0] if hasattr(found, "parts") else found
    assert isinstance(found, vaeaudit.DiagonalGaussian)
    return found


def main() -> None:
    """Carry a study out."""
    parser = argparse.ArgumentParser(description="Train and audit the models of a table.")
    parser.add_argument("table", type=Path, help="the TOML file of the study")
    parser.add_argument("--data", type=Path, help="folder of mnist/, fashion/ and dsprites/")
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of models, reports and results.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that sums have one order, whatever the machine
    try:
        file = carry_out(read_table(args.table), args.out, args.data, lambda text: print(text, flush=True))
    except (ValueError, RuntimeError, VaeauditError) as error:
        sys.exit(f"error: {error}")
    print(f"{file}: now vaeaudit study {file} --against beta")


if __name__ == "__main__":
    main()
