"""Forty tasks with tools, and what they cost a classic tool loop, parallel batches, and programs. The model is simulated."""
