# SPDX-License-Identifier: Apache-2.0
"""Instructions executed for each pair of malloc and free, loop and PLT included."""

import os
import subprocess
import sys
import unittest

from tests.testing import cases

LIBRARY, PROGRAM = (os.path.abspath(path) for path in sys.argv[1:3])
del sys.argv[1:3]

# 16 for malloc, 19 for free, two jumps through the PLT of two instructions at most, the loop.
LIMIT = 46
LIMITED = (16, 32, 256, 1024)


class PairsTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PCMALLOC_")}
        done = subprocess.run([PROGRAM], env=dict(environment, LD_PRELOAD=LIBRARY), check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=120)
        print(done.stdout, end="")
        if done.returncode:
            raise RuntimeError(f"{PROGRAM} ended with {done.returncode}: {done.stderr}")
        lines = [line.split() for line in done.stdout.splitlines()]
        cls.mode = lines[0][1]
        cls.found = {(words[0], int(words[1])): float(words[2])
                     for words in lines[1:] if words[1].isdigit()}
        cls.absent = {words[0]: " ".join(words[2:])
                      for words in lines[1:] if words[1] == "unavailable:"}

    def check(self, method):
        if self.mode != "v2safe-cpu":
            self.skipTest(f"no hit path to count in mode {self.mode}")
        if method in self.absent:
            self.skipTest(self.absent[method])
        for size in LIMITED:
            with self.subTest(size=size):
                # Fewer than the two hit paths cannot be: then something else was counted.
                self.assertGreaterEqual(self.found[method, size], 35)
                self.assertLessEqual(self.found[method, size], LIMIT)

    def test_library_is_loaded(self):
        self.assertNotEqual(self.mode, "none")

    def test_steps(self):
        self.check("ptrace")

    def test_hardware_counter(self):
        self.check("perf")


if __name__ == "__main__":
    cases.main()
