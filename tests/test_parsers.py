"""What a fuzzer found new code with, or a fault: every parser reads it or refuses it in an error of vaeaudit."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "corpus"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = spec_from_file_location("benchmarks_fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_parser_reads_or_refuses_what_was_found_for_it(fuzz: ModuleType, tmp_path: Path) -> None:
    seeds = fuzz.seeds()
    assert {folder.name for folder in CORPUS.iterdir()} <= set(fuzz.TARGETS) == set(seeds)
    for name in fuzz.TARGETS:
        folder = tmp_path / name
        folder.mkdir()
        for content in [*seeds[name], *(file.read_bytes() for file in sorted(CORPUS.glob(f"{name}/*")))]:
            fuzz.check(name, content, folder)


def test_every_seed_but_those_of_text_is_read(fuzz: ModuleType, tmp_path: Path) -> None:
    """Or else the fuzzer would begin with what is refused at once."""
    for name in ("checkpoint", "torch", "safetensors", "npz", "npy", "idx", "idxgz", "csv", "image", "toml", "journal"):
        (tmp_path / name).mkdir()
        for content in fuzz.seeds()[name]:
            fuzz.TARGETS[name](content, tmp_path / name)


def test_where_all_parsers_share_a_process_the_first_byte_picks_one(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, bytes]] = []
    names = [*fuzz.TARGETS]
    told = {name: lambda content, _, name=name: given.append((name, content)) for name in names}
    monkeypatch.setattr(fuzz, "TARGETS", told)
    monkeypatch.setattr(fuzz, "seeds", lambda: {name: [name.encode()] for name in names})
    for content in (*fuzz.together(tmp_path), b"", bytes([len(names) + 1]) + b"again"):
        fuzz.check(fuzz.ALL, content, tmp_path)
    assert given == [*((name, name.encode()) for name in names), (names[0], b""), (names[1], b"again")]
