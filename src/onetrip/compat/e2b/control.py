"""The control API: sandboxes are created, found, timed, paused, branched and killed."""

import time
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from onetrip.api.requests import idempotency_key, whole_number
from onetrip.compat.e2b.requests import body, caller, json, sandboxes
from onetrip.compat.e2b.sandboxes import Record, Sandbox, checked_timeout, new_token
from onetrip.compat.e2b.shapes import ENVD_VERSION, ForkRequest, MaybeTimeout, NewSandbox, SnapshotRequest, Timeout, moment
from onetrip.errors import BadRequest, Conflict, NotFound, OnetripError

CLIENT: Final = "onetrip"
SNAPSHOT: Final = "snap"
MAX_FORKS: Final = 100


async def create(request: Request) -> Response:
    who, asked = caller(request), await body(request, NewSandbox)
    _refuse(asked)
    timeout_s, now = checked_timeout(asked.timeout), time.time()
    record = Record(
        template=asked.templateID,
        started_at=now,
        end_at=now + timeout_s,
        timeout_s=timeout_s,
        token=new_token(),
        traffic_token=new_token(),
        metadata=_strings(asked.metadata, "metadata"),
        environ=_strings(asked.envVars, "envVars"),
        auto_pause=asked.autoPause,
    )
    known = {snapshot_id(one): one for one in sandboxes(request).all(who, snapshots=True)}
    snapshot = known.get(asked.templateID)
    if snapshot is None and asked.templateID.startswith(SNAPSHOT):
        raise NotFound(f"there is no snapshot {asked.templateID[:60]!r}")
    made = await sandboxes(request).create(who, record, idempotency_key(request), of_snapshot=snapshot)
    return json(_created(made), 201)


def _refuse(asked: NewSandbox) -> None:
    """What we do not have, rather than without it. Raises BadRequest."""
    if asked.allow_internet_access:
        raise BadRequest("allow_internet_access: sandboxes have no network here", hint="Pass what the program needs as files.")
    if asked.mcp:
        raise BadRequest("mcp: sandboxes hold no MCP gateway here", hint="This server speaks MCP itself, at /mcp.")
    if asked.volumeMounts:
        raise BadRequest("volumeMounts: there are no volumes here", hint="Copy files in and out with `files`.")
    if asked.network and any(asked.network.get(name) for name in ("allowOut", "allowPublicTraffic", "rules")):
        raise BadRequest("network: sandboxes have no network here", hint="Pass what the program needs as files.")


def _strings(given: dict[str, str] | None, name: str) -> dict[str, str]:
    found = given or {}
    if any("\0" in key or "\0" in value or (name == "envVars" and (not key or "=" in key)) for key, value in found.items()):
        raise BadRequest(f"{name}: names and values are text without NUL", field=name)
    return found


async def listed(request: Request) -> Response:
    who = caller(request)
    wanted = dict(parse_qsl(request.query_params.get("metadata", "")))
    states = {state for given in request.query_params.getlist("state") for state in given.split(",") if state}
    limit = whole_number(request.query_params.get("limit"), "limit", low=1, high=1000, default=100)
    skip = whole_number(request.query_params.get("nextToken"), "nextToken", low=0, high=1_000_000, default=0)
    found = [
        one
        for one in sandboxes(request).all(who)
        if (not states or _state(one) in states) and wanted.items() <= one.record.metadata.items()
    ]
    found.sort(key=lambda one: one.record.started_at, reverse=request.query_params.get("order") != "asc")
    page = found[skip : skip + limit]
    more = {"x-next-token": str(skip + limit)} if len(found) > skip + limit else None
    return json([_detail(one) for one in page], headers=more)


async def inspect(request: Request) -> Response:
    return json({**_detail(_mine(request)), "domain": None})


async def kill(request: Request) -> Response:
    await sandboxes(request).kill(_mine(request))
    return Response(status_code=204)


async def set_timeout(request: Request) -> Response:
    found, asked = _mine(request), await body(request, Timeout)
    sandboxes(request).set_timeout(found, checked_timeout(asked.timeout))
    return Response(status_code=204)


async def refresh(request: Request) -> Response:
    found = _mine(request)
    sandboxes(request).set_timeout(found, found.record.timeout_s, only_longer=True)
    return Response(status_code=204)


async def connect(request: Request) -> Response:
    """Also lets one go on that was paused; then the answer is 201."""
    found, asked = _mine(request), await body(request, MaybeTimeout)
    was_paused = found.record.paused
    timeout_s = checked_timeout(asked.timeout if asked.timeout is not None else found.record.timeout_s)
    sandboxes(request).set_timeout(found, timeout_s, only_longer=True)
    return json(_created(found), 201 if was_paused else 200)


async def pause(request: Request) -> Response:
    sandboxes(request).pause(_mine(request))
    return Response(status_code=204)


async def snapshot(request: Request) -> Response:
    found, asked = _mine(request), await body(request, SnapshotRequest)
    made = await sandboxes(request).snapshot(found.caller, found, asked.name)
    return json(_snapshot(made), 201)


async def snapshots(request: Request) -> Response:
    return json([_snapshot(one) for one in sandboxes(request).all(caller(request), snapshots=True)])


async def delete_snapshot(request: Request) -> Response:
    who, wanted = caller(request), request.path_params["id"]
    for one in sandboxes(request).all(who, snapshots=True):
        if snapshot_id(one) == wanted:
            await sandboxes(request).kill(one)
            return Response(status_code=204)
    raise NotFound(f"there is no snapshot {wanted[:60]!r}")


async def fork(request: Request) -> Response:
    """One answer for each: a sandbox, or why there is none."""
    found, asked = _mine(request), await body(request, ForkRequest)
    if not 1 <= asked.count <= MAX_FORKS:
        raise BadRequest(f"count: from 1 to {MAX_FORKS}", field="count")
    timeout_s = checked_timeout(asked.timeout if asked.timeout is not None else found.record.timeout_s)
    try:
        made = await sandboxes(request).fork(found.caller, found, asked.count, timeout_s)
    except Conflict:
        raise
    except OnetripError as err:
        failure = {"error": {"code": 500, "message": f"{err} {err.hint}"}}
        return json([failure] * asked.count, 201)
    return json([{"sandbox": _created(one)} for one in made], 201)


async def unsupported(request: Request) -> Response:
    """Metrics, logs, network rules."""
    caller(request)
    what = request.url.path.rpartition("/")[2]
    return json(
        {"code": 501, "message": f"{what}: this server does not have it for single sandboxes; see /metrics and docs/e2b.md"}, 501
    )


def snapshot_id(one: Sandbox) -> str:
    return f"{SNAPSHOT}{one.id}"


def _snapshot(one: Sandbox) -> dict[str, Any]:
    return {"snapshotID": snapshot_id(one), "names": [one.record.snapshot] if one.record.snapshot else []}


def _mine(request: Request) -> Sandbox:
    return sandboxes(request).of(caller(request), request.path_params["id"])


def _state(one: Sandbox) -> str:
    return "paused" if one.record.paused else "running"


def _created(one: Sandbox) -> dict[str, Any]:
    return {
        "templateID": one.record.template,
        "sandboxID": one.id,
        "clientID": CLIENT,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": one.record.token,
        "trafficAccessToken": one.record.traffic_token,
        "domain": None,
    }


def _detail(one: Sandbox) -> dict[str, Any]:
    limits = one.session.spec.limits
    return {
        "templateID": one.record.template,
        "sandboxID": one.id,
        "clientID": CLIENT,
        "startedAt": moment(one.record.started_at),
        "endAt": moment(one.record.end_at),
        "envdVersion": ENVD_VERSION,
        "cpuCount": 1,
        "memoryMB": limits.memory_mb,
        "diskSizeMB": limits.disk_mb,
        "state": _state(one),
        "metadata": one.record.metadata,
    }
