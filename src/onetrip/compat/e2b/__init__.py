"""Drop-in E2B: what E2B's own clients speak, over sessions of ours. See docs/e2b.md and docs/decisions/018.

    control   create, list, kill, time limits, snapshots       X-API-Key
    execute   code in contexts, streamed as JSON lines         E2b-Sandbox-Id and a token of the sandbox
    files     contents by HTTP; `filesystem` and `processes`   the same; Connect RPC with JSON

A sandbox is a session that was opened with siblings: the session itself is the default context; other contexts, commands and a helper
for files outside of the workspace are siblings. Nothing here does isolation, limits or quotas: the service below does.
"""

from onetrip.compat.e2b.app import e2b_app, mounted

__all__ = ["e2b_app", "mounted"]
