"""Shell completion: commands and options are offered to bash, zsh and fish, without importing what an audit needs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).with_name("vaeaudit")
SHELLS = ("bash", "zsh", "fish")
Answer = Callable[[Mapping[str, str]], str]
CASES = [
    ("vaeaudit ma", {"margin"}),
    ("vaeaudit au", {"audit"}),
    ("vaeaudit margin --fam", {"--family-wise"}),
    ("vaeaudit margin vae.safetensors --r 4 --fam", {"--family-wise"}),
    ("vaeaudit audit --exit", {"--exit-zero"}),
    ("vaeaudit audit --format j", {"json", "junit"}),
    ("vaeaudit --vers", {"--version"}),
]


def asked(shell: str, line: str) -> dict[str, str]:
    """The variables with which the script of each shell asks for what may follow ``line``."""
    if shell == "bash":  # whose words come one a line
        words = line.split(" ")
        how = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        how = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return {"_VAEAUDIT_COMPLETE": f"complete_{shell}", **how}


@pytest.fixture
def answer(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Answer:
    """What is printed where these variables are set."""

    def answered(env: Mapping[str, str]) -> str:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        done = command()
        assert (done.code, done.err) == (0, "")
        return str(done.out)

    return answered


def offered(answer: Answer, shell: str, line: str) -> set[str]:
    text = answer(asked(shell, line))
    if shell == "zsh":  # _arguments '*: :(("name":"help"\n"name"))'
        return set(re.findall(r'^(?:_arguments \'\*: :\(\()?"([^"]+)"', text, re.MULTILINE))
    return {row.split("\t")[0] for row in text.splitlines() if row}


@pytest.mark.parametrize(
    ("shell", "line", "names"),
    [
        *(("bash", *case) for case in CASES),
        *((shell, "vaeaudit audit --format j", {"json", "junit"}) for shell in SHELLS[1:]),
    ],
)
def test_commands_options_and_values_are_offered(answer: Answer, shell: str, line: str, names: set[str]) -> None:
    assert offered(answer, shell, line) == names


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_offered(answer: Answer, command: Callable[..., Any], shell: str) -> None:
    listed = command("--help").out
    commands = set(re.findall(r"^  ([a-z]+) ", listed.partition("Commands:")[2], re.MULTILINE))
    assert {"audit", "margin"} <= commands
    assert offered(answer, shell, "vaeaudit ") == commands


@pytest.mark.parametrize("shell", SHELLS)
def test_files_are_left_to_the_shell(answer: Answer, shell: str) -> None:
    assert answer(asked(shell, "vaeaudit audit vae")).strip() == ("_files" if shell == "zsh" else "")


def test_completion_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from vaeaudit.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'scipy', 'matplotlib', 'safetensors'} & set(sys.modules)))"
    )
    env = {**os.environ, **asked("bash", "vaeaudit margin --fam")}
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, env=env, check=True
    )
    assert done.stdout.splitlines() == ["--family-wise", "HEAVY []"]


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_script_is_one_that_the_shell_reads(answer: Answer, shell: str, check: str, tmp_path: Path) -> None:
    script = answer({"_VAEAUDIT_COMPLETE": f"source_{shell}"})
    assert f"_VAEAUDIT_COMPLETE=complete_{shell}" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here; its script was only looked at")
    (tmp_path / "script").write_text(script)
    subprocess.run([shell, check, tmp_path / "script"], check=True, timeout=60)


# typer prints the script for the shell that started it, so the command is started from a bash that stays for it.
SHOWN = '"$0" --show-completion bash; exit $?'


def test_show_completion_prints_a_script_by_which_bash_completes(tmp_path: Path) -> None:
    run = ["bash", "--noprofile", "--norc", "-c"]
    shown = subprocess.run([*run, SHOWN, COMMAND], capture_output=True, text=True, timeout=60, check=True).stdout
    (tmp_path / "script").write_text(shown)
    subprocess.run(["bash", "-n", tmp_path / "script"], check=True, timeout=60)
    used = (
        'source "$0"; COMP_WORDS=(vaeaudit margin --fam); COMP_CWORD=2; '
        '"$(complete -p vaeaudit | sed "s/.*-F //; s/ .*//")" vaeaudit; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": os.pathsep.join([str(COMMAND.parent), os.environ["PATH"]])}
    done = subprocess.run([*run, used, tmp_path / "script"], capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "--family-wise\n", "")
