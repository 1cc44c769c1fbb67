"""The client of a server: an engine over HTTP. `core`, `events` and `retries` do no I/O; `http`, `engine` and `files` carry what they say."""
