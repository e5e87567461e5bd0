#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Servers on the loopback interface: the same answers with the allocator, under load."""

import hashlib
import http.client
import os
import random
import re
import signal
import socket

import program

NGINX_CONF = """
daemon off; user root; worker_processes 2; pid {root}/nginx.pid; error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  access_log off; keepalive_requests 100000; gzip on; gzip_min_length 100; gzip_types text/plain;
  default_type text/plain;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  server {{
    listen 127.0.0.1:{port}; root {root}/www;
    location /proxy/ {{ proxy_pass http://127.0.0.1:{port}/; proxy_buffers 4 4k; }}
  }}
}}
"""


class ServersTest(program.ProgramTest):

    def redis_answers(self, port):
        """A digest of the answers to one fixed, pipelined conversation."""
        generator = random.Random(3)
        lines = ["FLUSHALL"]
        for i in range(5000):
            value = "v" * generator.randrange(1, 2000) + str(i)
            lines += [f"SET key{i} {value}", f"APPEND key{i % 97} {value[:50]}",
                      f"HSET hash{i % 50} field{i} {i}", f"RPUSH list{i % 20} {value[:20]}",
                      f"GET key{generator.randrange(i + 1)}", f"LRANGE list{i % 20} -5 -1"]
            if i % 10 == 0:
                lines.append(f"DEL key{generator.randrange(i + 1)}")
        lines += ["DBSIZE", "HLEN hash7", "LLEN list3"]
        digest = hashlib.sha256()
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            for begin in range(0, len(lines), 200):
                client.sendall("".join(line + "\r\n" for line in lines[begin:begin + 200])
                               .encode() + b"ECHO end-of-batch\r\n")
                answer = b""
                while not answer.endswith(b"end-of-batch\r\n"):
                    part = client.recv(1 << 16)
                    self.assertTrue(part, "redis closed the connection")
                    answer += part
                self.assertNotIn(b"-ERR", answer)
                digest.update(answer)
        return digest.hexdigest()

    def test_redis(self):
        program.require("redis-server", "redis-server")
        program.require("redis-tools", "redis-benchmark")
        answers = []
        for preload in (False, True):
            port = program.free_port()
            server = self.start_server(
                ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                 "--appendonly", "no", "--dir", self.directory, "--daemonize", "no",
                 "--unixsocket", self.path("redis.sock")],
                preload, program.accepts(("127.0.0.1", port)))
            answers.append(self.redis_answers(port))
            for where in (["-p", str(port)], ["-s", self.path("redis.sock")]):
                status, out, err = self.run_command(
                    ["redis-benchmark", *where, "-c", "50", "-n", "60000", "-P", "8", "-q", "-r",
                     "10000", "-d", "200", "-t", "set,get,lpush,lpop,sadd,hset"], preload)
                self.assertEqual(status, 0, err)
                self.assertEqual(len(re.findall(rb"requests per second", out)), 6, out)
            answers.append(self.redis_answers(port))
            self.assertEqual(self.stop_server(server, signal.SIGTERM), 0)
        self.assertEqual(len(set(answers)), 1, answers)
        self.check_statistics()

    def fetch(self, connection, path, expected):
        connection.request("GET", path)
        response = connection.getresponse()
        self.assertEqual((response.status, response.read() == expected), (200, True), path)

    def test_nginx(self):
        program.require("nginx-light", "/usr/sbin/nginx")
        program.require("apache2-utils", "ab")
        generator = random.Random(5)
        os.mkdir(self.path("www"))
        files = {f"f{size}": generator.randbytes(size) for size in (0, 1, 1000, 30000, 500000)}
        for name, content in files.items():
            with open(self.path("www", name), "wb") as file:
                file.write(content)
        for preload in (False, True):
            port = program.free_port()
            with open(self.path("nginx.conf"), "w", encoding="ascii") as conf:
                conf.write(NGINX_CONF.format(root=self.directory, port=port))
            server = self.start_server(
                ["/usr/sbin/nginx", "-p", self.directory, "-c", self.path("nginx.conf")],
                preload, program.accepts(("127.0.0.1", port)))
            for path, extra in (("f1000", []), ("f30000", ["-H", "Accept-Encoding: gzip"]),
                                ("proxy/f1000", []), ("f1000", ["-k"])):
                status, out, err = self.run_command(
                    ["ab", "-q", "-n", "5000", "-c", "20", *extra,
                     f"http://127.0.0.1:{port}/{path}"], preload=False)
                self.assertEqual(status, 0, err)
                self.assertRegex(out, rb"Complete requests: +5000\n")
                self.assertRegex(out, rb"Failed requests: +0\n")
                self.assertNotIn(b"Non-2xx", out)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            for _ in range(40):
                for name, content in files.items():
                    self.fetch(connection, "/" + name, content)
                    self.fetch(connection, "/proxy/" + name, content)
            connection.close()
            self.assertEqual(self.stop_server(server, signal.SIGQUIT), 0)
        self.check_statistics()


if __name__ == "__main__":
    program.main()
