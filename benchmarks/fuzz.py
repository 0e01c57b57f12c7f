"""Bytes that nobody wrote, given to every parser: each must read them or refuse them in one of vaeaudit's own errors.

    python -m benchmarks.fuzz [--seconds 30] [--only NAME | --together] [--corpus tests/corpus] [--keep FOLDER]

Needs atheris, which mutates what it was given towards code that was not run before (`pip install atheris`; it is no
dependency). Each parser runs in a process of its own, from the corpus and from valid files that are made here, or with
``--together``, as `make fuzz` and CI do, all in one, where an input's first byte picks its parser. A crash, an input
that takes over 5 s, or memory over 2 GiB ends it, and the input is kept. ``--keep`` holds what reached new code.
"""

import argparse
import gzip
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from vaeaudit.attacks.modes import MODES
from vaeaudit.audit.journal import FOLDER, Journal, opened
from vaeaudit.audit.log import Log, entries
from vaeaudit.audit.shards import Shard, launched, parse
from vaeaudit.checks.attack import pairs
from vaeaudit.checks.record import Record
from vaeaudit.data.image_folders import pixels_of
from vaeaudit.data.sources import read
from vaeaudit.errors import VaeauditError
from vaeaudit.model.adapters import find_adapter
from vaeaudit.model.checkpoints import read_checkpoint
from vaeaudit.progress import always
from vaeaudit.report.reading import read_report
from vaeaudit.settings.config import resolve

EXAMPLES = Path(__file__).parents[1] / "examples"
_SECONDS, _MEBIBYTES, _LONGEST = 5, 2048, 8192  # of one input, of the process, and bytes of an input
_ONE = """
import atheris
with atheris.instrument_imports(include=["vaeaudit"], enable_loader_override=False):
    from benchmarks import fuzz
fuzz.one({!r})
"""
_MEMORY = "/dev/shm"
ALL = "all"


def _file(name: str, parser: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    def given(content: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        parser(path)

    return given


def _header(content: bytes, folder: Path) -> None:
    """A header of a checkpoint and of data, of the length that it says, before a few values."""
    whole = len(content).to_bytes(8, "little") + content + bytes(range(160))
    for parser, name in ((read_checkpoint, "model.safetensors"), (read, "data.safetensors")):
        with suppress(VaeauditError):
            _file(name, parser)(whole, folder)


def _journal(content: bytes, folder: Path) -> None:
    path = folder / FOLDER / "shard-1-of-2.log"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    for entry in entries(path):
        entry.tensors()
    opened(path.parent)
    with Journal(folder, {}, True, Shard(0, 2)) as journal:
        journal.serve_only()


def _record(content: bytes, folder: Path) -> None:
    """An entry whose checksum is right and whose content is anything."""
    (folder / FOLDER).mkdir(exist_ok=True)
    path = folder / FOLDER / "whole.log"
    path.unlink(missing_ok=True)

    def work(_: object) -> Record:
        return Record(interrupted=True)

    with Journal(folder, {}, True) as journal:
        journal.record("noise", {}, lambda _: Record(), always)
        (kept, _), *_ = journal._found
    log = Log(path)
    with suppress(UnicodeDecodeError):
        log.append({"rows/a": torch.zeros(3, dtype=torch.uint8)}, {"key": kept, "part": "", "record": content.decode()})
    log.close()
    with Journal(folder, {}, True) as journal:
        journal.record("noise", {}, work, always)


def _text(*parsers: Callable[[str], object]) -> Callable[[bytes, Path], None]:
    def given(content: bytes, _: Path) -> None:
        text = content.decode("utf-8", "surrogateescape")
        for parser in parsers:
            with suppress(VaeauditError):
                parser(text)

    return given


def _adapter(text: str) -> None:
    """Modules of the standard library are importable, and some do something when they are."""
    if text.partition(":")[0].partition(".")[0] not in sys.stdlib_module_names:
        find_adapter(text)


def _variant(text: str) -> None:
    resolve({"equivalence.variants": ([text], "--variant")}, None)


def _launch(text: str) -> None:
    names = ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
    launched(dict(zip(names, text.split("\n"), strict=False)))


TARGETS: Mapping[str, Callable[[bytes, Path], None]] = {
    "header": _header,
    "checkpoint": _file("model.safetensors", read_checkpoint),
    "torch": _file("model.pt", read_checkpoint),
    "safetensors": _file("data.safetensors", read),
    "npz": _file("data.npz", read),
    "npy": _file("data.npy", read),
    "idx": _file("t10k-images-idx3-ubyte", read),
    "idxgz": _file("t10k-images-idx3-ubyte.gz", read),
    "csv": _file("data.csv", read),
    "image": lambda content, folder: (pixels_of(folder / "a.png", content), None)[1],
    "toml": _file("vaeaudit.toml", lambda path: resolve({}, path)),
    "report": _file("report.json", read_report),
    "journal": _journal,
    "record": _record,
    "text": _text(_adapter, _launch, parse, pairs.parse, _variant),
}


def seeds() -> dict[str, list[bytes]]:
    """Valid content for each parser, small."""
    images = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4)
    labels = np.array([0, 1])
    npz, npy, png, pt, log = (io.BytesIO() for _ in range(5))
    np.savez(npz, images=images, labels=labels, latents_classes=np.zeros((2, 2), int), latents_names=["a", "b"])
    np.save(npy, images)
    Image.fromarray((255 * images[0]).astype(np.uint8)).save(png, "png")
    torch.save({"encoder.0.weight": torch.ones(2, 3)}, pt)
    idx = bytes.fromhex("00000803000000020000000400000004") + bytes(range(32))
    with tempfile.TemporaryDirectory() as name:
        with Journal(Path(name), {}, False, Shard(1, 2)) as journal:
            journal.record("noise", {}, lambda _: Record(warnings=("told",)), always)
        (file,) = (Path(name) / FOLDER).glob("*.log")
        log.write(file.read_bytes())
        *_, last = entries(file)
        record = last.metadata["record"]
    tensors = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}
    metadata = {"vaeaudit": json.dumps({"adapter": "mlp", "range": [0, 1]}), "input_shape": "[4, 4]"}
    toml = '[model]\npath = "a.safetensors"\n[attack]\nmodes = ["latent"]\n[checks."margin.r4.median"]\nmin = 0.5\n'
    found = sorted(EXAMPLES.rglob("report.json"))
    texts = ["mlp", "a.py:open", "package.module:open", "3:7", "1/4", "dtype=bfloat16", "2\n4", *MODES]
    whole = save(tensors, metadata)
    return {
        "header": [whole[8 : 8 + int.from_bytes(whole[:8], "little")]],
        "checkpoint": [whole],
        "torch": [pt.getvalue()],
        "safetensors": [save(tensors, {})],
        "npz": [npz.getvalue()],
        "npy": [npy.getvalue()],
        "idx": [idx],
        "idxgz": [gzip.compress(idx, mtime=0)],
        "csv": [b"a,b,label\n0.5,1,0\n0.25,0,1\n"],
        "image": [png.getvalue()],
        "toml": [toml.encode()],
        "report": [file.read_bytes()[:_LONGEST] for file in found[:1]] or [b'{"schema_version": "1.0", "metrics": {}}'],
        "journal": [log.getvalue()],
        "record": [record.encode()],
        "text": [text.encode() for text in texts],
    }


def together(corpus: Path) -> list[bytes]:
    """All valid content, and the corpus, each after the byte that picks its parser."""
    return [
        bytes([place]) + content
        for place, name in enumerate(TARGETS)
        for content in [*seeds()[name], *(file.read_bytes() for file in sorted(corpus.glob(f"{name}/*")))]
    ]


def check(name: str, content: bytes, folder: Path) -> None:
    """Give ``content`` to a parser; what it raises that is no error of vaeaudit is a fault."""
    if name == ALL:
        names = [*TARGETS]
        name, content = names[content[0] % len(names)] if content else names[0], content[1:]
    with suppress(VaeauditError):
        TARGETS[name](content, folder)


def one(name: str) -> None:
    """In a process of its own, with libFuzzer's options of the command line: mutate until time is up."""
    import atheris

    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if Path(_MEMORY).is_dir() else None))
    atheris.Setup(sys.argv, lambda content: check(name, content, root))
    atheris.Fuzz()


def main() -> None:
    """Fuzz each parser in turn, and print how many inputs it was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="in all")
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--together", action="store_true", help="all parsers in one process, which starts sooner")
    parser.add_argument("--corpus", default="tests/corpus")
    parser.add_argument("--keep")
    asked = parser.parse_args()
    names = [asked.only] if asked.only else [ALL] if asked.together else list(TARGETS)
    whole = failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            for number, content in enumerate(together(Path(asked.corpus)) if name == ALL else seeds()[name]):
                (made / f"seed-{number}").write_bytes(content)
            grown = Path(asked.keep or scratch, name)
            grown.mkdir(parents=True, exist_ok=True)
            stored = Path(asked.corpus, name)
            folders = [str(grown), str(made), *([str(stored)] if stored.is_dir() else [])]
            limits = [f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEBIBYTES}", f"-max_len={_LONGEST}"]
            time = f"-max_total_time={max(1, asked.seconds // len(names))}"
            call = [sys.executable, "-c", _ONE.format(name)]
            kept = f"-artifact_prefix={grown}/fault-"
            done = subprocess.run([*call, *limits, time, kept, *folders], capture_output=True, text=True, check=False)
        counts = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
        count = int(counts[-1]) if counts else 0
        whole += count
        print(f"{name}: {count:,} inputs" + ("" if done.returncode == 0 else ", a fault:"), flush=True)
        if done.returncode:
            failed += 1
            print("\n".join(done.stderr.splitlines()[-40:]), flush=True)
    print(f"{whole:,} inputs in all; parsers with a fault: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
