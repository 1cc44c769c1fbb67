"""Interfaces of others, served by ours: programs written for them move over by changing an address."""
