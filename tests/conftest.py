"""What every test run shares: a first line that says where it ran, and fixtures for environments made of nothing."""

import base64
import hashlib
import os
import platform
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import settings

import servers
from onetrip import environments
from onetrip.errors import OnetripError

# No deadline: on a busy machine an example may take long. No database: a folder in the checkout that nobody asked for.
settings.register_profile("onetrip", deadline=None, database=None)
settings.load_profile("onetrip")


def pytest_report_header() -> str:
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    return f"uid {os.geteuid()} ({user}), kernel {platform.release()}, {sys.executable}"


@pytest.fixture
def wheel(tmp_path):
    """Makes a wheel of one module and returns the requirement that installs it, without any network."""

    def make(name: str, source: str = "ANSWER = 42\n", version: str = "1.0") -> str:
        path: Path = tmp_path / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": source,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(
            f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text.encode())}\n"
            for file, text in files.items()
        )
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
                archive.writestr(file, text)
        return f"{name} @ file://{path}"

    return make


@pytest.fixture(scope="session")
def shared_server():
    """One server for all tests that leave it as it was."""
    _needs_environment()
    with servers.serving() as running:
        yield running


@pytest.fixture
def server():
    """A server of this test's own, to be killed and started again."""
    _needs_environment()
    with servers.serving() as running:
        yield running


@pytest.fixture(scope="session")
def needs_environment():
    _needs_environment()


def _needs_environment() -> None:
    try:
        environments.find("default")
    except OnetripError as missing:
        pytest.skip(f"needs the default environment: {missing}")
