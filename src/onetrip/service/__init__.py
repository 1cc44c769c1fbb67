"""What the server does, without HTTP: callers with rights, their sessions, their runs and results, and the node that carries them.

Every dialect (native HTTP, E2B, MCP) speaks to `Service` and to nothing below it.
"""
