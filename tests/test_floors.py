"""The layout and some laws of the house are tests, not wishes. What may be done with foreign data: test_trust.py."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import ditwright

ROOT = Path(ditwright.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = [
    "errors files rng dtypes",  # the ground, on which the rest of floor 0 stands
    "config extras pictures",
    "nn diffusion",
    "model",
    "train codec data text metrics convert accel adapt distill",
    "pipeline evaluate experiment conditions",
    "measure",
    "recipes run serve prepare train_codec bench",
    "scaling replay",  # run recipes, and runs
    "cli",
    "__main__",
]
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units.split()}
PACKAGES = {"pillow": "PIL", "pyyaml": "yaml"}  # where the name to install and the name to import differ
GLOBAL_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "rand_like", "randn_like"}

Import = list[str]  # the parts of an absolute name


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[Import]:
    """Every module, or name of a module, that a file imports anywhere in it."""
    package = ["ditwright", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            yield from ([*base, *(node.module or "").split("."), alias.name] for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call in a file: what is called, and the keywords, as source."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}


def unit_of(imported: Import) -> str:
    """ditwright.nn.tokens -> nn; the package itself, as in `from .. import __version__`, is on no floor."""
    return next((part for part in imported[1:] if part in FLOOR), "")


def test_every_unit_has_a_floor():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__"} <= FLOOR.keys()


def test_imports_go_down():
    seen = set()
    for path in FILES:
        unit = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if unit == "__init__":
            continue  # it hands out names of every floor
        for imported in imports(path):
            if imported[0] == "ditwright" and (below := unit_of(imported)):
                assert FLOOR[below] < FLOOR[unit] or below == unit, f"{name_of(path)} imports {'.'.join(imported)}"
                seen.add((unit, below))
    assert {("run", "train"), ("train", "nn"), ("cli", "errors"), ("__main__", "cli")} <= seen


def test_only_declared_packages_are_imported():
    """Optional ones come through `extras.need`, and Triton with a torch that is built for GPUs."""
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {name.split(">")[0] for name in project["dependencies"]}
    known = {PACKAGES.get(name, name) for name in declared} | sys.stdlib_module_names | {"ditwright", "triton"}
    assert {
        (name_of(path), imported[0]) for path in FILES for imported in imports(path) if imported[0] not in known
    } == set()


def test_randomness_is_an_argument():
    for path in FILES:
        assert "random" not in {imported[0] for imported in imports(path)}, name_of(path)
        for called, _ in calls(path):
            assert called not in {f"torch.{draw}" for draw in GLOBAL_DRAWS}, f"{name_of(path)} calls {called}"
            own = called in ("np.random.Generator", "np.random.Philox")
            assert own or not called.startswith("np.random."), f"{name_of(path)} calls {called}"


def test_files_are_short():
    assert {name_of(path) for path in FILES if len(path.read_text().splitlines()) > 350} == set()


def test_what_is_public_says_what_it_is():
    """A verb's `run` is told by the first line of its file."""
    silent = []
    for path in FILES:
        source = ast.parse(path.read_text())
        silent += [name_of(path)] if source.body and not ast.get_docstring(source) else []
        public = [
            n for n in source.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and not n.name.startswith("_")
        ]
        verb = path.parent.name == "cli"
        silent += [
            f"{name_of(path)}: {n.name}" for n in public if not ast.get_docstring(n) and not (verb and n.name == "run")
        ]
    assert not silent
