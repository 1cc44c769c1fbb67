"""Builds an environment: uv installs the packages beside, every preload is tried, then one rename puts it in force.

A build that fails, is interrupted or is killed changes nothing: the environment of that name stays what it was.
Power loss in the middle of the rename may lose the new build, never the old one.
"""

import contextlib
import datetime as dt
import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from onetrip import config
from onetrip.checks import check_environment_name
from onetrip.environments import store
from onetrip.environments.store import Environment, Interpreter, Node
from onetrip.errors import BadRequest, PlatformError, Unavailable

Report = Callable[[str], None]

_DESCRIBE: Final = """
import json, os, sys, sysconfig
var = sysconfig.get_config_var
print(json.dumps({
    "executable": os.path.realpath(sys.executable), "version": "%d.%d.%d" % sys.version_info[:3], "base_prefix": sys.base_prefix,
    "stdlib": sysconfig.get_path("stdlib"), "platstdlib": sysconfig.get_path("platstdlib"), "purelib": sysconfig.get_path("purelib"),
    "enable_shared": bool(var("Py_ENABLE_SHARED")), "libdir": var("LIBDIR") or "", "multiarch": var("MULTIARCH") or "",
    "implementation": sys.implementation.name,
}))
"""
_TRY_IMPORTS: Final = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except BaseException as err:
        sys.exit(f"{name}: {type(err).__name__}: {err}")
"""
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?\s*([=<>!~].*|@.*)?", re.DOTALL)
_MODULE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def build(
    name: str,
    *,
    packages: Sequence[str] = (),
    requirements: str | None = None,
    python: str | None = None,
    preload: Sequence[str] | None = None,
    home: Path | None = None,
    report: Report = lambda _: None,
) -> Environment:
    """Build `name` and put it in force; the default environment takes `packages` in addition to its own.

    `requirements` is the path of a file as pip has them.  `python` is the path or name of an interpreter, None the one that
    runs this.  `preload` are the modules that every sandbox has imported from the start; None means those of the default
    environment's tree whose packages are there.  `report` gets a line of progress at a time.  Raises BadRequest for a
    package, module or interpreter that is not to be had, Unavailable when disk, network or permission is missing.
    """
    check_environment_name(name, field="name")
    _check_arguments(name, packages, requirements, preload)
    base = interpreter(python or sys.executable)
    home = config.writable_home() if home is None else home
    parent = store.folder(home, name)
    with store.explained(parent):
        for level in (home, parent.parent):
            level.mkdir(parents=True, exist_ok=True)
            level.chmod(level.stat().st_mode | 0o755)  # a sandbox's user is another than ours, whatever our umask
    with store.locked(home, name), store.explained(parent), _made(parent):
        store.sweep(parent)
        build_id = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        work = store.building(parent, build_id)
        try:
            work.mkdir(0o755)
            work.chmod(0o755)
            environment = _fill(work, name, build_id, base, packages, requirements, preload, report)
            _put_in_force(work, parent, build_id)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        store.sweep(parent)
    return msgspec.structs.replace(environment, path=str(parent / build_id))


@contextlib.contextmanager
def _made(parent: Path) -> Generator[None]:
    """The folder of one name, which goes again if the first build of that name fails."""
    parent.mkdir(exist_ok=True)
    parent.chmod(0o755)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: there is a build in it
            parent.rmdir()


def interpreter(python: str) -> Interpreter:
    """Describe the CPython beneath `python`, which may be a name on the PATH or a virtual environment's."""
    path = shutil.which(python)
    if path is None:
        raise BadRequest(
            f"python: there is no interpreter {python!r}.", hint="Name one of CPython 3.11 or later.", field="python"
        )
    try:
        base = _run_python(path, "import sys; print(sys._base_executable)").strip()
        found = msgspec.json.decode(_run_python(base, _DESCRIBE), type=dict[str, str | bool])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as err:
        raise BadRequest(f"python: {path} does not run: {err}.", field="python") from err
    if found.pop("implementation") != "cpython" or tuple(map(int, str(found["version"]).split("."))) < (3, 11):
        raise BadRequest(f"python: {path} is not CPython 3.11 or later.", field="python")
    return msgspec.convert(found, Interpreter)


def _run_python(executable: str, program: str) -> str:
    # -I: the caller's variables and working directory must not change what the interpreter says about itself
    command = [executable, "-I", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=config.builder_variables()).stdout


def _check_arguments(name: str, packages: Sequence[str], requirements: str | None, preload: Sequence[str] | None) -> None:
    if name != "default" and not packages and requirements is None:
        raise BadRequest(
            f"packages: an environment {name!r} of no packages.", hint="Name at least one with --package.", field="packages"
        )
    for package in packages:
        if not _REQUIREMENT.fullmatch(package.strip()) or "\n" in package:
            raise BadRequest(f"packages: {package!r} is not a package, such as `polars` or `polars>=1.2`.", field="packages")
    if requirements is not None:
        try:
            with open(requirements, "rb") as file:
                file.read(1)
        except OSError as err:
            raise BadRequest(f"requirements: {requirements}: {err.strerror}.", field="requirements") from err
    for module in preload or ():
        if not _MODULE.fullmatch(module):
            raise BadRequest(f"preload: {module!r} is not the name of a module.", field="preload")


def _fill(
    work: Path,
    name: str,
    build_id: str,
    base: Interpreter,
    packages: Sequence[str],
    requirements: str | None,
    preload: Sequence[str] | None,
    report: Report,
) -> Environment:
    site = work / "site-packages"
    definition = tomllib.loads(_data("default.toml"))
    wanted = [package.strip() for package in packages]
    arguments: list[str] = []
    if name == "default":
        wanted += [package for group in definition["package"] for package in group["names"]]
        pins = work / "pins.txt"
        pins.write_text(_data("default.txt"))
        arguments += ["--constraint", str(pins)]
    if requirements is not None:
        arguments += ["--requirement", requirements]
    listed = work / "wanted.txt"  # a file, because a package on the command line could be taken for an option
    listed.write_text("".join(f"{package}\n" for package in wanted))
    report(f"installing {len(wanted) or 'the required'} packages for CPython {base.version}")
    cache = config.builder_cache() or str(work / "cache")
    _uv(
        [
            *("pip", "install", "--python", base.executable, "--target", str(site), "--requirement", str(listed), *arguments),
            *("--only-binary", ":all:", "--compile-bytecode", "--cache-dir", cache, *_network()),
        ],
        report,
    )
    for leftover in (work / "pins.txt", listed):
        leftover.unlink(missing_ok=True)
    if not site.is_dir():  # uv makes no folder when a requirements file names nothing for this platform
        raise BadRequest("packages: there is nothing to install.", field="packages")
    shutil.rmtree(work / "cache", ignore_errors=True)
    _open_to_all(site)
    nodes = _tree(definition["node"], site, preload)
    report("trying the imports that every sandbox starts with")
    _try_imports(base, site, nodes)
    frozen = _uv(["pip", "freeze", "--path", str(site), "--python", base.executable, "--no-cache"], lambda _: None)
    environment = Environment(
        name=name,
        build_id=build_id,
        python=base,
        packages=tuple(sorted(line for line in frozen.splitlines() if line and not line.startswith("#"))),
        nodes=nodes,
        built_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    manifest = work / store.MANIFEST
    encoded = msgspec.json.format(msgspec.json.encode(environment), indent=2)
    with open(manifest, "wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())
    manifest.chmod(0o644)
    return environment


def _put_in_force(work: Path, parent: Path, build_id: str) -> None:
    os.rename(work, parent / build_id)
    link = store.building(parent, "link")
    os.symlink(build_id, link)
    os.rename(link, parent / "current")
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tree(defaults: Sequence[dict[str, object]], site: Path, preload: Sequence[str] | None) -> tuple[Node, ...]:
    """The default tree cut down to what is installed; with `preload`, its root and one node with exactly those modules."""
    tree = tuple(msgspec.convert({"parent": None, **node}, Node) for node in defaults)
    root = tree[0]
    if preload is not None:
        return (root, Node("preload", root.name, tuple(dict.fromkeys(preload)))) if preload else (root,)
    kept: dict[str, str] = {root.name: root.name}  # node → the nearest one that is kept
    nodes = [root]
    for node in tree[1:]:
        parent = kept[node.parent or root.name]
        imports = tuple(module for module in node.imports if _installed(site, module.partition(".")[0]))
        kept[node.name] = node.name if imports else parent
        if imports:
            nodes.append(Node(node.name, parent, imports))
    return tuple(nodes)


def _installed(site: Path, top: str) -> bool:
    return (site / top).is_dir() or (site / f"{top}.py").is_file() or any(site.glob(f"{top}.*.so"))


def _try_imports(base: Interpreter, site: Path, nodes: Sequence[Node]) -> None:
    modules = [module for node in nodes for module in node.imports]
    # -S, as in a sandbox: the interpreter's own packages are not there
    command = [base.executable, "-I", "-S", "-B", "-c", _TRY_IMPORTS, str(site), *modules]
    variables = {
        **config.builder_variables(),
        "MPLCONFIGDIR": str(site.parent / "mpl"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", env=variables)
    shutil.rmtree(site.parent / "mpl", ignore_errors=True)
    if done.returncode:
        why = (
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"the interpreter died with status {done.returncode}"
        )
        raise BadRequest(
            f"preload: {why}",
            hint="Add the package that provides it with --package, or leave it out of --preload.",
            field="preload",
        )


def _open_to_all(site: Path) -> None:
    """Let every user read: a sandbox may run as another than the one who built, and a shared cache may hold private modes."""
    for folder, _, files in os.walk(site):
        os.chmod(folder, 0o755)  # noqa: S103 -- reading it is the point
        for file in files:
            path = os.path.join(folder, file)
            mode = os.lstat(path).st_mode
            if not os.path.islink(path) and mode & 0o444 != 0o444:
                os.chmod(path, (mode & 0o777) | 0o444)


# ---------------------------------------------------------------------------------------------------- uv


def _uv(arguments: Sequence[str], report: Report) -> str:
    """Run uv; its stdout. Each line that it says on stderr goes to `report` as it comes."""
    command = [_uv_path(), *arguments, *(["--system-certs"] if _system_certificates() else [])]
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=config.builder_variables(),
        umask=0o022,
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # both were asked for
        try:
            for line in process.stderr:
                said.append(line.rstrip())
                if not line.startswith((" +", " -", "Using ")):  # the list of packages is in the manifest
                    report(line.strip())
            output = process.stdout.read()  # at most a list of packages: it cannot fill the pipe before stderr ends
        except BaseException:
            process.terminate()  # `with` waits for it; uv ends at once and its folder is ours to remove
            raise
    if process.returncode:
        raise _failure(said, process.returncode)
    return output


def _failure(said: Sequence[str], status: int) -> Exception:
    lines = [line.strip(" │├╰▶×─") for line in said if line.strip()]
    text = "\n".join(
        line for line in lines if not line.startswith(("Using ", "Resolved ", "Prepared ", "Downloading ", "Downloaded "))
    )
    text = text[:2000] or f"uv ended with status {status}."
    low = text.lower()
    if "no space left" in low or "os error 28" in low or "quota" in low:
        return Unavailable(
            "The disk is full. Nothing was changed.",
            hint="Free some space (the default environment takes 1 GB while it is built), or set ONETRIP_HOME to a folder on another disk.",
            field="ONETRIP_HOME",
        )
    if "error sending request" in low or "dns error" in low or "failed to fetch" in low or "connect" in low:
        return Unavailable(
            f"The packages could not be fetched:\n{text}",
            hint="Check the network; for a mirror set UV_DEFAULT_INDEX, for a proxy HTTPS_PROXY, for its certificate SSL_CERT_FILE.",
        )
    if (
        "no solution found" in low
        or "not found in the package registry" in low
        or "requirements are unsatisfiable" in low
        or "failed to parse" in low
    ):
        return BadRequest(
            f"packages: {text}",
            hint="Check the spelling and the version; only packages with wheels for this platform can be installed.",
            field="packages",
        )
    return PlatformError(f"uv failed:\n{text}", hint="If this does not look like your packages' fault, please report it.")


def _uv_path() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "uv")  # the wheel puts it beside the interpreter of its environment
    found = beside if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise PlatformError(
            "uv, which builds environments, is not installed.", hint="Install it where Onetrip is: `pip install uv`."
        )
    return found


def _system_certificates() -> bool:
    """Whether the system has a certificate store. It then counts, for it holds a company's own; else uv's built-in one does."""
    return os.path.exists("/etc/ssl/certs/ca-certificates.crt") or os.path.exists("/etc/pki/tls/certs/ca-bundle.crt")


def _network() -> list[str]:
    """pip's mirror, where the user or the machine set one for pip and none for uv: what `pip install` reaches, we reach."""
    variables = config.builder_variables()
    if any(name in variables for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX")):
        return []
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
    index = variables.get("PIP_INDEX_URL") or (asked.stdout.strip() if asked.returncode == 0 else "")
    return ["--default-index", index] if index else []


def _data(file: str) -> str:
    return resources.files("onetrip.environments").joinpath(file).read_text("utf-8")
