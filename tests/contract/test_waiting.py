"""When a run waits: exactly when nothing in its program can go on but by its caller's answer, however the program is made."""

import textwrap

import pytest

import onetrip
from onetrip.model import Tool

ASK = Tool(name="ask", input_schema={"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]})
WALL_S = 20.0  # ends a program that should wait and does not; one that waits loses nothing by it


def look(name: str) -> str:
    return f"saw {name}"


@pytest.fixture
def live(ot):
    with ot.session(tools=[ASK, look], limits=onetrip.Limits(wall_s=WALL_S)) as session:
        assert session.run("import asyncio, threading, time, queue, concurrent.futures as cf, subprocess, contextlib").ok
        yield session


def answered(session, code: str) -> tuple[list[list[str]], object]:
    """Run to its end. The questions of each time that it waited, and its value; each answer is the question in capitals."""
    result = session.run(textwrap.dedent(code))
    waits = []
    while result.status == "waiting":
        assert "begun" not in result.stdout or "over" in result.stdout, "it waits, and something in it goes on"
        waits.append(sorted(call.arguments["question"] for call in result.pending))
        result = session.answer(result, {call.id: call.arguments["question"].upper() for call in result.pending})
    assert result.status == "completed", (waits, result.error or result.limit)
    return waits, result.value


WAITS = {
    # event loops
    "wait for all": ("d, _ = await asyncio.wait([asyncio.create_task(ask(q)) for q in 'ab'])\nsorted(t.result() for t in d)", "ab"),
    "wait with a timeout": ("d, _ = await asyncio.wait([asyncio.create_task(ask(q)) for q in 'ab'], timeout=60)\nsorted(t.result() for t in d)", "ab"),
    "timeout": ("async with asyncio.timeout(60):\n    r = await asyncio.gather(ask('a'), ask('b'))\nr", "ab"),
    "wait_for": ("await asyncio.gather(*(asyncio.wait_for(ask(q), 60) for q in 'ab'))", "ab"),
    "shield": ("[await asyncio.shield(asyncio.create_task(ask('a')))]", "a"),
    "as_completed": ("sorted([await f for f in asyncio.as_completed([ask(q) for q in 'ab'], timeout=60)])", "ab"),
    "timeout that was disarmed": ("async with asyncio.timeout(0.05) as t:\n    t.reschedule(None)\n    r = await ask('a')\n[r]", "a"),
    "a timer that was cancelled": ("asyncio.get_running_loop().call_later(60, print).cancel()\n[await ask('a')]", "a"),
    "two asked of a loop in a thread": ("def f():\n    async def g():\n        return await asyncio.gather(ask('a'), ask('b'))\n    return asyncio.run(g())\nawait asyncio.to_thread(f)", "ab"),
    "a loop in each of two threads": ("def f(q):\n    async def g():\n        return await ask(q)\n    return asyncio.run(g())\nwith cf.ThreadPoolExecutor(2) as p:\n    r = list(p.map(f, 'ab'))\nr", "ab"),
    "a task that waits for a task": ("t = asyncio.create_task(ask('a'))\nasync def f():\n    return await t\n(await asyncio.gather(f(), f(), ask('b')))[1:]", "ab"),
    # threads
    "to_thread": ("sorted(await asyncio.gather(*(asyncio.to_thread(ask, q) for q in 'ab'), ask('c')))", "abc"),
    "run_in_executor": ("loop = asyncio.get_running_loop()\nsorted(await asyncio.gather(*(loop.run_in_executor(None, ask, q) for q in 'ab'), ask('c')))", "abc"),
    "a pool and its futures": ("with cf.ThreadPoolExecutor(2) as p:\n    r = [f.result() for f in [p.submit(ask, q) for q in 'ab']]\nr", "ab"),
    "futures.wait": ("with cf.ThreadPoolExecutor(2) as p:\n    fs = [p.submit(ask, q) for q in 'ab']\n    cf.wait(fs)\n    r = [f.result() for f in fs]\nr", "ab"),
    "a pool that has nothing to do": ("p = cf.ThreadPoolExecutor(2)\nlist(p.map(str, 'xy'))\nr = ask('a')\np.shutdown()\n[r]", "a"),
    "join": ("r = []\nt = threading.Thread(target=lambda: r.append(ask('a')))\nt.start()\nt.join()\nr", "a"),
    "threads that join each other": ("r = []\nt = threading.Thread(target=lambda: r.append(ask('a')))\nu = threading.Thread(target=t.join)\nt.start()\nu.start()\nu.join()\nr", "a"),
    "Queue.get": ("q = queue.Queue()\nr = []\nt = threading.Thread(target=lambda: r.append(q.get()))\nt.start()\nq.put(ask('a'))\nt.join()\nr", "a"),
    "SimpleQueue.get": ("q = queue.SimpleQueue()\nr = []\nt = threading.Thread(target=lambda: r.append(q.get()))\nt.start()\nq.put(ask('a'))\nt.join()\nr", "a"),
    "Event.wait": ("e = threading.Event()\nt = threading.Thread(target=e.wait)\nt.start()\nr = ask('a')\ne.set()\nt.join()\n[r]", "a"),
    "Condition.wait": ("c = threading.Condition()\ndef f():\n    with c:\n        c.wait()\nt = threading.Thread(target=f)\nt.start()\nr = ask('a')\nwith c:\n    c.notify()\nt.join()\n[r]", "a"),
    "Condition.wait_for": ("c, r = threading.Condition(), []\ndef f():\n    with c:\n        c.wait_for(lambda: r)\nt = threading.Thread(target=f)\nt.start()\nx = ask('a')\nwith c:\n    r.append(x)\n    c.notify()\nt.join()\nr", "a"),
    "Semaphore": ("s = threading.Semaphore(0)\nt = threading.Thread(target=s.acquire)\nt.start()\nr = ask('a')\ns.release()\nt.join()\n[r]", "a"),
    "Barrier": ("b = threading.Barrier(2)\nt = threading.Thread(target=b.wait)\nt.start()\nr = ask('a')\nb.wait()\nt.join()\n[r]", "a"),
    "Lock.acquire": ("k = threading.Lock()\nk.acquire()\nt = threading.Thread(target=k.acquire)\nt.start()\nr = ask('a')\nk.release()\nt.join()\n[r]", "a"),
    "RLock.acquire": ("k = threading.RLock()\nk.acquire()\nt = threading.Thread(target=k.acquire)\nt.start()\nr = ask('a')\nk.release()\nt.join()\n[r]", "a"),
    "the main thread in a future": ("p = cf.ThreadPoolExecutor(1)\nr = p.submit(ask, 'a').result()\np.shutdown()\n[r]", "a"),
    "a thread that asks while the main thread has a loop": ("r = []\nt = threading.Thread(target=lambda: r.append(ask('a')))\nt.start()\nr.append(await ask('b'))\nwhile t.is_alive():\n    await asyncio.sleep(0.01)\nsorted(r)", "ab"),
    "a server tool first": ("look('x')\n[ask('a')]", "a"),
}  # fmt: skip


@pytest.mark.spec("TOL-65")
@pytest.mark.parametrize("program", WAITS)
def test_a_run_waits_once_with_all_of_its_calls(live, program):
    code, questions = WAITS[program]
    assert answered(live, code) == ([list(questions)], list(questions.upper()))


STEPS = {
    "a semaphore lets one call through": (
        "s = asyncio.Semaphore(1)\nasync def f(q):\n    async with s:\n        return await ask(q)\nawait asyncio.gather(f('a'), f('b'), f('c'))",
        ["a", "b", "c"],
        ["A", "B", "C"],
    ),
    "a queue with two consumers": (
        """
        q, r = asyncio.Queue(), []
        async def consume():
            while True:
                r.append(await ask(await q.get()))
                q.task_done()
        for word in 'abc':
            q.put_nowait(word)
        workers = [asyncio.create_task(consume()) for _ in range(2)]
        await q.join()
        for worker in workers:
            worker.cancel()
        r
        """,
        ["ab", "c"],
        ["A", "B", "C"],
    ),
    "threads behind a lock": (
        """
        k, r = threading.Lock(), []
        def f(q):
            with k:
                r.append(ask(q))
        ts = [threading.Thread(target=f, args=(q,)) for q in 'aa']
        for t in ts: t.start()
        for t in ts: t.join()
        r
        """,
        ["a", "a"],
        ["A", "A"],
    ),
    "calls after calls": ("x = ask('a')\ny = ask('b')\n[x, y]", ["a", "b"], ["A", "B"]),
    "the first of two, and then the other": (
        """
        ts = [asyncio.create_task(ask(q)) for q in 'ab']
        await asyncio.wait(ts, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*ts)
        """,
        ["ab"],
        ["A", "B"],
    ),
    "a call in a callback of a loop": (
        "loop = asyncio.get_running_loop()\nf = loop.create_future()\nloop.call_soon(lambda: asyncio.ensure_future(ask('a')).add_done_callback(lambda t: f.set_result(t.result())))\n[await f]",
        ["a"],
        ["A"],
    ),
}


@pytest.mark.spec("TOL-65")
@pytest.mark.parametrize("program", STEPS)
def test_a_run_waits_again_for_what_comes_after(live, program):
    code, waits, value = STEPS[program]
    assert answered(live, code) == ([list(questions) for questions in waits], value)


# Each says `begun`, does something beside a pending call that takes a while, and says `over`.
GOES_ON = {
    "a task that sleeps": "async def f():\n    print('begun')\n    await asyncio.sleep(0.3)\n    print('over')\nawait asyncio.gather(ask('a'), f())\n1",
    "a timer of the program's": "def f():\n    print('over')\nprint('begun')\nasyncio.get_running_loop().call_later(0.3, f)\nawait ask('a')\n1",
    "a timer in a class": "class C:\n    def f(self):\n        print('over')\nprint('begun')\nasyncio.get_running_loop().call_later(0.3, C().f)\nawait ask('a')\n1",
    "a thread that sleeps": "def f():\n    print('begun')\n    time.sleep(0.3)\n    print('over')\nt = threading.Thread(target=f)\nt.start()\nask('a')\nt.join()\n1",
    "a daemon thread that sleeps": "def f():\n    print('begun')\n    time.sleep(0.3)\n    print('over')\nt = threading.Thread(target=f, daemon=True)\nt.start()\nask('a')\n1",
    "a thread that computes": "def f():\n    print('begun')\n    end = time.monotonic() + 0.3\n    while time.monotonic() < end:\n        sum(range(100))\n    print('over')\nt = threading.Thread(target=f)\nt.start()\nask('a')\nt.join()\n1",
    "a thread with a limit to its wait": "def f():\n    print('begun')\n    threading.Event().wait(0.3)\n    print('over')\nt = threading.Thread(target=f)\nt.start()\nask('a')\nt.join()\n1",
    "a lock with a limit": "k = threading.Lock()\nk.acquire()\ndef f():\n    print('begun')\n    k.acquire(timeout=0.3)\n    print('over')\nt = threading.Thread(target=f)\nt.start()\nask('a')\nt.join()\n1",
    "a queue with a limit": "def f():\n    print('begun')\n    with contextlib.suppress(queue.Empty):\n        queue.Queue().get(timeout=0.3)\n    print('over')\nt = threading.Thread(target=f)\nt.start()\nask('a')\nt.join()\n1",
    "a task in a pool": "def f():\n    print('begun')\n    time.sleep(0.3)\n    print('over')\nawait asyncio.gather(ask('a'), asyncio.to_thread(f))\n1",
    "a pool beside threads that ask": "def f():\n    print('begun')\n    time.sleep(0.3)\n    print('over')\nwith cf.ThreadPoolExecutor(3) as p:\n    p.submit(ask, 'a')\n    p.submit(f)\n1",
    "a process that a thread waits for": "def f():\n    print('begun')\n    subprocess.run(['sleep', '0.3'])\n    print('over')\nt = threading.Thread(target=f)\nt.start()\nask('a')\nt.join()\n1",
    "a loop in a thread that sleeps": "async def g():\n    print('begun')\n    await asyncio.sleep(0.3)\n    print('over')\nt = threading.Thread(target=lambda: asyncio.run(g()))\nt.start()\nask('a')\nt.join()\n1",
    "a loop whose task sleeps beside a thread": "async def g():\n    print('begun')\n    await asyncio.sleep(0.3)\n    print('over')\nawait asyncio.gather(asyncio.to_thread(ask, 'a'), g())\n1",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.spec("TOL-65")
@pytest.mark.parametrize("program", GOES_ON)
def test_a_run_does_not_wait_while_it_goes_on_with(live, program):
    waits, value = answered(live, GOES_ON[program])
    assert (waits, value) == ([["a"]], 1)


@pytest.mark.spec("TOL-65")
def test_a_server_tool_on_its_way_comes_before_the_wait(ot):
    """The caller hears of the wait when the server's own tool has answered, and then of both questions at once."""

    async def slow() -> int:
        import asyncio

        await asyncio.sleep(0.3)
        return 1

    code = "import asyncio\nasync def f():\n    await slow()\n    return await ask('b')\nawait asyncio.gather(ask('a'), f())"
    with ot.session(tools=[ASK, slow]) as session:
        assert answered(session, code) == ([["a", "b"]], ["A", "B"])


@pytest.mark.spec("TOL-65")
def test_what_keeps_watch_in_the_background_does_not_keep_a_run_from_waiting(live):
    """As progress bars do: a daemon thread that looks from time to time whether it is to end."""
    code = """
        e = threading.Event()
        def watch():
            while not e.wait(0.05):
                pass
        t = threading.Thread(target=watch, daemon=True)
        t.start()
        r = ask('a')
        e.set()
        t.join()
        [r]
    """
    assert answered(live, code) == ([["a"]], ["A"])


@pytest.mark.spec("TOL-65")
def test_an_answer_that_threads_wait_for_is_taken_whoever_reads(live):
    """Many threads and tasks, answered one at a time from the last to the first."""
    code = """
        async def f(q):
            return await (asyncio.to_thread(ask, q) if int(q) % 2 else ask(q))
        await asyncio.gather(*(f(str(n)) for n in range(12)))
    """
    result = live.run(textwrap.dedent(code))
    for left in range(12, 0, -1):
        assert (result.status, len(result.pending)) == ("waiting", left), result
        call = max(result.pending, key=lambda call: int(call.arguments["question"]))
        result = live.answer(result, {call.id: call.arguments["question"]})
    assert result.value == [str(n) for n in range(12)]
