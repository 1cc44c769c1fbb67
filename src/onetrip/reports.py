"""The result of a run: the guest's account of it, merged with what the host and the kernel know."""

import time
from typing import Protocol

import msgspec

from onetrip import files, model, outcomes
from onetrip.calls import Calls
from onetrip.guards import Guard
from onetrip.model import Isolation, Result
from onetrip.outcomes import Run
from onetrip.outputs import Outputs
from onetrip.tiers.base import Exit
from onetrip.watchdog import Watchdog


class Evidence(Protocol):
    """What a worker knows of the run that is open."""

    outputs: Outputs
    watchdog: Watchdog
    changes: files.Changes
    violation: str | None
    exit: Exit | None

    @property
    def silent(self) -> str | None: ...
    def isolation(self) -> Isolation: ...


def final(worker: Evidence, run: Run, calls: Calls, session_id: str | None, queue_ms: float, start_ms: float) -> Result:
    """How it ended. Nothing of it is open any more."""
    after, before = worker.watchdog.end(), worker.watchdog.before
    account, silent = run.account, worker.silent
    survived = account is not None and silent is None
    if run.stopped is None and after.oom_kills > before.oom_kills:
        run.stopped = "memory"
    if worker.violation is not None:
        status, error, limit = outcomes.from_violation(worker.violation)
    elif account is not None:
        status, error, limit = outcomes.from_account(account, run.limits, run.wall_s, run.stopped)
    else:
        status, error, limit = outcomes.from_exit(
            worker.exit or Exit(lost="its end is unknown"), run.limits, run.wall_s, run.stopped
        )
    told = account if account is not None and status == "completed" else None
    notes = account.notes if account is not None else ()
    if calls.untold:
        notes = (*notes, f"{calls.untold:,} more calls of tools are not listed")
    return Result(
        id=run.id,
        session_id=session_id,
        status=status,
        text=told.text if told else None,
        value=told.value if told else None,
        stdout=worker.outputs.text("stdout"),
        stderr=worker.outputs.text("stderr"),
        truncated=model.Truncated(worker.outputs.truncated("stdout"), worker.outputs.truncated("stderr")),
        displays=tuple(run.displays),
        error=error,
        limit=limit,
        tool_calls=calls.ledger(),
        notes=notes,
        files=worker.changes.take() if survived else (),
        session=model.SessionState(
            survived, note=None if survived else silent, variables=account.variables if account and survived else ()
        ),
        usage=_usage(worker, run, after.cpu_us - before.cpu_us, queue_ms, start_ms),
        isolation=worker.isolation(),
    )


def waiting(worker: Evidence, run: Run, calls: Calls, session_id: str | None, queue_ms: float, start_ms: float) -> Result:
    """What there is so far of a run that waits for its caller."""
    now = worker.watchdog.look()
    return Result(
        id=run.id,
        session_id=session_id,
        status="waiting",
        stdout=worker.outputs.text("stdout"),
        stderr=worker.outputs.text("stderr"),
        truncated=model.Truncated(worker.outputs.truncated("stdout"), worker.outputs.truncated("stderr")),
        displays=tuple(run.displays),
        pending=calls.pending(),
        tool_calls=calls.ledger(),
        session=model.SessionState(survived=True, checkpoint=run.has_checkpoint),
        usage=_usage(worker, run, now.cpu_us - worker.watchdog.before.cpu_us, queue_ms, start_ms),
        isolation=worker.isolation(),
    )


def with_state(
    result: Result, survived: bool, *, rolled_back: bool = False, checkpoint: bool = False, note: str | None = None
) -> Result:
    """The same result, with what became of its session."""
    variables = () if rolled_back else result.session.variables
    return msgspec.structs.replace(result, session=model.SessionState(survived, rolled_back, checkpoint, note, variables))


def judged(result: Result, guard: Guard | None, source: str) -> Result:
    """The same result, with what its session's guard has to say."""
    if guard is None:
        return result
    verdict = guard.program_ended(result.status, result.error, source, result.tool_calls)
    if not verdict.notes:
        return result
    return msgspec.structs.replace(result, notes=(*result.notes, *verdict.notes), loop_detected=verdict.loop)


def _usage(worker: Evidence, run: Run, cpu_us: int, queue_ms: float, start_ms: float) -> model.Usage:
    return model.Usage(
        queue_ms=round(queue_ms, 3),
        start_ms=round(start_ms, 3),
        wall_ms=round((time.monotonic() - run.started) * 1e3, 3),
        cpu_ms=round(max(0, cpu_us) / 1e3, 3),
        peak_memory_bytes=worker.watchdog.peak_bytes,
        output_bytes=worker.outputs.bytes,
    )
