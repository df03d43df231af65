"""The documents say what is so."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from ditwright.cli.main import VERBS, main
from ditwright.config import merge, overrides
from ditwright.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"\(\.\./(src/ditwright/\S+\.py)\) \| (\d+) \|", (ROOT / "docs/tour.md").read_text())


def code_lines(path):
    """Lines that are neither blank, comment nor docstring."""
    source = path.read_text()
    docs = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in docs for i, line in lines)


def test_tour_counts_its_lines_right_and_stays_near_900():
    assert {path: code_lines(ROOT / path) for path, _ in ROWS} == {path: int(count) for path, count in ROWS}
    assert 800 <= sum(int(count) for _, count in ROWS) <= 1000


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/tour.md"])
def test_links_lead_to_files(document):
    folder = (ROOT / document).parent
    links = re.findall(r"\]\(([^)#\s,]+)\)", (ROOT / document).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("line", re.findall(r"^(?:torchrun .* -m )?ditwright (.+?)(?:\s+#.*)?$", README, re.M))
def test_readme_commands_are_understood(line, capsys):
    verb, *words = shlex.split(line.partition(" > ")[0])
    assert verb in VERBS
    if verb == "train":
        config = RECIPES[words[0]]()
        rest = [w for w in words[1:] if w not in ("--print-config", "--config", "my.yaml")]
        given = overrides(rest)
        given.pop("output", None)
        merge(config, given)
    options = [word for word in words if word.startswith("--") and "." not in word]
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert [option for option in options if option not in said] == []


def test_readme_python_imports_what_exists():
    blocks = re.findall(r"```python\n(.+?)```", README, re.S)
    assert len(blocks) == 3
    for block in blocks:
        imports = [line for line in block.splitlines() if line.startswith(("import", "from"))]
        exec(compile("\n".join(imports), "README", "exec"), {})
        ast.parse(block)


def test_equations_that_docstrings_cite_exist():
    numbered = set(re.findall(r"\((\d+)\)$", (ROOT / "docs/maths.md").read_text(), re.M))
    cited = {
        number
        for path in (ROOT / "src").rglob("*.py")
        for numbers in re.findall(r"docs/maths\.md, eq\. ([\d, and]+)", path.read_text())
        for number in re.findall(r"\d+", numbers)
    }
    assert cited
    assert cited <= numbered
