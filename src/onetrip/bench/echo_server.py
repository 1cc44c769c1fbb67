"""Sends every packet of a socket back: the physical limit of a warm cell. Executed as `python -I -S echo_server.py FD`."""

import socket
import sys


def main(fd: str) -> None:
    with socket.socket(fileno=int(fd)) as channel:
        while packet := channel.recv(65536):
            channel.send(packet)


if __name__ == "__main__":
    main(*sys.argv[1:])
