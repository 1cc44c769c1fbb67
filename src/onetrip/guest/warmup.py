"""Uses, in a zygote, everything that a cell will use, so that the forks share the memory it takes and pay no first-use cost."""

import linecache
import os
import sys
from collections.abc import Mapping
from typing import Final

from .audit import Listener
from .display import Displays
from .hooks import Hook
from .interrupts import block_all, restore
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .reseed import reseed
from .runner import Runner
from .streams import Streams

_ROUNDS: Final = 10  # the interpreter specialises a function's bytecode after eight calls (3.11: after eight, 3.13: earlier)
_ALWAYS: Final = (
    "x = 1\nprint('warm', x)\nx + 1",
    "import json, math, random, re\nvalues = [i * 1.5 for i in range(10)]\njson.dumps({'a': values})\n{'a': values, 'b': None}",
    "def f(n):\n    return {'n': n}\ntry:\n    f(1)['m']\nexcept KeyError as e:\n    print('key', e)\nf(2)",
    "1 / 0",
    "def outer():\n    raise ValueError('warm')\ntry:\n    outer()\nexcept ValueError as e:\n    raise RuntimeError('again') from e",
    "syntax error here",
    "class A:\n    def _repr_html_(self):\n        return '<b>warm</b>'\ndisplay(A())\nA()",
)
_IF_LOADED: Final[Mapping[str, tuple[str, ...]]] = {
    "numpy": (
        "import numpy as np\na = np.arange(12.0).reshape(3, 4)\nprint(a)\nprint(a.mean(), a.sum(axis=0), (a @ a.T).shape)\na",
        "np.random.default_rng(0).normal(size=3)\nnp.linalg.inv(np.eye(3))\nnp.float64(1.5)",
    ),
    "pandas": (
        "import pandas as pd\ndf = pd.DataFrame({'k': ['a', 'b', 'a'], 'v': [1, 2, 3], 'w': [1.5, None, 2.0]})\nprint(df)\ndf",
        "df.groupby('k')['v'].sum()",
        "print(df.describe())\ndf[df['v'] > 1].sort_values('v').merge(df, on='k')",
        "import io\npd.read_csv(io.StringIO('a,b\\n1,2\\n3,4\\n'), parse_dates=False)",
    ),
    "matplotlib.pyplot": ("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('warm')\nplt.xlabel('x')",),
    "asyncio": ("import asyncio\nawait asyncio.sleep(0)",),
}


def run(hook: Hook) -> None:
    """Run the cells over /dev/null in a namespace that is thrown away."""
    streams_before = sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__
    mask = block_all()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        streams = Streams(null, null)
        streams.install()
        hook.displays = Displays(_discard)
        runner = Runner(streams, hook.displays, Listener(streams.pass_on))
        runner.start()
        cells = [*_ALWAYS]
        for module, more in _IF_LOADED.items():
            if module in sys.modules:
                cells += more
        for round_number in range(_ROUNDS):
            for cell in cells if round_number == 0 else _ALWAYS:
                runner.run(0, cell.encode(), b'{"warm": [1]}', final=False)
        runner.close()
        reseed()
    finally:
        hook.displays = None
        sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams_before  # type: ignore[misc]
        linecache.cache.pop("<cell 0>", None)
        os.close(null)
        restore(mask)


def _discard(_data: Mapping[str, bytes], _is_result: bool) -> bool:
    return True
