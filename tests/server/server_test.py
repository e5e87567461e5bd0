#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A small server with the allocator linked into it, by plain g++ and by Bazel, under load.

server_test.py bazel SERVER MODES LAUNCHER ENVIRONMENT...
server_test.py g++ SOURCE MODES LAUNCHER ARCHIVE FLAGS...
"""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

CONNECTIONS = 200
MESSAGES = 50000
CLIENTS = 4


class ServerTest(unittest.TestCase):
    kind, program, modes, launcher, rest = "", "", "", "", []

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="pcmalloc-server-")
        self.addCleanup(directory.cleanup)
        self.environment = dict(os.environ)
        if self.kind == "g++":
            archive, flags = self.rest[0], self.rest[1:]
            server = os.path.join(directory.name, "echo_server")
            subprocess.run(["g++", "-std=c++20", "-O2", *flags, self.program, archive, "-pthread",
                            "-o", server], check=True, timeout=120)
        else:
            server = os.path.abspath(self.program)
            self.environment.update(pair.split("=", 1) for pair in self.rest)
        refused = self.launcher.split(",") if self.launcher else []
        self.command = [os.path.abspath(refused[0]), *refused[1:]] if refused else []
        self.command.append(server)

    def drive(self, port, seed, problems):
        """One client thread: its share of connections and messages, some of them pipelined."""
        generator = random.Random(seed)
        noise = generator.randbytes(1 << 17)
        try:
            sockets = [socket.create_connection(("127.0.0.1", port), 30)
                       for _ in range(CONNECTIONS // CLIENTS)]
            left = MESSAGES // CLIENTS
            while left:
                peer = sockets[generator.randrange(len(sockets))]
                batch = b""
                for _ in range(min(left, generator.randrange(1, 6))):
                    size = generator.choice((0, 1, 16, 100, 1000, 4000)) + generator.randrange(50)
                    size = generator.randrange(100000) if generator.randrange(300) == 0 else size
                    start = generator.randrange(len(noise) - size)
                    batch += struct.pack(">I", size) + noise[start:start + size]
                    left -= 1
                sender = threading.Thread(target=peer.sendall, args=(batch,))
                if len(batch) > 1 << 15:
                    sender.start()
                else:
                    peer.sendall(batch)
                got = bytearray()
                while len(got) < len(batch):
                    part = peer.recv(1 << 16)
                    if not part:
                        raise ConnectionError("closed by the server")
                    got += part
                if len(batch) > 1 << 15:
                    sender.join()
                if got != batch:
                    raise ValueError("the echo differs")
            for peer in sockets:
                peer.close()
        except Exception as problem:  # reported by the main thread
            problems.append(repr(problem))

    def test_echo(self):
        server = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE,
                                  text=True)
        self.addCleanup(server.kill)
        self.addCleanup(server.stdout.close)
        port = int(server.stdout.readline().split()[1])
        mode = server.stdout.readline().split()[1]
        problems = []
        clients = [threading.Thread(target=self.drive, args=(port, seed, problems))
                   for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        server.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(20), 0)
        self.assertEqual(problems, [])
        self.assertEqual(server.stdout.read().split(), ["messages", str(MESSAGES)])
        self.assertIn(mode, self.modes.split(","))


if __name__ == "__main__":
    (ServerTest.kind, ServerTest.program, ServerTest.modes, ServerTest.launcher,
     *ServerTest.rest) = sys.argv[1:]
    unittest.main(argv=sys.argv[:1], verbosity=2)
