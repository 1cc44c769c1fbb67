"""Guards against loops: what a session remembers of its calls and failures, so that errors in generated code do not go round for ever.

One `Guard` per session. No I/O, no locks, no clock of its own: whoever runs the session asks it before each call and tells it afterwards.
"""

from onetrip.guards.guard import Guard, GuardLimits, Instead, Verdict

__all__ = ["Guard", "GuardLimits", "Instead", "Verdict"]
