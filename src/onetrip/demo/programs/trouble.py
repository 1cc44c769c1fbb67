"""What the demo runs next, in the same session: cells that go wrong, and one that looks for a way out. Cells begin with `# %%`."""

# %% A mistake
def describe(name):
    row = means.loc[name].to_dict()
    return f"{name}: {row['body_mass_kg']:.1f} kg"

[describe(name) for name in means.index]

# %% A loop without end
rounds = 0
while True:
    rounds += 1

# %% A memory hog
def multiply():
    copies = []
    while True:
        copies.append(penguins.to_csv() * 500)

multiply()

# %% Ways out
import os
import socket
from os import environ

def attempt(what, action):
    try:
        print(f"{what:<34} {action()!r}")
        return True
    except OSError as error:
        print(f"{what:<34} {type(error).__name__}: {error.strerror or error}")
        return False

reached = [
    attempt("read a file of the host", lambda: open(host_file).read()),
    attempt("read the host's users", lambda: [line for line in open("/etc/shadow")]),
    attempt("write to the interpreter's library", lambda: open(os.__file__, "a")),
    attempt("connect to a port of the host", lambda: socket.create_connection(("127.0.0.1", host_port), 1)),
    attempt("connect to the internet", lambda: socket.create_connection(("192.0.2.1", 443), 1)),
    attempt("signal the process that started it", lambda: os.kill(host_pid, 0)),
    attempt("become root", lambda: os.setuid(0)),
]
processes = [name for name in os.listdir("/proc") if name.isdigit()]
print(f"sees {len(processes)} processes and {len(environ)} variables, the sandbox's own; its user is {os.getuid()}")
sum(reached)
