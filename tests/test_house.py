"""The floors of the house: imports go down or sideways, never up; each rule here is one of its habits."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vaeaudit

ROOT = Path(__file__).parents[1]
# Rooms from the ground up; each may use those before it. A check's folder is a room of its own.
ROOMS = [
    *("errors", "checks.registry", "progress", "optim", "model", "stats", "attacks", "layout", "settings", "data"),
    *("certify", "subject"),
    "checks",
    *("checks.weights", "checks.mig", "checks.latents", "checks.noise", "checks.reconstruction", "checks.equivalence"),
    *("checks.margin", "checks.attack"),
    *("report", "gate", "audit", "cli", "__main__"),
]
FLOOR = {room: floor for floor, room in enumerate(ROOMS)}
PACKAGE = sorted((ROOT / "vaeaudit").rglob("*.py"))
ADAPTERS = sorted((ROOT / "adapters").glob("*.py"))
MOST_LINES = 400


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


MODULES = {name_of(file): file for file in PACKAGE}


def absolute(node: ast.ImportFrom, module: str, package: bool) -> str:
    """The module that a `from ... import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    base = module.split(".")[: None if package and node.level == 1 else -(node.level - package)]
    return ".".join([*base, node.module] if node.module else base)


def imports(file: Path, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules imported anywhere in ``tree``; a public name of vaeaudit counts as the module it lives in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, name_of(file), file.name == "__init__.py")
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in MODULES:
                    yield inner, node.lineno
                elif source == "vaeaudit" and alias.name in vaeaudit._HOME:
                    yield f"vaeaudit.{vaeaudit._HOME[alias.name]}", node.lineno
                else:
                    yield source, node.lineno


def room(module: str) -> str:
    """The folder or module of vaeaudit that holds ``module``; in checks/ the folder of the check."""
    parts = module.split(".")[1:]
    apart = ".".join(parts[:2])
    return apart if apart in FLOOR else ".".join(parts[:1])


def test_every_module_has_a_floor_and_imports_from_no_floor_above() -> None:
    for file in (file for file in PACKAGE if name_of(file) != "vaeaudit"):
        here = FLOOR.get(room(name_of(file)))
        assert here is not None, f"{file.name} has no floor: give its room one in ROOMS"
        for module, line in imports(file, parsed(file)):
            if module.startswith("vaeaudit."):
                assert FLOOR.get(room(module), 9) <= here, f"{file.name}:{line} imports {module} from a floor above"
            assert not module.startswith(("vaeaudit_adapters", "adapters")), f"{file.name}:{line} names an adapter"


def test_no_check_imports_another() -> None:
    for file in (file for file in PACKAGE if name_of(file).startswith("vaeaudit.checks.")):
        for module, line in imports(file, parsed(file)):
            if room(module).startswith("checks.") and room(module) != "checks.registry":
                assert room(module) == room(name_of(file)), f"{file.name}:{line} imports {module} of another check"


def test_adapters_use_public_names_only_and_each_other_relatively() -> None:
    for file in ADAPTERS:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name == "vaeaudit" or not alias.name.startswith(("vaeaudit", "adapters")), (
                        file,
                        alias,
                    )
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                source = node.module or ""
                assert not source.startswith(("vaeaudit_adapters", "adapters")), (
                    f"{file.name}:{node.lineno}: import it relatively"
                )
                if source.split(".")[0] == "vaeaudit":
                    assert source in ("vaeaudit", "vaeaudit.errors"), f"{file.name}:{node.lineno} imports {source}"
                    if source == "vaeaudit":
                        assert {alias.name for alias in node.names} <= set(vaeaudit.__all__), file


def test_only_the_command_line_prints_reads_the_environment_or_exits() -> None:
    for file in (file for file in PACKAGE + ADAPTERS if "cli" not in file.parts):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "input", "exit", "quit"), (
                    f"{file.name}:{node.lineno}: {node.func.id}()"
                )
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                place = f"{node.value.id}.{node.attr}"
                assert place not in ("sys.stdout", "sys.stderr", "sys.exit", "os.environ", "os.getenv"), (
                    f"{file.name}:{node.lineno}: {place}"
                )


def test_modules_stay_short_enough_to_read() -> None:
    for file in PACKAGE + ADAPTERS:
        lines = len(file.read_text().splitlines())
        assert lines <= MOST_LINES, f"{file.name} has {lines} lines: split it"


def at_import(file: Path) -> set[str]:
    """Modules that importing ``file`` imports: its module level, without what is for type checkers only."""
    body = [
        node
        for node in parsed(file).body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"))
    ]
    found: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {module for module, _ in imports(file, node)}
        waiting += ast.iter_child_nodes(node)
    return found


def test_importing_vaeaudit_reaches_no_import_of_torch() -> None:
    reached, waiting = set(), ["vaeaudit"]
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in reached:
            reached.add(module)
            for name in at_import(MODULES[module]):
                assert name.split(".")[0] != "torch", f"{module} imports {name}"
                waiting.append(name)


def test_importing_vaeaudit_loads_neither_torch_nor_anything_else_heavy() -> None:
    code = (
        "import sys, vaeaudit; dir(vaeaudit); "
        "print(sorted({'torch', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_found_where_it_is_said_to_live() -> None:
    for name in vaeaudit.__all__:
        assert getattr(vaeaudit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vaeaudit.nonsense  # type: ignore[attr-defined]
