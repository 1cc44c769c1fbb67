"""The node: the process that holds the engine, its sessions and the events of its runs, and outlives the server that started it.

    server (HTTP, keys, results) ══ Unix socket ══ node (LocalEngine) ── zygotes ── sandboxes

A server that was killed loses nothing: the next one connects, asks what there is (`Describe`), and goes on. The node knows no tenant,
no key and no tool; who may do what is decided in the server. See docs/decisions/016.
"""
