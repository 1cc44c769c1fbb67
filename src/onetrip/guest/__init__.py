"""The code of ours inside the sandbox: runs cells and answers the host. Standard library only; see loop.py."""
