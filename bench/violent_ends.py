"""Programs that end in every violent way, and what the result of each may say."""

from dataclasses import dataclass, field
from typing import Any, Literal

# What the caller does while the program runs: nothing, interrupt it, cancel the call, or leave in the middle of the stream.
Caller = Literal["waits", "interrupts", "cancels", "leaves"]

ROOM: dict[str, Any] = {"wall_s": 0.3, "memory_mb": 160, "processes": 16, "disk_mb": 8, "output_mb": 1}


@dataclass(frozen=True)
class End:
    """`statuses`: what is right for this program. `limits` over the defaults of `ROOM`."""

    name: str
    code: str
    statuses: frozenset[str]
    caller: Caller = "waits"
    limits: dict[str, Any] = field(default_factory=dict)
    default_limits: bool = False  # take the sandbox from the pool


def _end(name: str, code: str, *statuses: str, caller: Caller = "waits", default_limits: bool = False, **limits: Any) -> End:
    return End(name, code, frozenset(statuses), caller, limits, default_limits)


PEACEFUL = (
    _end("a value", "1 + 1", "completed", default_limits=True),
    _end("pandas", "import pandas as pd\nint(pd.Series([1, 2]).sum())", "completed", default_limits=True),
    _end("an exception", "1 / 0", "failed", default_limits=True),
    _end("a file", "open('a.txt', 'w').write('x' * 1000)", "completed", default_limits=True),
)
VIOLENT = (
    _end("os._exit", "import os\nos._exit(3)", "failed", default_limits=True),
    _end("SIGKILL to itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed", default_limits=True),
    _end("segmentation fault", "import ctypes\nctypes.string_at(0)", "failed", default_limits=True),
    _end("abort", "import os\nos.abort()", "failed", default_limits=True),
    _end("SIGSTOP to itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "limit_exceeded"),
    _end("loop without end", "while True:\n    pass", "limit_exceeded"),
    _end(
        "loop that ignores interrupts",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "limit_exceeded",
    ),
    _end("memory hog", "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))", "limit_exceeded", "failed", wall_s=5),
    _end(
        "memory hog in children",
        "import os\nfor _ in range(8):\n    if os.fork() == 0:\n        kept = [bytearray(1 << 20) for _ in range(100)]\n        while True: pass\n"
        "while True: pass",
        "limit_exceeded",
        "failed",
        wall_s=1,
    ),
    _end("fork bomb", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "limit_exceeded", "failed"),
    _end(
        "thread bomb",
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
        "limit_exceeded",
        "failed",
    ),
    _end("output flood", "while True:\n    print('x' * 10_000)", "limit_exceeded", wall_s=5),
    _end("output flood past print", "import os\nwhile True:\n    os.write(2, b'x' * 65536)", "limit_exceeded", wall_s=5),
    _end("channel closed", "import os\nos.close(3)", "failed", "limit_exceeded", "lost"),
    _end("every descriptor closed", "import os\nos.closerange(0, 64)", "failed", "limit_exceeded", "lost"),
    _end("garbage on the channel", "import os\nfor _ in range(50):\n    os.write(3, b'\\xff' * 300)", "failed", "lost"),
    _end(
        "children left behind",
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            time.sleep(1000)\n"
        "        os._exit(0)\n'left'",
        "completed",
        wall_s=20,
    ),
    _end(
        "a program left running",
        "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\n'left'",
        "completed",
        wall_s=20,
    ),
    _end(
        "disk full",
        "with open('big', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))",
        "failed",
        "limit_exceeded",
        wall_s=5,
    ),
    _end(
        "disk full in scratch",
        "with open('/tmp/big', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))",
        "failed",
        "limit_exceeded",
        wall_s=5,
    ),
    _end("out of inodes", "i = 0\nwhile True:\n    open(f'f{i}', 'w').close()\n    i += 1", "failed", "limit_exceeded", wall_s=5),
    _end("recursion", "def f():\n    return f()\nf()", "failed", wall_s=20),
    _end(
        "recursion past the stack",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(self, name): return getattr(self, name + 'x')\nA().a",
        "failed",
        "limit_exceeded",
        wall_s=5,
    ),
    _end("interrupted", "import time\ntime.sleep(30)", "interrupted", caller="interrupts", wall_s=60),
    _end("call cancelled", "import time\ntime.sleep(30)", caller="cancels", wall_s=60),
    _end(
        "consumer gone",
        "import time\nwhile True:\n    print('tick', flush=True)\n    time.sleep(0.001)",
        caller="leaves",
        wall_s=60,
    ),
    _end("consumer gone in a flood", "while True:\n    print('x' * 10_000)", caller="leaves", wall_s=60, output_mb=1000),
    _end(
        "deleted builtins",
        "import builtins\nfor name in list(vars(builtins)):\n    delattr(builtins, name)",
        "failed",
        "completed",
        "lost",
    ),
    _end(
        "exit handler that hangs", "import atexit, time\natexit.register(time.sleep, 60)\n'left'", "limit_exceeded", "completed"
    ),
)
