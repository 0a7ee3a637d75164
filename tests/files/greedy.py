"""A decoder that does what a file may make a library do."""

from __future__ import annotations

import os


def example() -> bytearray:
    return bytearray(b"fine")


def decode(content: bytearray):
    if content == b"hang":
        while True:
            pass
    if content == b"die":
        os.abort()
    if content == b"print":
        print("a library has something to say", flush=True)
        os.write(1, b"\0" * 100)
        raise ValueError("no decoder")
    if content == b"open":
        os.close(os.open("/etc/hostname", os.O_RDONLY))
    if content == b"eat":
        return {}, [bytes(1 << 30)]
    if content == b"say":
        return {}, [bytes(1 << 20)] * 300
    return {"said": content.decode()}, [content]
