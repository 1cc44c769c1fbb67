"""Rules of the source that no linter has: who reads variables, how the island imports, what is never written down."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from onetrip import config

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "onetrip"
ISLAND = {*(SOURCE / "wire").rglob("*.py"), *(SOURCE / "guest").rglob("*.py"), *(SOURCE / "jail").rglob("*.py")}
PROGRAMS = set((SOURCE / "compat" / "e2b" / "programs").glob("*.py"))  # texts that run in a sandbox
HOST = sorted(set(SOURCE.rglob("*.py")) - ISLAND - PROGRAMS)


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_only_config_reads_the_variables_of_the_process():
    found = []
    for path in HOST:
        if path.name == "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in {"environ", "environb", "getenv"}
                and ast.unparse(node.value) == "os"
            ):
                found.append(where(path, node))
    assert found == []


def test_config_declares_every_variable_it_reads():
    text = (SOURCE / "config.py").read_text("utf-8")
    assert set(re.findall(r'environ\.get\("(\w+)"', text)) == set(config.VARIABLES)


def test_the_island_imports_itself_by_relative_names_and_else_the_standard_library():
    hooked = {"numpy", "pandas", "matplotlib"}  # inside functions that run when a program has imported them
    found = []
    for path in sorted(ISLAND):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in (name.partition(".")[0] for name in names):
                if top not in sys.stdlib_module_names and (top not in hooked or node in tree.body):
                    found.append(f"{where(path, node)}: {top}")
    assert found == []


def test_the_package_ships_its_data():
    folder = SOURCE / "environments"
    assert sorted(path.name for path in folder.iterdir() if path.suffix not in {".py", ""}) == ["default.toml", "default.txt"]
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["build-backend"] == "flit_core.buildapi"
    )  # it ships every file


def test_pins_hold_versions_and_no_addresses():
    for file in (ROOT / "constraints.txt", SOURCE / "environments" / "default.txt"):
        for line in file.read_text("utf-8").splitlines():
            assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line
            assert "://" not in line


def test_every_file_says_its_job_in_its_first_line_and_stays_under_400_lines():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text("utf-8")
        lines = text.splitlines()
        if not ast.get_docstring(ast.parse(text)) or len(lines) > 400:
            found.append(f"{path.relative_to(ROOT)}: {len(lines)} lines")
    assert found == []


def test_the_scripts_of_the_checkout_are_shell_that_parses():
    for script in [*sorted((ROOT / ".ci").iterdir()), *(ROOT / "tests" / "vm" / name for name in ("run", "guest", "subgroup"))]:
        interpreter = script.read_text("utf-8").splitlines()[0].split("/")[-1].split()[-1]
        assert subprocess.run([interpreter, "-n", str(script)], capture_output=True, text=True, check=False).stderr == ""
