"""Environments: built whole or not at all, replaced without disturbing who uses them, and refused with the remedy."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from onetrip import config, environments, errors
from onetrip.environments import Node, store
from onetrip.environments.build import interpreter


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def entries(home: Path, name: str) -> list[str]:
    return sorted(os.listdir(home / "environments" / name))


@pytest.mark.spec("ENV-01")
def test_a_built_environment_is_found_and_its_packages_import(home, wheel):
    built = environments.build("mine", packages=[wheel("answer")], preload=["answer"])

    found = environments.find("mine")

    assert found == built
    assert found.packages == (wheel("answer"),)
    assert [node.name for node in found.nodes] == ["bare", "preload"]
    assert found.nodes[1] == Node("preload", "bare", ("answer",))
    program = f"import sys; sys.path.insert(0, {found.site_packages!r}); import answer; print(answer.ANSWER)"
    done = subprocess.run([found.python.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"
    assert entries(home, "mine") == sorted([built.build_id, "current"])
    assert sorted(os.listdir(found.path)) == ["environment.json", "site-packages"]


@pytest.mark.spec("ENV-01")
def test_the_interpreter_is_the_one_beneath_a_virtual_environment():
    found = interpreter(sys.executable)

    assert found.base_prefix == sys.base_prefix
    assert os.path.realpath(found.executable) == os.path.realpath(sys._base_executable)
    assert not found.purelib.startswith(sys.prefix) or sys.prefix == sys.base_prefix


@pytest.mark.spec("ENV-02")
def test_building_again_replaces_the_old_build_and_removes_it(home, wheel):
    first = environments.build("mine", packages=[wheel("answer", "ANSWER = 1\n")])
    second = environments.build("mine", packages=[wheel("answer", "ANSWER = 2\n")])

    assert environments.find("mine") == second
    assert entries(home, "mine") == sorted([second.build_id, "current"])
    assert not os.path.exists(first.path)


@pytest.mark.spec("ENV-02")
def test_a_build_in_use_stays_until_it_is_released(home, wheel):
    first = environments.build("mine", packages=[wheel("answer")])
    held = first.hold()
    try:
        environments.build("mine", packages=[wheel("answer")])
        assert os.path.exists(first.site_packages)
    finally:
        os.close(held)
    third = environments.build("mine", packages=[wheel("answer")])
    assert entries(home, "mine") == sorted([third.build_id, "current"])
    with pytest.raises(errors.UnknownEnvironment, match="^The environment 'mine' was replaced or removed just now\\.$"):
        first.hold()


@pytest.mark.spec("ENV-02")
def test_an_environment_in_use_is_out_of_force_when_removed_and_its_files_stay(home, wheel):
    built = environments.build("mine", packages=[wheel("answer")])
    held = built.hold()
    try:
        assert environments.remove("mine") is False
        assert os.path.exists(built.site_packages)
        assert environments.list_all() == ()
    finally:
        os.close(held)


@pytest.mark.spec("ENV-03")
def test_a_failing_preload_is_named_and_leaves_the_old_build_in_force(home, wheel):
    built = environments.build("mine", packages=[wheel("answer")])

    with pytest.raises(errors.BadRequest) as failed:
        environments.build("mine", packages=[wheel("answer", "import nothing_of_this_name\n")], preload=["answer"])

    assert str(failed.value) == "preload: answer: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    assert failed.value.field == "preload"
    assert environments.find("mine") == built
    assert entries(home, "mine") == sorted([built.build_id, "current"])


@pytest.mark.spec("ENV-03")
def test_an_unknown_package_is_named_and_nothing_is_left(home, monkeypatch):
    monkeypatch.setenv("UV_NO_INDEX", "1")

    with pytest.raises(errors.BadRequest, match="no-such-package") as failed:
        environments.build("mine", packages=["no-such-package"])

    assert failed.value.field == "packages"
    assert (
        failed.value.hint == "Check the spelling and the version; only packages with wheels for this platform can be installed."
    )
    assert os.listdir(home / "environments") == ["mine.lock"]


@pytest.mark.spec("ENV-03")
def test_an_interrupted_build_leaves_nothing(home, wheel):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.build("mine", packages=[wheel("answer")], report=interrupt)

    assert os.listdir(home / "environments") == ["mine.lock"]


@pytest.mark.spec("ENV-03")
def test_what_a_killed_build_left_is_removed_by_the_next(home, wheel):
    environments.build("mine", packages=[wheel("answer")])
    left = home / "environments" / "mine" / ".building-20200101T000000-abcdef"
    (left / "site-packages").mkdir(parents=True)
    (left / "site-packages" / "half.py").write_text("")
    (home / "environments" / "mine" / ".building-link").symlink_to("nowhere")

    built = environments.build("mine", packages=[wheel("answer")])

    assert entries(home, "mine") == sorted([built.build_id, "current"])


@pytest.mark.spec("ENV-03")
def test_a_second_builder_of_the_same_name_is_refused(home, wheel):
    environments.build("mine", packages=[wheel("answer")])
    with (
        store.locked(home, "mine"),
        pytest.raises(errors.Unavailable, match="^Another process is building or removing the environment 'mine'\\.$"),
    ):
        environments.build("mine", packages=[wheel("answer")])


@pytest.mark.spec("BAD-07")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, wheel):
    requirement = wheel("answer", "x = '" + os.urandom(400_000).hex() + "'\n")
    home = tmp_path / "home"
    home.mkdir()
    script = 'mount -t tmpfs -o size=300k none "$1" && "$2" -m onetrip env build mine --package "$3"; status=$?; ls -A "$1/environments"; exit $status'
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(home)], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("user namespaces: this host does not let us mount a small tmpfs to fill")

    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(home), sys.executable, requirement],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ONETRIP_HOME": str(home)},
    )

    assert (
        "error: The disk is full. Nothing was changed." in done.stderr
        or "No space left on device. Nothing was changed." in done.stderr
    ), done
    assert "hint: Free some space" in done.stderr
    assert (done.returncode, done.stdout) == (4, "mine.lock\n")


@pytest.mark.spec("ENV-04")
def test_every_user_may_read_a_build_whatever_the_umask_of_its_builder(home, wheel):
    before = os.umask(0o077)
    try:
        built = environments.build("mine", packages=[wheel("answer")])
    finally:
        os.umask(before)

    modes = {home.stat().st_mode & 0o005, (home / "environments").stat().st_mode & 0o005}
    for folder, _, files in os.walk(home / "environments" / "mine"):
        modes.add(os.stat(folder).st_mode & 0o005)
        for file in files:
            if os.stat(os.path.join(folder, file)).st_mode & 0o004 == 0:
                pytest.fail(f"{folder}/{file} is private")
    assert modes == {0o005}
    assert os.access(built.site_packages, os.R_OK)


@pytest.mark.spec("ENV-05")
@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/etc", "a b", "-x", ".hidden", "a" * 65, "ü", "a\n", "a\0"])
def test_a_name_that_could_leave_the_folder_is_refused(home, name):
    for call in (
        lambda: environments.build(name, packages=["x"]),
        lambda: environments.find(name),
        lambda: environments.remove(name),
    ):
        with pytest.raises(errors.BadRequest, match="is not a name for an environment"):
            call()
    assert not home.exists()


@pytest.mark.spec("ENV-05")
@pytest.mark.parametrize("package", ["--index-url=x", "-r file", "a\nb", "", "../x", "a b c"])
def test_a_package_that_is_none_is_refused_before_uv_sees_it(home, package):
    with pytest.raises(errors.BadRequest) as refused:
        environments.build("mine", packages=[package])
    assert str(refused.value) == f"packages: {package!r} is not a package, such as `polars` or `polars>=1.2`."
    assert not home.exists()


@pytest.mark.spec("ENV-06")
def test_an_unknown_environment_is_refused_with_the_names_that_there_are(home, wheel):
    with pytest.raises(errors.UnknownEnvironment) as refused:
        environments.find("other")
    assert str(refused.value) == "There is no environment 'other'; there are: none."
    environments.build("mine", packages=[wheel("answer")])
    environments.build("also", packages=[wheel("answer")])
    with pytest.raises(errors.UnknownEnvironment) as refused:
        environments.find("other")
    assert (str(refused.value), refused.value.field) == ("There is no environment 'other'; there are: also, mine.", "environment")
    with pytest.raises(errors.UnknownEnvironment) as refused:
        environments.find("default")
    assert refused.value.hint == "Build it: `onetrip env build default`."


@pytest.mark.spec("ENV-06")
def test_a_damaged_manifest_is_said_with_the_remedy(home, wheel):
    built = environments.build("mine", packages=[wheel("answer")])
    Path(built.path, "environment.json").write_text("{")

    with pytest.raises(errors.PlatformError, match="environment.json is damaged") as failed:
        environments.find("mine")
    assert failed.value.hint == "Build it again: `onetrip env build mine …`."


@pytest.mark.spec("ENV-06")
def test_an_interpreter_that_is_gone_is_said_with_the_remedy(home, wheel):
    built = environments.build("mine", packages=[wheel("answer")])
    manifest = Path(built.path, "environment.json")
    manifest.write_text(manifest.read_text().replace(built.python.executable, "/nowhere/python3"))

    with pytest.raises(errors.Unavailable) as failed:
        environments.find("mine")
    assert str(failed.value) == "The environment 'mine' was built for /nowhere/python3, which this user cannot run (any more)."
    assert environments.remove("mine") is True


@pytest.mark.spec("BAD-08")
@pytest.mark.parametrize(
    "variables", [{}, {"HOME": ""}, {"HOME": "/proc/nobody"}, {"ONETRIP_HOME": "/proc/onetrip"}, {"XDG_DATA_HOME": "/proc/data"}]
)
def test_a_home_that_cannot_be_written_names_the_remedy(variables, tmp_path):
    with pytest.raises(errors.Unavailable, match="^There is no folder to keep environments in ") as refused:
        config.writable_home(variables, str(tmp_path))
    assert (refused.value.hint, refused.value.field) == ("Set ONETRIP_HOME to a folder that you can write to.", "ONETRIP_HOME")


@pytest.mark.spec("ENV-07")
def test_the_installations_own_folder_comes_before_the_users_and_a_named_one_stands_alone(tmp_path):
    own = tmp_path / "share" / "onetrip"
    variables = {"HOME": "/home/someone"}
    assert config.homes(variables, str(tmp_path)) == (Path("/home/someone/.local/share/onetrip"),)
    own.mkdir(parents=True)
    assert config.homes(variables, str(tmp_path)) == (own, Path("/home/someone/.local/share/onetrip"))
    assert config.homes({**variables, "XDG_DATA_HOME": "/data"}, str(tmp_path)) == (own, Path("/data/onetrip"))
    assert config.homes({**variables, "XDG_DATA_HOME": "relative"}, str(tmp_path)) == (
        own,
        Path("/home/someone/.local/share/onetrip"),
    )
    assert config.homes({**variables, "ONETRIP_HOME": "/named"}, str(tmp_path)) == (Path("/named"),)


def definition() -> tuple[dict, dict[str, str]]:
    folder = Path(environments.__file__).parent
    pins = [line for line in (folder / "default.txt").read_text().splitlines() if line and not line.startswith("#")]
    return tomllib.loads((folder / "default.toml").read_text()), dict(pin.split("==") for pin in pins)


@pytest.mark.spec("ENV-08")
def test_every_package_of_the_default_environment_is_pinned_and_has_a_reason():
    described, pins = definition()
    names = [name for group in described["package"] for name in group["names"]]

    assert len(names) == len(set(names))
    assert set(names) <= set(pins)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    assert all(group["why"] for group in described["package"])
    for promised in ["numpy", "pandas", "scipy", "matplotlib", "seaborn", "scikit-learn", "sympy", "statsmodels", "networkx"]:
        assert promised in names
    for promised in ["pillow", "openpyxl", "lxml", "beautifulsoup4", "tabulate"]:
        assert promised in names


@pytest.mark.spec("ENV-08")
def test_the_tree_of_zygotes_names_parents_before_children():
    described, _ = definition()
    seen = set()
    for number, node in enumerate(described["node"]):
        assert set(node) <= {"name", "parent", "imports"}
        assert (node.get("parent") in seen) if number else "parent" not in node
        seen.add(node["name"])
    assert seen == {"bare", "numpy", "pandas", "plot", "science", "symbolic"}
