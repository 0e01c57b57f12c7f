"""The weights check: time and memory of a file that is streamed, against reading it whole and summing its squares.

    python -m benchmarks.weights [--gigabytes 1] [--threads 1]

The file is made in a temporary folder: random float32 weights of one matrix with many columns and of square ones. Each
way runs in a process of its own, whose peak of memory (Linux) is told; the floor is one pass over the file's bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tabulate import tabulate

SIDE = 4096  # of the square ones
WIDE = (400, 196_608)  # a first layer's on 3x256x256 images

BEGIN = """
import sys, time, torch
from pathlib import Path
import vaeaudit.checks.weights.stored as files
from vaeaudit.checks.weights import weights
torch.set_num_threads(int(sys.argv[2]))
started = time.perf_counter()
"""
END = """
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(time.perf_counter() - started, peak / 2**20)
"""
WAYS = {
    "L2 norms": "weights(files.read_weights(sys.argv[1]), spectral=False)",
    "L2 and spectral norms": "weights(files.read_weights(sys.argv[1]))",
    "bytes alone": "with open(sys.argv[1], 'rb', buffering=0) as f:\n    while f.read(2**22): pass",
    "read whole, then summed": "from vaeaudit.model.checkpoints import read_checkpoint\n"
    "for t in read_checkpoint(sys.argv[1]).tensors.values(): t.double().norm()",
}


def write(file: Path, size: float) -> int:
    """A model of about ``size`` bytes; how many it has."""
    shapes = {"encoder.first": WIDE, "decoder.last": WIDE[::-1]}
    left = size - 8 * WIDE[0] * WIDE[1]
    shapes |= {f"encoder.{i}": (SIDE, SIDE) for i in range(max(0, int(left // (4 * SIDE**2))))}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for _ in range(shape[0]):
                stream.write(random.standard_normal(shape[1], dtype=np.float32).tobytes())
    return file.stat().st_size


def main() -> None:
    """Run each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    threads = str(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vae.safetensors"
        size = write(file, given.gigabytes * 1e9)
        rows = []
        for name, way in WAYS.items():
            done = subprocess.run(
                [sys.executable, "-c", BEGIN + way + END, str(file), threads],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )
            seconds, peak = map(float, done.stdout.split())
            rows.append([name, seconds, size / seconds / 1e6, peak])
    print(f"A file of {size / 1e9:.2f} GB, {threads} thread(s)\n")
    print(tabulate(rows, headers=["", "seconds", "MB / s", "peak, GiB"], floatfmt=".3g"))


if __name__ == "__main__":
    main()
