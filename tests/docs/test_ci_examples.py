"""The action and the examples for CI: well formed, with options that exist, and run for real on a stand-in audit."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.exceptions import TyperException
from typer.main import get_command

from vaeaudit.cli.app import app

ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"
HOOK = CI / "pre-push"
HOOK_TEXT = HOOK.read_text(encoding="utf-8")
README = (CI / "README.md").read_text(encoding="utf-8")
EXIT_CODES = {0, 1, 2, 3, 4, 5, 130}
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def parsed(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


ACTION: dict[str, Any] = parsed(ROOT / "action.yml")
WORKFLOW: dict[Any, Any] = parsed(CI / "github.yml")
GITLAB: dict[str, Any] = parsed(CI / "gitlab.yml")["vaeaudit"]
PRE_COMMIT: dict[str, Any] = parsed(CI / "pre-commit-config.yaml")["repos"][0]["hooks"][0]
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
JOB: list[dict[str, Any]] = WORKFLOW["jobs"]["audit"]["steps"]
SCRIPTS = {
    **{f"action.yml, {name}": step["run"] for name, step in STEPS.items() if "run" in step},
    **{f"github.yml, {step['name']}": step["run"] for step in JOB if "run" in step},
}


def assert_accepted(line: Sequence[str]) -> None:
    """Fail unless vaeaudit takes the command line: the command, its options and the forms of their values."""
    program, name, *arguments = line
    assert program == "vaeaudit"
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, [*arguments])  # raises what the user would be told


# ---- What stands in the files


def test_every_file_is_introduced_by_the_readme() -> None:
    for file in {path.name for path in CI.iterdir()} - {"README.md"}:
        assert f"]({file})" in README
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (CI / target).exists()


def test_the_command_lines_in_the_files_exist() -> None:
    lines = [entry for entry in GITLAB["script"] if entry.startswith("vaeaudit ")]
    lines += [PRE_COMMIT["entry"], *re.findall(r"`(vaeaudit [a-z][^`]*)`", README)]
    # An option that stands alone is one of `vaeaudit audit`.
    lines += [f"vaeaudit audit {option}" for option in re.findall(r"`(--[a-z][^`]*)`", README)]
    lines += [f"vaeaudit audit {option}" for option in re.findall(r"^#.* add (--.*)\.$", HOOK_TEXT, re.MULTILINE)]
    assert len(lines) == 8
    for line in lines:
        assert_accepted(shlex.split(line))
    with pytest.raises(TyperException, match="--chek"):
        assert_accepted(["vaeaudit", "audit", "--chek", "noise"])


def test_no_script_has_an_expression_pasted_into_it() -> None:
    assert len(SCRIPTS) == 4
    for script in SCRIPTS.values():
        assert "${{" not in script


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed here")
@pytest.mark.parametrize("name", [*SCRIPTS, "pre-push"])
def test_shellcheck_finds_nothing(name: str) -> None:
    script = SCRIPTS.get(name) or HOOK_TEXT
    done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_actions_of_others_are_pinned_to_a_major_version() -> None:
    used = [step["uses"] for step in [*ACTION["runs"]["steps"], *JOB] if "uses" in step]
    assert {"actions/setup-python@v5", "actions/upload-artifact@v4", "actions/cache/restore@v4"} <= set(used)
    for one in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+", one)


def test_inputs_and_outputs_of_the_action_are_described_and_used() -> None:
    inputs, text = ACTION["inputs"], (ROOT / "action.yml").read_text(encoding="utf-8")
    for one in inputs.values():
        assert one["description"]
        assert isinstance(one["default"], str)  # a bare true would be another type elsewhere
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(inputs)
    assert set(ACTION["outputs"]) == {"verdict", "exit-code", "report"}
    for name, one in ACTION["outputs"].items():
        assert one["value"] == f"${{{{ steps.audit.outputs.{name} }}}}"
        assert f'"{name}=$' in STEPS["Audit"]["run"]
    for step in STEPS.values():  # what a script reads is what its step hands over
        assert set(re.findall(r"\bAUDIT_[A-Z_]+", step.get("run", ""))) == set(step.get("env", {})) - {"GH_TOKEN"}


def test_the_report_is_uploaded_when_the_audit_failed_as_well() -> None:
    names = list(STEPS)
    assert names.index("Audit") < names.index("Upload the report")
    assert STEPS["Upload the report"]["if"].startswith("always() && ")
    assert "if" not in STEPS["Audit"]


def test_the_workflow_audits_and_keeps_a_baseline_of_main() -> None:
    assert set(WORKFLOW[True]) == {"pull_request", "push", "release", "workflow_dispatch"}  # `on` is YAML's true
    (used,) = [step for step in JOB if "vaeaudit@" in step.get("uses", "")]
    assert set(used["with"]) <= set(ACTION["inputs"])
    restore, save = (next(step for step in JOB if what in step.get("uses", "")) for what in ("restore", "save"))
    assert restore["with"]["path"] == save["with"]["path"] == "baseline"  # a cache is found by key and path
    assert restore["with"]["key"] == save["with"]["key"]
    assert save["with"]["key"].startswith(restore["with"]["restore-keys"])
    assert save["if"] == "github.ref == 'refs/heads/main'"


def test_the_job_for_gitlab_keeps_its_report_whatever_comes_out() -> None:
    last = shlex.split(GITLAB["script"][-1])
    assert last[:2] == ["vaeaudit", "audit"]  # whose exit code is the job's
    assert GITLAB["artifacts"]["when"] == "always"
    assert GITLAB["artifacts"]["paths"] == ["vaeaudit-report/"]
    assert GITLAB["artifacts"]["reports"]["junit"] == last[last.index("--output") + 1]
    assert GITLAB["variables"]["PIP_EXTRA_INDEX_URL"] == CPU_WHEELS
    choice = re.search(r"^  # allow_failure:\n  #   exit_codes: 5\n", (CI / "gitlab.yml").read_text(), re.MULTILINE)
    assert choice is not None
    assert yaml.safe_load(choice[0].replace("# ", "")) == {"allow_failure": {"exit_codes": 5}}


def test_the_readme_tells_every_exit_code() -> None:
    assert set(map(int, re.findall(r"^\| (\d+) \|", README, re.MULTILINE))) == EXIT_CODES


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("vae.safetensors", True),
        ("models/vae.ckpt", True),
        ("vaeaudit.toml", True),
        ("vae.safetensors.md", False),
        ("notvaeaudit.toml", False),
        ("audit/baseline/samples.safetensors", False),
    ],
)
def test_pre_commit_audits_where_a_model_changes(path: str, counts: bool) -> None:
    assert PRE_COMMIT["stages"] == ["pre-push"]
    taken = re.search(PRE_COMMIT["files"], path) and not re.search(PRE_COMMIT["exclude"], path)
    assert bool(taken) == counts


# ---- The action, run as GitHub runs it, on a stand-in for vaeaudit

STAND_IN = """
import json, os, sys
from pathlib import Path

arguments = sys.argv[1:]
with open(os.environ["STAND_IN_CALLS"], "a") as calls:
    calls.write(json.dumps({"argv": ["vaeaudit", *arguments], "stdin": sys.stdin.read()}) + "\\n")
print("::warning::a figure" if "github" in arguments else "the table")
if verdict := os.environ.get("STAND_IN_VERDICT"):
    report = Path(arguments[arguments.index("--out") + 1], "report.json")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({"verdict": verdict, "created": "now"}))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a") as page:
            page.write("the summary of the audit\\n")
sys.exit(int(os.environ["STAND_IN_CODE"]))
"""


@dataclass
class StandIn:
    """A vaeaudit that only notes how it is called, and ends as it is told to."""

    place: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> list[list[str]]:
        """The command lines so far."""
        return [json.loads(line)["argv"] for line in self.notes]

    @property
    def notes(self) -> list[str]:
        file = self.place / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def ends(self, code: int, verdict: str = "") -> None:
        self.env |= {"STAND_IN_CODE": str(code), "STAND_IN_VERDICT": verdict}


def put(folder: Path, name: str, script: str) -> None:
    """An executable for bash on a PATH that begins with ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    place = tmp_path / "stand-in"
    put(place, "vaeaudit", f'exec {shlex.quote(sys.executable)} {shlex.quote(str(place / "stand_in.py"))} "$@"')
    put(place, "python", f'exec {shlex.quote(sys.executable)} "$@"')
    (place / "stand_in.py").write_text(STAND_IN)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "GITHUB_", "VAEAUDIT_"))}
    env = kept | {
        "PATH": os.pathsep.join([str(place), os.environ["PATH"]]),
        "STAND_IN_CALLS": str(place / "calls"),
        "HOME": str(tmp_path),
    }
    made = StandIn(place, env)
    made.ends(0, "passed")
    return made


@dataclass(frozen=True)
class Step:
    """How a step ended, what it printed, its outputs, its summary."""

    code: int
    out: str
    outputs: dict[str, str]
    summary: str


def run_step(name: str, inputs: Mapping[str, str], place: Path, env: Mapping[str, str]) -> Step:
    """Run a step of the action in ``place`` as GitHub would: `shell: bash`, its variables, files for its results."""
    for one in inputs:
        assert one in ACTION["inputs"]
    given = {key: one["default"] for key, one in ACTION["inputs"].items()} | {**inputs}
    handed = {}
    for variable, text in STEPS[name].get("env", {}).items():
        (key,) = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", text).groups()  # type: ignore[union-attr]
        handed[variable] = given[key]
    files = {what: place / what for what in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("")
    (place / "step.sh").write_text(STEPS[name]["run"])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", place / "step.sh"],
        cwd=place,
        env={**env, **handed, **{what: str(file) for what, file in files.items()}, "GITHUB_ACTION_PATH": "/action"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.stderr == ""
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return Step(done.returncode, done.stdout, outputs, files["GITHUB_STEP_SUMMARY"].read_text())


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "passed"), (0, "ungated"), (1, "failed"), (3, "error"), (5, "inconclusive")]
)
def test_the_audit_decides_the_step_and_its_outputs(code: int, verdict: str, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.ends(code, verdict)
    done = run_step("Audit", {}, tmp_path, stand_in.env)
    assert done.code == code
    assert done.outputs == {"verdict": verdict, "exit-code": str(code), "report": "vaeaudit-report/report.json"}
    assert (tmp_path / done.outputs["report"]).is_file()
    assert done.out == "::warning::a figure\n"
    assert done.summary == "the summary of the audit\n"
    assert stand_in.calls == [["vaeaudit", "audit", "--format", "github", "--out", "vaeaudit-report"]]
    assert_accepted(stand_in.calls[0])


def test_with_exit_zero_the_verdict_stays_failed(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.ends(0, "failed")
    done = run_step("Audit", {"exit-zero": "true"}, tmp_path, stand_in.env)
    assert (done.code, done.outputs["verdict"], done.outputs["exit-code"]) == (0, "failed", "0")
    assert stand_in.calls[0][-1] == "--exit-zero"
    assert_accepted(stand_in.calls[0])


@pytest.mark.parametrize("code", [2, 3, 4, 130])
@pytest.mark.parametrize("earlier", [False, True])
def test_without_a_report_of_this_run_the_step_says_so(
    code: int, earlier: bool, stand_in: StandIn, tmp_path: Path
) -> None:
    if earlier:  # it must not be taken for this run's
        (tmp_path / "vaeaudit-report").mkdir()
        (tmp_path / "vaeaudit-report" / "report.json").write_text('{"verdict": "passed"}')
    stand_in.ends(code)
    done = run_step("Audit", {}, tmp_path, stand_in.env)
    assert (done.code, done.outputs) == (code, {"verdict": "error", "exit-code": str(code), "report": ""})
    assert f"::error title=vaeaudit::no report: the audit ended with exit code {code}" in done.out
    assert done.summary == f"### vaeaudit: error\n\nExit code {code}. The log of the job says why.\n"


def test_a_report_takes_the_place_of_an_earlier_one(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "vaeaudit-report").mkdir()
    (tmp_path / "vaeaudit-report" / "report.json").write_text('{"verdict": "passed"}')
    stand_in.ends(1, "failed")
    assert run_step("Audit", {}, tmp_path, stand_in.env).outputs["verdict"] == "failed"


HOSTILE = "a b\"; touch pwned; $(touch pwned) `touch pwned` ${HOME} * 'x"


def test_every_input_reaches_the_command_as_it_is(stand_in: StandIn, tmp_path: Path) -> None:
    names = ("config", "data", "adapter", "baseline", "out")
    given = {name: f"{name} {HOSTILE}" for name in names}
    done = run_step("Audit", {**given, "model": f"--{HOSTILE}", "checks": "noise, margin\nmig"}, tmp_path, stand_in.env)
    assert done.code == 0
    (call,) = stand_in.calls
    assert call[:4] == ["vaeaudit", "audit", "--format", "github"]
    for name in names:
        assert call[call.index(f"--{name}") + 1] == given[name]
    assert call[-8:] == ["--check", "noise", "--check", "margin", "--check", "mig", "--", f"--{HOSTILE}"]
    assert_accepted(call)
    assert done.outputs["report"] == f"{given['out']}/report.json"
    assert not list(tmp_path.rglob("pwned"))


GH = r"""
echo "$@" >> gh-calls
case "$*" in
  *--paginate*) [ ! -f earlier ] || printf '7\n9\n' ;;
esac
"""


@pytest.mark.parametrize("earlier", [False, True])
def test_a_pull_request_gets_one_comment_which_later_runs_write_anew(
    earlier: bool, stand_in: StandIn, tmp_path: Path
) -> None:
    step = STEPS["Comment on the pull request"]
    assert "inputs.comment == 'true'" in step["if"]
    assert ACTION["inputs"]["comment"]["default"] == "false"
    put(stand_in.place, "gh", GH)
    stand_in.ends(0)
    place = tmp_path / "job"
    place.mkdir()
    if earlier:
        (place / "earlier").touch()
    handed = {"AUDIT_REPORT": "report.json", "AUDIT_PULL_REQUEST": "5", "AUDIT_LINK": "https://example.org"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=place,
        env=stand_in.env | handed | {"RUNNER_TEMP": str(place), "GITHUB_REPOSITORY": "o/r"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    listed, written = (place / "gh-calls").read_text().splitlines()
    assert "repos/o/r/issues/5/comments" in listed
    where = "--method PATCH repos/o/r/issues/comments/7" if earlier else "--method POST repos/o/r/issues/5/comments"
    assert f"{where} --field body=@{place}/vaeaudit-comment.md" in written


def test_names_of_checks_are_no_patterns_and_run_nothing(stand_in: StandIn, tmp_path: Path) -> None:
    run_step("Audit", {"checks": "* $(touch pwned)"}, tmp_path, stand_in.env)
    assert stand_in.calls[0][-6:] == ["--check", "*", "--check", "$(touch", "--check", "pwned)"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("version", "requirement"),
    [
        ("", "/action"),
        ("0.1.0", "vaeaudit==0.1.0"),
        ("vaeaudit[classifier]>=0.1", "vaeaudit[classifier]>=0.1"),
        ("--help", "--help"),
        ("$(touch pwned)", "$(touch pwned)"),
    ],
)
def test_pip_installs_the_version_that_is_asked_for(version: str, requirement: str, tmp_path: Path) -> None:
    put(tmp_path / "bin", "python", 'printf "%s\\n" "$@"')
    env = {**os.environ, "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])}
    done = run_step("Install vaeaudit", {"version": version, "cpu-torch": "false"}, tmp_path, env)
    assert done.out.splitlines() == ["-m", "pip", "install", "--disable-pip-version-check", "--", requirement]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("cpu", "before", "after"),
    [
        ("true", "", CPU_WHEELS),  # for what is installed after torch itself
        ("true", "https://example.org/simple", f"https://example.org/simple {CPU_WHEELS}"),
        ("false", "https://example.org/simple", "https://example.org/simple"),
        ("false", "", ""),
    ],
)
def test_pip_finds_torch_without_cuda_where_asked(cpu: str, before: str, after: str, tmp_path: Path) -> None:
    put(tmp_path / "bin", "python", 'echo "$5 $6 from $PIP_EXTRA_INDEX_URL"')
    env = {**os.environ, "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])}
    env["PIP_EXTRA_INDEX_URL"] = before
    *first, last = run_step("Install vaeaudit", {"cpu-torch": cpu}, tmp_path, env).out.splitlines()
    assert first == [f"--index-url {CPU_WHEELS} from {before}"] * (cpu == "true")  # none but this index
    assert last == f"-- /action from {after}"


def test_nothing_is_installed_where_the_index_of_cpu_wheels_is_not_reached(tmp_path: Path) -> None:
    put(tmp_path / "bin", "python", 'echo "$@"; [[ $* != *--index-url* ]]')
    env = {**os.environ, "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])}
    done = run_step("Install vaeaudit", {}, tmp_path, env)
    assert done.code == 1
    assert done.out.count("pip install") == 1


# ---- The hook, in a repository with a remote

PUSHED_CODES = [(0, True), (1, False), (2, False), (3, False), (4, False), (5, True), (127, False), (130, False)]


@dataclass(frozen=True)
class Push:
    """Whether the remote took a push, and what was said."""

    taken: bool
    said: str


@dataclass(frozen=True)
class Repository:
    """A clone with the hook, and the stand-in that its pushes meet."""

    folder: Path
    stand_in: StandIn

    def git(self, *arguments: str) -> str:
        env = {**self.stand_in.env, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(["git", *arguments], cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def commit(self, name: str, content: str | None = None) -> None:
        """Commit a file with new content, or without content its deletion."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"change {name}")

    def push(self, *arguments: str) -> Push:
        try:
            return Push(True, self.git("push", *arguments))
        except subprocess.CalledProcessError as error:
            return Push(False, error.stderr)


@pytest.fixture
def repository(tmp_path: Path, stand_in: StandIn) -> Repository:
    """With `main`, which holds a model, at the remote `origin`."""
    made = Repository(tmp_path / "work", stand_in)
    made.folder.mkdir()
    made.git("init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "remote.git"))
    made.git("init", "--quiet", "--initial-branch", "main")
    made.git("config", "user.name", "A")
    made.git("config", "user.email", "a@example.org")
    made.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    made.commit("vae.safetensors", "first")
    made.commit("notes.txt", "first")
    made.git("push", "--quiet", "origin", "main")
    hook = made.folder / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    shutil.copy(HOOK, hook)  # with its mode: the example is executable
    return made


def test_a_push_that_changes_no_model_is_not_held_up(repository: Repository) -> None:
    repository.commit("notes.txt", "second")
    repository.commit("audit/baseline/samples.safetensors", "of a report")
    assert repository.push("origin", "main").taken
    repository.git("switch", "--quiet", "--create", "topic")
    repository.commit("notes.txt", "third")
    assert repository.push("origin", "topic").taken
    assert repository.push("origin", "topic:same").taken  # a new branch of commits that the remote has
    assert repository.stand_in.calls == []


def test_a_new_branch_with_a_changed_model_is_audited_once(repository: Repository) -> None:
    repository.git("switch", "--quiet", "--create", "topic")
    repository.commit("vae.safetensors", "second")
    repository.commit("notes.txt", "second")
    done = repository.push("origin", "topic")
    assert done.taken
    assert "the push changes vae.safetensors, so it is audited first" in done.said
    assert "the table" not in done.said  # all is well: no need to read it
    (call,) = repository.stand_in.calls
    assert call == ["vaeaudit", "audit", "--resume", "--out", ".git/vaeaudit-report"]
    assert_accepted(call)
    assert json.loads(repository.stand_in.notes[0])["stdin"] == ""
    assert repository.git("status", "--porcelain") == ""


@pytest.mark.parametrize(("code", "taken"), PUSHED_CODES)
def test_the_exit_code_decides_the_push(code: int, taken: bool, repository: Repository) -> None:
    repository.stand_in.ends(code, "whatever")
    repository.commit("models/größe b.pt", "new")
    before = repository.git("rev-parse", "origin/main")
    done = repository.push("origin", "main")
    assert done.taken == taken
    assert "models/größe b.pt" in done.said
    assert ("the table" in done.said) == (code != 0)
    assert ("the push is stopped" in done.said) == (not taken)
    assert (repository.git("ls-remote", "origin", "main").split()[0] == before.strip()) == (not taken)
    assert len(repository.stand_in.calls) == 1
    if code == 5:
        assert "inconclusive: a required check has no verdict; the push goes on, and CI is to decide" in done.said


def test_an_inconclusive_audit_stops_the_push_where_that_is_chosen(repository: Repository) -> None:
    hook = repository.folder / ".git" / "hooks" / "pre-push"
    text = hook.read_text()
    assert text.count("\non_inconclusive=go-on # or: stop\n") == 1
    hook.write_text(text.replace("on_inconclusive=go-on", "on_inconclusive=stop"))
    repository.stand_in.ends(5, "inconclusive")
    repository.commit("vae.safetensors", "second")
    done = repository.push("origin", "main")
    assert not done.taken
    assert "the push is stopped: the audit is inconclusive" in done.said


def test_a_deleted_branch_is_not_audited(repository: Repository) -> None:
    repository.push("origin", "main:old")
    repository.stand_in.ends(1, "failed")
    assert repository.push("origin", "--delete", "old").taken
    assert repository.stand_in.calls == []


def test_a_push_that_deletes_a_branch_and_changes_a_model_is_audited(repository: Repository) -> None:
    repository.push("origin", "main:old")
    repository.commit("vae.safetensors", "second")
    assert repository.push("origin", ":old", "main").taken
    assert len(repository.stand_in.calls) == 1


def test_a_deleted_model_is_not_audited(repository: Repository) -> None:
    repository.commit("vae.safetensors")
    assert repository.push("origin", "main").taken
    repository.git("switch", "--quiet", "--create", "topic")
    repository.commit("other.ckpt", "for a day")
    repository.commit("other.ckpt")
    assert repository.push("origin", "topic").taken
    assert repository.stand_in.calls == []


def test_a_changed_configuration_is_audited(repository: Repository) -> None:
    repository.commit("vaeaudit.toml", "")
    assert repository.push("origin", "main").taken
    assert len(repository.stand_in.calls) == 1


def test_the_first_push_of_all_is_audited(repository: Repository, tmp_path: Path) -> None:
    repository.git("init", "--quiet", "--bare", str(tmp_path / "other.git"))
    assert repository.push(str(tmp_path / "other.git"), "main").taken  # a remote that has no name
    assert len(repository.stand_in.calls) == 1


def test_a_branch_that_moved_on_elsewhere_is_compared_with_what_is_known(repository: Repository) -> None:
    other = Repository(repository.folder.parent / "elsewhere", repository.stand_in)
    repository.git("clone", "--quiet", str(repository.folder.parent / "remote.git"), str(other.folder))
    other.git("config", "user.name", "B")
    other.git("config", "user.email", "b@example.org")
    other.commit("notes.txt", "of another")
    other.git("push", "--quiet", "origin", "main")
    repository.commit("notes.txt", "mine")
    assert repository.push("--force", "origin", "main").taken
    assert repository.stand_in.calls == []
    repository.commit("vae.safetensors", "mine")
    assert repository.push("--force", "origin", "main").taken
    assert len(repository.stand_in.calls) == 1


def test_what_is_audited_is_what_is_pushed(repository: Repository) -> None:
    repository.git("switch", "--quiet", "--create", "topic")
    repository.commit("vae.safetensors", "second")
    repository.git("switch", "--quiet", "main")
    done = repository.push("origin", "topic")  # which is not checked out
    assert not done.taken
    assert "not those that are pushed" in done.said
    repository.git("switch", "--quiet", "topic")
    (repository.folder / "vae.safetensors").write_text("not committed yet")
    assert not repository.push("origin", "topic").taken
    assert repository.stand_in.calls == []
    repository.git("checkout", "--quiet", "vae.safetensors")
    assert repository.push("origin", "topic").taken
    assert len(repository.stand_in.calls) == 1


def test_the_hook_says_where_the_command_is_missing(repository: Repository) -> None:
    kept = [place for place in os.environ["PATH"].split(os.pathsep) if not Path(place, "vaeaudit").exists()]
    repository.stand_in.env["PATH"] = os.pathsep.join(kept)
    repository.commit("vae.safetensors", "second")
    done = repository.push("origin", "main")
    assert not done.taken
    assert "there is no command vaeaudit; activate the environment that has it" in done.said
    assert repository.push("--no-verify", "origin", "main").taken
