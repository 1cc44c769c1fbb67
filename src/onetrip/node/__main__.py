"""`python -m onetrip.node LISTENER CONFIG`: two inherited descriptors. Started by the server (`client`), never by hand."""

import asyncio
import os
import socket
import sys

import msgspec

from onetrip.node.daemon import Config, Node


async def _serve(listener: socket.socket, config: Config) -> None:
    await Node(config, listener).serve()


def main() -> None:
    listener_fd, config_fd = map(int, sys.argv[1:3])
    with open(config_fd, "rb") as file:
        config = msgspec.json.decode(file.read(), type=Config)
    os.set_inheritable(listener_fd, False)
    asyncio.run(_serve(socket.socket(fileno=listener_fd), config))


if __name__ == "__main__":
    main()
