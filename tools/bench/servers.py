# SPDX-License-Identifier: Apache-2.0
"""Deterministic load for servers under test. The clients are part of this script, so that only the
server runs with the allocator."""

import random
import socket
import time


class ClientError(Exception):
    """The server did not answer as it must."""


def connect(path, deadline_seconds=20):
    """A connection to a Unix socket, as soon as the server listens."""
    deadline = time.monotonic() + deadline_seconds
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(60)
        try:
            client.connect(path)
            return client
        except (FileNotFoundError, ConnectionRefusedError) as error:
            client.close()
            if time.monotonic() > deadline:
                raise ClientError("no server at %s" % path) from error
            time.sleep(0.02)


def resp(*words):
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def redis_load(path, scale):
    """Pipelined SET, APPEND, LPUSH, HSET, GET, DEL over keys of mixed value sizes."""
    rng = random.Random(5)
    client = connect(path)
    pipeline, total = 500, int(1500000 * scale)
    for start in range(0, total, pipeline):
        commands = []
        for _ in range(min(pipeline, total - start)):
            key = "k%d" % rng.randrange(100000)
            kind = rng.randrange(10)
            if kind < 5:
                commands.append(resp("SET", key, b"v" * rng.randrange(8, 600)))
            elif kind < 6:
                commands.append(resp("LPUSH", "l" + str(rng.randrange(500)), b"x" * 40))
            elif kind < 7:
                commands.append(resp("HSET", "h" + str(rng.randrange(500)), key, b"y" * 30))
            elif kind < 8:
                commands.append(resp("DEL", key))
            else:
                commands.append(resp("STRLEN", key))
        client.sendall(b"".join(commands))
        # Every one of these commands is answered by one line.
        lines, answer = 0, b""
        while lines < len(commands):
            answer = client.recv(1 << 16)
            if not answer or b"-ERR" in answer:
                raise ClientError("redis: %r" % answer[:100])
            lines += answer.count(b"\r\n")
    client.close()


def http_load(path, scale):
    """Pipelined requests over connections that are opened anew every 100 requests."""
    request = b"GET /page.html HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
    per_connection, batch = 100, 20
    for _ in range(int(2500 * scale) + 1):
        client = connect(path)
        for _ in range(per_connection // batch):
            client.sendall(request * batch)
            answers, text = 0, b""
            while answers < batch:
                data = client.recv(1 << 18)
                if not data:
                    raise ClientError("nginx closed the connection")
                text += data
                answers = text.count(b"<!--end-->")
            if text.count(b"HTTP/1.1 200") != batch:
                raise ClientError("nginx: %r" % text[:100])
        client.close()
