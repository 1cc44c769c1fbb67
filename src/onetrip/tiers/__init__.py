"""Ways to isolate, one file per tier behind the protocols of `base`."""
