"""Which zygote node a program is forked from."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip import preload
from onetrip.environments import Node

TREE = (
    Node("bare", None, ("json", "math")),
    Node("numpy", "bare", ("numpy",)),
    Node("pandas", "numpy", ("pandas",)),
    Node("plot", "pandas", ("matplotlib.pyplot", "seaborn")),
    Node("symbolic", "bare", ("sympy", "mpmath", "decimal")),
)


@pytest.mark.spec("ENV-09")
@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import numpy", {"numpy"}),
        ("import numpy as np, pandas as pd", {"numpy", "pandas"}),
        ("import os.path", {"os"}),
        ("from pandas import DataFrame", {"pandas"}),
        ("from pandas.core import x", {"pandas"}),
        ("    import numpy", {"numpy"}),
        ("\timport numpy # why", {"numpy"}),
        ("if True:\n  import numpy\nelse:\n  from scipy import stats", {"numpy", "scipy"}),
        ("import numpy; import pandas", {"numpy"}),  # the second costs an import, nothing else
        ("print('import numpy')", set()),
        ("# import numpy", set()),
        ("important = 1\nfrom_here = 2", set()),
        ("from . import x", set()),
        ("import", set()),
        ("from", set()),
        ("", set()),
    ],
)
def test_the_names_that_a_source_imports(source, found):
    assert preload.imports_of(source) == found


@pytest.mark.spec("ENV-09")
@pytest.mark.parametrize(
    ("source", "node"),
    [
        ("1 + 1", "bare"),
        ("import json, math", "bare"),
        ("import requests", "bare"),
        ("import numpy", "numpy"),
        ("import pandas", "pandas"),
        ("import numpy, pandas", "pandas"),
        ("import seaborn", "plot"),
        ("import matplotlib.pyplot as plt", "plot"),
        ("import sympy", "symbolic"),
        ("import sympy, numpy, pandas", "pandas"),  # no node has all: the one with most
        ("import sympy, numpy", "numpy"),  # equally many: the smaller one
    ],
)
def test_the_smallest_node_that_covers_the_source(source, node):
    assert preload.choose(TREE, source) == node


def test_a_tree_of_one_node_serves_all():
    assert preload.choose((Node("bare", None, ()),), "import numpy") == "bare"


@given(st.text() | st.text(alphabet="import from\t,;.as#\n"))
def test_any_text_gets_a_node(source):
    assert preload.choose(TREE, source) in {node.name for node in TREE}


@pytest.mark.parametrize(
    "source", [" " * 5_000_000, "import " * 700_000, "import a," * 500_000, "\n \t" * 1_500_000, "from " + "a" * 5_000_000]
)
def test_the_search_is_bounded(source):
    began = time.perf_counter()
    preload.choose(TREE, source)
    assert time.perf_counter() - began < 0.5
