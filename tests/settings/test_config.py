"""Settings: who wins, where the file is looked for, and what each mistake is told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vaeaudit.errors import ConfigError
from vaeaudit.settings.config import find_config, read_config, resolve
from vaeaudit.settings.sections import Settings

SEED = "[run]\nseed = {}\n"


def told(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.exit_code == 2
    for jargon in ("\n", "Input should", "pydantic", "validation", "Value error"):
        assert jargon not in text
    return text


def written(file: Path, text: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_without_anything_said_the_defaults_hold() -> None:
    resolved = resolve({}, None)
    assert resolved.settings == Settings()
    assert resolved.sources == {}


def test_what_is_given_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = written(tmp_path / "vaeaudit.toml", "[run]\nseed = 4\nlimit = 9\n[attack]\npairs = 3\n")
    resolved = resolve({"run.seed": (5, "--seed"), "attack.pairs": (6, "VAEAUDIT_ATTACK_PAIRS")}, file)
    assert (resolved.settings.run.seed, resolved.settings.attack.pairs, resolved.settings.run.limit) == (5, 6, 9)
    assert resolved.settings.attack.lambdas == 50
    assert resolved.sources == {"run.seed": "--seed", "attack.pairs": "VAEAUDIT_ATTACK_PAIRS", "run.limit": str(file)}


def test_the_hash_is_of_the_values_whoever_said_them(tmp_path: Path) -> None:
    file = written(tmp_path / "vaeaudit.toml", SEED.format(5))
    by_flag = resolve({"run.seed": (5, "--seed")}, None)
    assert resolve({}, file).sha256 == by_flag.sha256 != resolve({}, None).sha256


POLICY_TOML = """
[model]
path = "vae.safetensors"
adapter = "vae.py:open"
[data]
source = "val.npz#x_test"
[weights]
against = "old.safetensors"
[baseline]
path = "audit/v1"
[checks."weights.encoder.l2"]
max = 3
"""


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("run.out", "elsewhere/report", True),
        ("model.path", "/other/place/vae.safetensors", True),
        ("data.source", "/other/place/val.npz#x_test", True),
        ("model.adapter", "/other/place/vae.py:open", True),
        ("model.path", "other.safetensors", False),
        ("data.source", "val.npz#x_train", False),
        ("data.source", "hf:someone/val.npz#x_test", False),
        ("model.adapter", "vae.py:load", False),
        ("run.seed", 1, False),
        ("run.sample", 9, False),
        ("attack.pairs", 3, False),
        ("checks.weights.encoder.l2", {"max": 4}, False),
        ("doctor.acknowledge", {"range": "meant"}, False),
        ("baseline.level", 0.9, False),
    ],
)
def test_the_hash_is_of_what_determines_figures_and_verdict(
    key: str, value: object, same: bool, tmp_path: Path
) -> None:
    """Not of where the report goes, nor of the folder in which the file and what it names were checked out."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        written(folder / "vaeaudit.toml", POLICY_TOML)
    plain = resolve({}, first / "vaeaudit.toml").sha256
    assert resolve({}, second / "vaeaudit.toml").sha256 == plain
    assert (resolve({key: (value, "test")}, first / "vaeaudit.toml").sha256 == plain) is same


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[doctor]\nacknowlege = {}", "unknown key 'acknowlege' in [doctor] (did you mean 'acknowledge'?)"),
        ("[doctor.acknowledge]\nrange = ' '", "doctor.acknowledge.range must be"),
        ("[attack]\npairs =", "is not valid TOML (Invalid value (at end of document)); correct it there"),
        (b"\xff\xfe", "is not UTF-8 (byte 0 is none of it); save it as UTF-8"),
        ("[model.options]\n" + "a." * 3000 + "b = 1", "model.options.a must be a value that is not nested so deeply"),
        ("[atack]\npairs = 1", "unknown section [atack] (did you mean 'attack'?); known are model, data, run, doctor"),
        ("[attack]\npars = 1", "unknown key 'pars' in [attack] (did you mean 'pairs'?); known are modes, pairs"),
        ("[attack]\npair = 1", "attack.pair must be a list, but 1 came"),
        ("[attack]\nvary = 'x'\npair = ['1:2']", "attack.pair must be left out where vary or pairing chooses"),
        ("[attack]\npairing = 'label'\nvary = 'x'", "attack.vary must be left out where pairing is label"),
        *(
            (f"[{section}]\n{key} = 1000000000000", f"{section}.{key} must be at most {most}")
            for section, key, most in (
                ("attack", "lambdas", 10_000),
                ("attack", "restarts", 100),
                ("attack", "pairs", 100_000),
                ("attack", "max_evaluations", 1_000_000),
                ("margin", "draws", 1_000_000),
                ("noise", "draws", 1_000_000),
                ("latents", "draws", 1_000_000),
                ("latents", "traverse", 20),
                ("run", "batch_size", 1_000_000_000),
            )
        ),
        ("[attack]\nrestarts = -1", "attack.restarts must be at least 0, but -1 came"),
        ("[chekcs.x]\nmin = 1", "unknown section [chekcs] (did you mean 'checks'?)"),
        (
            "[checks.margin.r4.median]\nmin = 1",
            'names with dots must be quoted, as in [checks."margin.r4.median"], but [checks.margin.r4] came',
        ),
        (
            '[checks."a.b"]\nmni = 1',
            "unknown key 'mni' in [checks.\"a.b\"] (did you mean 'min'?); known are min, max, bound, severity, waive",
        ),
        ('[checks."a.b"]\nseverity = "warn"', 'checks."a.b" must be a threshold with min or max'),
        ('[checks."a.b"]\nmin = 3\nmax = 1', 'checks."a.b" must be a threshold whose min is not above its max'),
        ('[checks."a.b"]\nmin = "x"', "checks.\"a.b\".min must be a valid number, but 'x' came"),
        ('[checks."a.b"]\nmin = nan', 'checks."a.b".min must be a finite number, but nan came'),
        ("[checks]\na = 3", 'checks."a" must be a table of keys and values, but 3 came'),
        (
            '[checks."a.b"]\nmin = 1\nbound = "lower"',
            "must be 'interval', 'ci_lower', 'ci_upper' or 'value', but 'lower' came (did you mean 'ci_lower'?)",
        ),
        ('[checks."a.b"]\nmin = 1\nwaive = { until = 2026-01-01 }', 'checks."a.b".waive.reason is missing; give it'),
        (
            '[checks."a.b"]\nmin = 1\nwaive = { until = "soon", reason = "x" }',
            "checks.\"a.b\".waive.until must be a day such as 2026-12-31, but 'soon' came",
        ),
        (
            '[checks."a.b"]\nmin = 1\nwaive = { until = 2026-01-01, reason = "x", by = 1 }',
            "unknown key 'by' in [checks.\"a.b\"] waive; known are until, reason",
        ),
        ('[checks."a.b"]\nmin = true', 'checks."a.b".min must be a valid number, but True came'),
        (
            '[checks."a.b"]\nmin = 1\nwaive = { until = 2026-12-31T10:00:00Z, reason = "x" }',
            "waive.until must be a day such as 2026-12-31",
        ),
        (
            '[checks."a.b"]\nmin = 1\nwaive = { until = 1798675200, reason = "x" }',
            "waive.until must be a day such as 2026-12-31, but 1798675200 came",
        ),
        (
            '[checks."a.b"]\nmin = 1\nwaive = { until = 2026-12-31, reason = " " }',
            "waive.reason must be a text with something to see in it",
        ),
        ('[run]\nout = "a\\u0000b"', "run.out must be a text with something to see in it, and no NUL"),
        ("[run]\nseed = " + "9" * 5000, "is not valid TOML"),
        (
            '[baseline]\nmin_effect = { "x" = -1 }',
            'baseline.min_effect.x must be at least 0 or a share such as "2%", but -1 came',
        ),
        ('[run]\nchecks = ["margn"]', "but 'margn' came (did you mean 'margin'?)"),
        ("[run]\nchecks = []", "run.checks must be a list of at least one check, but [] came"),
        ("attack = 3", "'attack' must be a section [attack], but 3 came"),
        ("[[attack]]\npairs = 1", "'attack' must be a section [attack], but [{'pairs': 1}] came"),
        ("[attack]\npairs = 0", "attack.pairs must be at least 1, but 0 came"),
        ("[attack]\npairs = '2'", "attack.pairs must be a valid integer, but '2' came"),
        ("[attack]\npairs = true", "attack.pairs must be a valid integer, but True came"),
        ("[attack]\npairs = 2.5", "attack.pairs must be a valid integer, but 2.5 came"),
        ("[attack]\nmodes = 'latent'", "attack.modes must be a list, but 'latent' came"),
        ("[attack]\nmodes = []", "attack.modes must be a list of at least one mode, but [] came"),
        ("[attack]\nmodes = ['latnt']", "or 'worst', but 'latnt' came (did you mean 'latent'?)"),
        ("[attack]\npenalty = 'l3'", "attack.penalty must be 'l2' or 'l2sq', but 'l3' came (did you mean 'l2'?)"),
        ("[data]\nrange = [0]", "for each channel or feature, but [0] came"),
        ("[data]\nrange = [0, 1, 2]", "for each channel or feature, but [0, 1, 2] came"),
        ("[data]\nrange = ['0', '1']", "for each channel or feature, but ['0', '1'] came"),
        ("[data]\nrange = [0, true]", "for each channel or feature, but [0, True] came"),
        ("[data]\nrange = [0, nan]", "for each channel or feature, but [0, nan] came"),
        ("[data]\nrange = 5", "for each channel or feature, but 5 came"),
        ("[model]\npath = 3", "model.path must be a valid string, but 3 came"),
        ("[model]\npath = ''", "model.path must be a text that is not empty, but '' came"),
        ("[model]\noptions = 'x'", "model.options must be a valid dictionary, but 'x' came"),
        ("[model]\noptions = { x = nan }", "model.options.x must be a finite number, but nan came"),
        ("[model]\noptions = { x = 2026-01-01 }", "model.options.x must be texts, finite numbers, booleans"),
        ("[run]\nseed = 1e3", "run.seed must be a valid integer, but 1000.0 came"),
        ("[run]\ndtype = 'float16'", "run.dtype must be 'float32', 'float64' or 'bfloat16', but 'float16' came"),
        ("[run]\nbatch_size = 0", "run.batch_size must be at least 1 or 'auto', but 0 came"),
        ("[run]\nbatch_size = 'aut'", "run.batch_size must be a valid integer or 'auto', but 'aut' came (did you mean"),
        ("[run]\nlimit = -1", "run.limit must be at least 1, but -1 came"),
    ],
)
def test_each_mistake_in_a_file_is_named_with_what_was_expected(
    tmp_path: Path, toml: str | bytes, message: str
) -> None:
    file = written(tmp_path / "vaeaudit.toml", toml)
    text = told(lambda: resolve({}, file))
    assert text.startswith(str(file))
    assert message in text


@pytest.mark.parametrize("who", ["--pairs", "VAEAUDIT_ATTACK_PAIRS"])
def test_a_flag_or_variable_is_named_as_its_user_knows_it(who: str) -> None:
    assert told(lambda: resolve({"attack.pairs": (-1, who)}, None)) == f"{who} must be at least 1, but -1 came"


def test_a_mode_named_twice_counts_once() -> None:
    assert resolve({"attack.modes": (["latent", "latent"], "--mode")}, None).settings.attack.modes == ("latent",)


def test_a_missing_file_or_a_folder_is_no_configuration(tmp_path: Path) -> None:
    for name in (tmp_path / "no.toml", tmp_path):
        assert f"there is no configuration file '{name}'" in told(lambda file=name: resolve({}, file))


def test_pyproject_counts_only_with_its_section(tmp_path: Path) -> None:
    file = written(tmp_path / "pyproject.toml", "[project]\nname = 'x'\n")
    assert find_config(tmp_path) is None
    assert "holds no table [tool.vaeaudit]" in told(lambda: read_config(file))
    for other in ("tool = 3\n", "[tool]\nruff = 1\n"):
        written(file, other)
        assert find_config(tmp_path) is None
    written(file, "[tool]\nvaeaudit = 3\n")
    assert "holds no table [tool.vaeaudit]" in told(lambda: read_config(file))
    written(file, "[tool.vaeaudit.run]\nseed = 7\n")
    assert find_config(tmp_path) == file
    assert resolve({}, file).settings.run.seed == 7
    written(file, "[tool.vaeaudit.run]\nsed = 7\n")
    assert "unknown key 'sed' in [run] (did you mean 'seed'?)" in told(lambda: resolve({}, file))


def test_vaeaudit_toml_wins_over_pyproject_beside_it_and_files_are_not_merged(tmp_path: Path) -> None:
    written(tmp_path / "pyproject.toml", "[tool.vaeaudit.run]\nseed = 7\n")
    own = written(tmp_path / "vaeaudit.toml", "[run]\nlimit = 3\n")
    assert find_config(tmp_path) == own
    assert resolve({}, own).settings.run.seed == 0
    written(tmp_path / "pyproject.toml", "this is no TOML")
    assert find_config(tmp_path) == own


def test_the_nearest_file_up_to_the_repository_root_counts(tmp_path: Path) -> None:
    outside = written(tmp_path / "vaeaudit.toml", SEED.format(1))
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    deep = tmp_path / "repo" / "a" / "b"
    deep.mkdir(parents=True)
    assert find_config(deep) is None  # not beyond the root
    root = written(tmp_path / "repo" / "vaeaudit.toml", SEED.format(2))
    assert find_config(deep) == root
    near = written(tmp_path / "repo" / "a" / "vaeaudit.toml", SEED.format(3))
    assert find_config(deep) == near
    assert find_config(tmp_path) == outside


def test_a_worktree_whose_git_is_a_file_is_a_repository_too(tmp_path: Path) -> None:
    written(tmp_path / ".git", "gitdir: elsewhere\n")
    file = written(tmp_path / "vaeaudit.toml", SEED.format(1))
    (tmp_path / "a").mkdir()
    assert find_config(tmp_path / "a") == file


def test_outside_a_repository_a_file_planted_above_is_not_taken(tmp_path: Path) -> None:
    written(tmp_path / "vaeaudit.toml", "[model]\nadapter = 'evil.py:open'\n")
    (tmp_path / "a").mkdir()
    assert find_config(tmp_path / "a") is None


def test_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path) -> None:
    text = "[model]\npath = 'm/vae.pt'\nadapter = 'own.py:open'\n[data]\nsource = 'val.npz'\n[run]\nout = 'r'\n"
    settings = resolve({}, written(tmp_path / "vaeaudit.toml", text)).settings
    assert settings.model.path == str(tmp_path / "m" / "vae.pt")
    assert settings.model.adapter == f"{tmp_path / 'own.py'}:open"
    assert settings.data.source == str(tmp_path / "val.npz")
    assert settings.run.out == str(tmp_path / "r")


def test_names_that_are_no_paths_stay_as_they_are(tmp_path: Path) -> None:
    text = "[model]\npath = '/abs/vae.pt'\nadapter = 'package.module:open'\n[data]\nsource = 'hf:repo@rev#split'\n"
    settings = resolve({}, written(tmp_path / "vaeaudit.toml", text)).settings
    assert (settings.model.path, settings.model.adapter) == ("/abs/vae.pt", "package.module:open")
    assert settings.data.source == "hf:repo@rev#split"


@pytest.mark.parametrize("key", ["margin.r", "noise.sigmas", "attack.caps"])
def test_one_number_needs_no_list_and_true_is_no_number(key: str) -> None:
    section, name = key.split(".")
    settings = resolve({key: (2, "x.toml")}, None).settings
    assert getattr(getattr(settings, section), name) == (2.0,)
    with pytest.raises(ConfigError, match=f"{key} must be numbers, but True came"):
        resolve({key: (True, "x.toml")}, None)


@pytest.mark.parametrize("key", ["margin.family_wise", "margin.boxed", "noise.clip", "weights.vectors"])
def test_a_switch_is_true_or_false_and_nothing_like_it(key: str) -> None:
    for value in ("yes", 1):
        with pytest.raises(ConfigError, match=f"{key} must be a valid boolean"):
            resolve({key: (value, "x.toml")}, None)


def test_the_mark_that_editors_put_before_text_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    file = written(tmp_path / "vaeaudit.toml", b"\xef\xbb\xbf[run]\nseed = 3\n")
    assert resolve({}, file).settings.run.seed == 3


def test_what_is_listed_twice_counts_once() -> None:
    given = {"attack.caps": [1, 0.5, 1.0], "margin.parts": ["certified"] * 2, "margin.r": [4, 4]}
    found = resolve({key: (value, "x.toml") for key, value in given.items()}, None).settings
    assert (found.attack.caps, found.margin.parts, found.margin.r) == ((1, 0.5), ("certified",), (4,))
