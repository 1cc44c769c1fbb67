"""The tree of our exceptions, and the table that maps each code to a status."""

import inspect

import pytest

import onetrip
from onetrip import errors
from onetrip.errors import OnetripError

CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, OnetripError)]


@pytest.mark.spec("API-01")
def test_the_table_has_every_code_and_no_other():
    assert set(errors.STATUS) == {found.code for found in CLASSES}
    for status, retry in errors.STATUS.values():
        assert 400 <= status <= 599
        assert isinstance(retry, bool)


@pytest.mark.spec("API-01")
def test_every_exception_of_ours_is_public_and_derives_from_one():
    assert {found.__name__ for found in CLASSES} <= set(onetrip.__all__)
    assert all(getattr(onetrip, found.__name__) is found for found in CLASSES)


def test_the_tree_drawn_in_the_docstring_is_the_tree():
    drawn = errors.__doc__ or ""
    names = [found.__name__ for found in CLASSES]
    assert [name for name in names if name not in drawn] == []
    indents = {
        line.strip("│├└─ ").split()[0]: len(line) - len(line.lstrip("│├└─ ")) for line in drawn.splitlines() if "──" in line
    }
    for found in CLASSES:
        parent = found.__bases__[0]
        if found is not OnetripError and parent in CLASSES and parent.__name__ in indents:
            assert indents[found.__name__] > indents[parent.__name__], found.__name__


@pytest.mark.spec("API-01")
@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_every_error_says_what_to_do(found):
    error = found("what happened")
    assert str(error) == "what happened"
    assert error.hint
    assert error.hint.endswith((".", "`"))
    assert error.field is None
    other = found("what happened", hint="do this", field="limits.wall_s")
    assert (other.hint, other.field) == ("do this", "limits.wall_s")


@pytest.mark.parametrize(
    ("found", "builtin"),
    [(errors.BadRequest, ValueError), (errors.UnknownEnvironment, ValueError), (errors.NotFound, LookupError)],
)
def test_errors_are_also_what_python_would_raise(found, builtin):
    assert issubclass(found, builtin)
