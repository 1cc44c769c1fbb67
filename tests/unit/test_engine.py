"""What an engine does to the process that it lives in, before anything runs."""

import ctypes
import subprocess
import sys

import pytest

THREADS = """
import ctypes, os, sys, threading
from onetrip.engine import LocalEngine

if sys.argv[1] == "with":
    LocalEngine()
together = threading.Barrier(4)

def work():
    kept = bytes(100_000)
    together.wait(10)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the libc is another one")
def test_threads_have_no_heaps_of_their_own():
    def heaps(engine: str) -> int:
        return subprocess.run([sys.executable, "-c", THREADS, engine], capture_output=True, check=True).stdout.count(b"<heap nr=")

    assert heaps("without") > 1
    assert heaps("with") == 1
