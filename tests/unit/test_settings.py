"""The server's configuration: the sample is complete and says the defaults, and what is wrong is named."""

from pathlib import Path

import msgspec
import pytest

from onetrip import settings
from onetrip.errors import BadRequest
from onetrip.settings import Settings

SAMPLE = Path(__file__).parents[2] / "deploy" / "onetrip.toml"


def test_the_sample_says_the_defaults():
    assert settings.load(SAMPLE) == Settings()


def test_the_sample_has_every_setting():
    text = SAMPLE.read_text("utf-8")
    names = [field.name for field in msgspec.structs.fields(Settings)]
    for part in (
        settings.Quota,
        settings.Caps,
        settings.Otel,
        settings.Tools,
        settings.OpenApiTools,
        settings.McpTools,
        settings.ToolOptions,
    ):
        names += [field.name for field in msgspec.structs.fields(part)]
    assert [name for name in names if f"{name} =" not in text and f"[{name}]" not in text] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "prot"),
        ("port = 'x'", "port"),
        ("[limits]\nmemory_mb = 'much'", "limits.memory_mb"),
        ("[quota]\nsession = 1", "session"),
        ("[[tools.mcp]]\nname = 'a'\ncomand = ['x']", r"comand.*tools.mcp\[0\]"),
        ("[tools.options.a]\neffect = 'reads'", "reads"),
        ("port = ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, named):
    path = tmp_path / "onetrip.toml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=named):
        settings.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadRequest, match="nowhere.toml.*No such file"):
        settings.load(tmp_path / "nowhere.toml")
