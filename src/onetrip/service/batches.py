"""Batches on behalf of callers: calls of server tools, and cells in their sessions or in sandboxes of their own."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from onetrip.errors import Forbidden, NotFound, OnetripError
from onetrip.model import Result, ToolRequest
from onetrip.schema import CellRequest, RunRequest
from onetrip.service import specs
from onetrip.service.records import Run
from onetrip.service.runs import Runs
from onetrip.service.toolcalls import ToolCalls
from onetrip.store import Store
from onetrip.tenants import Caller
from onetrip.tools.batch import BatchItem, BatchRequest, ItemResult, Outcome, plan, run_batch

CONCURRENCY: Final = 64  # items of one batch at once; cells wait for the machine's slots besides
_result: Final = msgspec.json.Decoder(Result)


class Batches:
    def __init__(self, runs: Runs, tools: ToolCalls, store: Store) -> None:
        self._runs, self._tools, self._store = runs, tools, store

    def run(self, caller: Caller, request: BatchRequest, *, idempotency_key: str | None) -> AsyncGenerator[ItemResult]:
        """Results as they come; closing the generator cancels what runs. Raises BadRequest at once for a batch that cannot be, and
        Conflict where the key was another request's.

        Under an idempotency key each cell, and each call that changes something, is made once, however often the batch comes.
        """
        batch = plan(request)
        if idempotency_key is not None:
            self._store.claim(caller.tenant, idempotency_key, specs.fingerprint("batch", request), "batch")
        told = secrets.token_hex(16) if idempotency_key is None else f"{caller.tenant}\0{idempotency_key}"
        batch_id = f"bat_{hashlib.sha256(told.encode()).hexdigest()[:24]}"
        allowed = {tool.name: tool for tool in self._tools.tools(caller.tools)}

        async def call(item: BatchItem, arguments: bytes) -> Outcome:
            if item.code is not None:
                key = None if idempotency_key is None else f"{batch_id}.{item.id}"
                return await self._cell(caller, item, arguments, key)
            tool = allowed.get(item.tool or "")
            if tool is None:
                raise NotFound(f"there is no server tool {str(item.tool)[:100]!r}", hint="GET /v1/tools lists those of this key.")
            if tool.approval == "required":
                raise Forbidden(f"{tool.name} needs approval, for which a batch does not wait", hint="Call it from a program.")
            call_id = "call_" + hashlib.sha256(f"{batch_id}\0{item.id}".encode()).hexdigest()[:24]
            return Outcome.of_answer(await self._tools.call(ToolRequest(call_id, tool.name, arguments, batch_id)))

        return run_batch(batch, call, concurrency=CONCURRENCY)

    async def _cell(self, caller: Caller, item: BatchItem, inputs: bytes, key: str | None) -> Outcome:
        run = self._begin(caller, item, inputs, key)
        try:
            return Outcome.of_result(_result.decode(await run.wait()))
        except asyncio.CancelledError:  # nobody wants it any more
            with contextlib.suppress(OnetripError):
                await self._runs.interrupt(caller, run.id)
            raise

    def _begin(self, caller: Caller, item: BatchItem, inputs: bytes, key: str | None) -> Run:
        given = msgspec.json.decode(inputs)
        code = item.code or ""
        if item.session_id is None:
            asked = RunRequest(code=code, inputs=given, timeout_s=item.timeout_s)
            return self._runs.begin_shot(caller, asked, idempotency_key=key)
        return self._runs.begin_cell(
            caller, item.session_id, CellRequest(code=code, inputs=given, timeout_s=item.timeout_s), idempotency_key=key
        )
