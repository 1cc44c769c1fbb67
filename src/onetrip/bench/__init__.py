"""`onetrip bench`: what Onetrip costs on this machine, beside the physical limit and what a user would pick instead."""

from .measure import main

__all__ = ["main"]
