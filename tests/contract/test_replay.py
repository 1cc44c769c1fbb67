"""Chains of a hundred cells with kills at random places: what is left equals what a session has that ran the surviving cells only.

Each chain is drawn from a seed. A victim is a real cell of its kind, run for nothing: it changes everything that the chain holds
and is killed then. The reference is a session without checkpoints that never sees the victims. Values and files are compared whole.
"""

import random
import textwrap
from collections.abc import Iterator

import pytest

import onetrip
from onetrip import Limits
from onetrip.model import SessionState

CELLS = 100
VICTIMS = 0.2  # of all cells
KILLS = ("os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)", "ctypes.string_at(0)", "os.abort()")
SETUP = "import ctypes, os, signal"

# Kind → what its chain starts with; cells that go on from there, drawn at random; what is compared at the end.
LIBRARY = {
    "plain": (
        """
        import csv, itertools, random, sqlite3
        random.seed(SEED)
        seen = []
        def fibonacci():
            a, b = 0, 1
            while True:
                yield a
                a, b = b, a + b
        numbers = fibonacci(); squares = (n * n for n in itertools.count())
        open('rows.csv', 'w').writelines(f'{n},{n * n}\\n' for n in range(1000))
        rows = csv.reader(open('rows.csv'))
        log = open('log', 'w'); back = open('log')
        memory = sqlite3.connect(':memory:'); memory.execute('create table t (x)')
        disk = sqlite3.connect('disk.db', timeout=0); disk.execute('create table t (x)'); disk.commit()
        """,
        (
            "seen.append(next(numbers) + next(squares))",
            "seen.append(next(rows))",
            "seen.append([random.random(), random.choice('abc'), random.gauss(0, 1)])",
            "_ = log.write(f'{len(seen)}\\n')",
            "log.flush(); seen.append(back.readline())",
            "memory.execute('insert into t values (?)', [len(seen)]); seen.append(memory.execute('select count(*), sum(x) from t').fetchone())",
            "_ = disk.execute('insert into t values (?)', [len(seen)])",
            "disk.commit()",
            "disk.rollback(); seen.append(disk.execute('select count(*), sum(x) from t').fetchone())",
            "os.makedirs('d', exist_ok=True); open(f'd/{len(seen) % 7}', 'a').write(f'{random.random()}\\n'); seen.append(sorted(os.listdir('d')))",
            "seen.append(random.getstate()[1][-1]); exec('def later(n=len(seen)): return n'); seen.append(later())",
        ),
        """
        log.flush(); disk.commit()
        seen, next(numbers), next(squares), next(rows), random.random(), back.read(), log.tell(), memory.execute('select * from t').fetchall(), disk.execute('select * from t').fetchall()
        """,
    ),
    "asyncio": (
        """
        import asyncio
        queue, done, tasks, lock = asyncio.Queue(), [], [], asyncio.Lock()
        gate = asyncio.Event()
        async def worker(name):
            while True:
                item = await queue.get()
                done.append((name, item))
                queue.task_done()
        async def waiting(n):
            await gate.wait()
            return n
        first = asyncio.create_task(worker('first')); await asyncio.sleep(0)
        """,
        (
            "await queue.put(len(done))",
            "queue.put_nowait(('later', len(tasks)))",
            "await queue.join()",
            "tasks.append(asyncio.create_task(waiting(len(done)))); await asyncio.sleep(0)",
            "gate.set(); done.append(await asyncio.gather(*tasks)); gate.clear(); tasks = []",
            "async with lock: done.append(lock.locked())",
            "await asyncio.sleep(0); done.append(queue.qsize())",
        ),
        "gate.set(); await queue.join(); done, await asyncio.gather(*tasks), first.done(), queue.qsize()",
    ),
    "science": (
        """
        import warnings; warnings.simplefilter('ignore')
        import numpy as np, pandas as pd, sympy
        from sklearn.linear_model import SGDRegressor
        from sklearn.cluster import MiniBatchKMeans
        import matplotlib.pyplot as plt
        np.random.seed(SEED)
        rng = np.random.default_rng(SEED)
        frame = pd.DataFrame({'a': rng.random(50), 'b': rng.integers(0, 9, 50)})
        model = SGDRegressor(random_state=SEED); clusters = MiniBatchKMeans(2, n_init=1, random_state=SEED)
        x = sympy.Symbol('x'); expression = sympy.Integer(1)
        figure, axes = plt.subplots(figsize=(2, 2)); plt.close(figure)
        seen = []
        """,
        (
            "seen.append(float(rng.random() + np.random.random()))",
            "frame['c'] = frame.a.cumsum() * rng.random(); seen.append(frame.describe().to_dict())",
            "frame = pd.concat([frame, frame.sample(3, random_state=rng)], ignore_index=True); frame.to_csv('frame.csv')",
            "X = frame[['a', 'b']].to_numpy(); _ = model.partial_fit(X, X[:, 0] * 2); seen.append(model.coef_.tolist())",
            "_ = clusters.partial_fit(rng.random((20, 2))); seen.append(clusters.cluster_centers_.tolist())",
            "expression = sympy.expand((expression + x) * (x - len(seen) % 3)); seen.append(str(expression.diff(x)))",
            "_ = axes.plot(rng.random(5)); seen.append(len(axes.lines))",
            "m = np.memmap('m', dtype='f8', mode='r+' if os.path.exists('m') else 'w+', shape=(64,)); m[len(seen) % 64] += rng.random(); m.flush(); del m",
        ),
        """
        import hashlib, io
        drawn = io.BytesIO(); figure.savefig(drawn, format='raw')
        picture = hashlib.sha256(drawn.getvalue()).hexdigest()
        seen, frame.to_dict(), model.coef_.tolist(), str(expression), float(rng.random()), float(np.random.random()), picture
        """,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ot() -> Iterator[onetrip.embedded.Local]:
    with onetrip.local(warm=0) as engine:
        yield engine


def chain(kind: str, seed: int) -> tuple[list[tuple[str, bool]], str]:
    """Cells with whether each is a victim, and the last one, which looks."""
    draw = random.Random(f"{kind} {seed}")
    start, steps, look = LIBRARY[kind]
    cells = [(SETUP + textwrap.dedent(start).replace("SEED", str(seed)), False)]
    for _ in range(CELLS - 1):
        step = draw.choice(steps)
        if draw.random() < VICTIMS:
            more = "\n".join(draw.sample(steps, 3))
            cells.append((f"{step}\n{more}\n{draw.choice(KILLS)}", True))
        else:
            cells.append((step, False))
    return cells, textwrap.dedent(look)


def files(session) -> dict[str, bytes]:
    return {info.path: session.files.read(info.path) for info in session.files.list()}


@pytest.mark.slow
@pytest.mark.spec("UND-07", "UND-08", "UND-12", "UND-15", "UND-16")
@pytest.mark.parametrize(("kind", "seed"), [("plain", 1), ("plain", 2), ("asyncio", 1), ("asyncio", 2), ("science", 1)])
def test_a_chain_with_lost_cells_ends_as_if_they_had_never_been(ot, kind, seed):
    cells, look = chain(kind, seed)
    limits = Limits(memory_mb=2048)
    with ot.session(limits=limits) as session, ot.session(limits=limits, checkpoints=0) as reference:
        lost = 0
        for number, (source, is_victim) in enumerate(cells):
            where = f"cell {number} of {kind} {seed}: {source}"
            result = session.run(source)
            if is_victim:
                lost += 1
                assert result.session == SessionState(survived=True, rolled_back=True, checkpoint=True), (where, result)
                assert result.error.type == "ProcessDied", (where, result.error)
            else:
                assert (result.status, result.session.note) == ("completed", None), (where, result)
                expected = reference.run(source)
                assert (result.text, result.stdout, result.error) == (expected.text, expected.stdout, expected.error), where
        ours, theirs = session.run(look), reference.run(look)
        assert ours.status == "completed", ours.error
        assert ours.value == theirs.value
        assert ours.text == theirs.text
        assert files(session) == files(reference)
        assert lost >= 10
