# SPDX-License-Identifier: Apache-2.0
"""Runs Debian's programs with and without the allocator, and compares what they do.

Shared by the tests of this directory: packages, runs, servers, statistics.
"""

import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

PER_CPU_MODES = ("v2safe-cpu", "v2safe-cid")
MIN_FAST_SHARE = 0.95
# Fewer small operations than this are mostly the first of their size: they tell no rate.
MIN_OPERATIONS = 10000


def library():
    """The malloc under test: PCM_TEST_LIBRARY, or else --library=PATH, which is ours."""
    other = os.environ.get("PCM_TEST_LIBRARY")
    given = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--library=")]
    path = other or (given[0] if given else "")
    if not os.path.exists(path):
        sys.exit(f"no such library: {path!r} (PCM_TEST_LIBRARY or --library=)")
    return os.path.abspath(path), not other


def require(package, probe):
    """Installs a Debian package unless the file or command `probe` is there."""
    if shutil.which(probe) or os.path.exists(probe):
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends",
               "-o", "DPkg::Lock::Timeout=120", package]
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    try:
        done = subprocess.run(as_root + install, env=environment, capture_output=True, timeout=300)
        problem = done.stderr.decode(errors="replace") if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem or not (shutil.which(probe) or os.path.exists(probe)):
        raise AssertionError(f"{probe} is missing: apt-get install {package}\n{problem}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ProgramTest(unittest.TestCase):
    """A directory of its own, removed at the end with every process started in it."""

    def setUp(self):
        self.library, self.ours = library()
        self.directory = tempfile.mkdtemp(prefix="pcmalloc-program-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def environment(self, preload):
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "USER")}
        kept.update(LC_ALL="C", HOME=self.directory, TZ="UTC")
        if preload:
            kept["LD_PRELOAD"] = self.library
            kept["PCMALLOC_CONF"] = "stats_json:" + self.path("stats")
        return kept

    def run_command(self, command, preload, cwd=None, timeout=120, stdin=None):
        """(exit status, stdout, stderr) of an argument list or a line for the shell."""
        process = subprocess.Popen(
            command, shell=isinstance(command, str), cwd=cwd or self.directory,
            env=self.environment(preload), stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self.fail(f"hung (preload: {preload}): {command}")
        return process.returncode, out, err

    def compare(self, commands, files=(), normalise=lambda text: text):
        """Runs the commands without and with the allocator, each time in a directory of its own."""
        results = []
        for preload in (False, True):
            cwd = self.path("with" if preload else "without")
            os.mkdir(cwd)
            result = []
            for command in commands:
                status, out, err = self.run_command(command, preload, cwd)
                result.append((command, status, normalise(out), normalise(err)))
            for name in files:
                with open(os.path.join(cwd, name), "rb") as stream:
                    result.append((name, 0, normalise(stream.read()), b""))
            results.append(result)
        for without, with_it in zip(*results):
            self.assertEqual(without[1], with_it[1], f"exit status of {without[0]}: {with_it[3]!r}")
            self.assertEqual(without[1], 0, f"{without[0]} fails by itself: {without[3]!r}")
            for part, name in ((2, "output"), (3, "stderr")):
                if without[part] != with_it[part]:
                    self.fail(f"{name} of {without[0]} differs:\n{without[part][-2000:]!r}\n"
                              f"{with_it[part][-2000:]!r}")
        self.check_statistics()

    def check_statistics(self):
        """Every process ran in per-CPU mode; of all their small operations nearly all were hits."""
        if not self.ours:
            return
        processes = []
        for name in glob.glob(self.path("stats") + ".*.json"):
            with open(name, encoding="utf-8") as stream:
                processes.append(json.load(stream))
        self.assertTrue(processes, "no process wrote statistics: was the library loaded?")
        for process in processes:
            self.assertIn(process["mode"], PER_CPU_MODES, process.get("reason"))
        small = sum(process["small_operations"] for process in processes)
        fast = sum(process["fast_operations"] for process in processes)
        print(f"{self.id()}: {len(processes)} processes, {small} small operations, "
              f"{100 * fast / max(small, 1):.2f} % fast", file=sys.stderr)
        self.assertGreater(small, 0)
        if small < MIN_OPERATIONS:
            print(f"{self.id()}: too few operations to speak of a rate", file=sys.stderr)
        else:
            self.assertGreater(fast / small, MIN_FAST_SHARE)

    def start_server(self, command, preload, ready):
        """Starts a server in the foreground and waits until ready() is true."""
        log = open(self.path("server.log"), "ab")
        self.addCleanup(log.close)
        process = subprocess.Popen(command, cwd=self.directory, env=self.environment(preload),
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)
        self.addCleanup(self._kill, process)
        deadline = time.monotonic() + 20
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                with open(self.path("server.log"), "rb") as text:
                    self.fail(f"{command} does not serve: {text.read()[-2000:]!r}")
            time.sleep(0.02)
        return process

    def stop_server(self, process, number):
        """Its exit status after a signal."""
        process.send_signal(number)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            self.fail("the server does not stop")

    @staticmethod
    def _kill(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def accepts(address):
    """A function that tells whether somebody listens at (host, port) or a socket's path."""
    def probe():
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family) as client:
            return client.connect_ex(address) == 0
    return probe


def main():
    """unittest, with our own arguments taken out."""
    unittest.main(argv=[a for a in sys.argv if not a.startswith("--library=")], verbosity=2)
