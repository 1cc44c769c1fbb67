"""The jail: one file per kernel mechanism, and one that puts them in order. Standard library and relative imports only."""
