# SPDX-License-Identifier: Apache-2.0
"""Each deliberate fault must be caught within 60 seconds; the sound library never reports any."""

import os
import subprocess
import sys
import unittest

from tests.testing import cases
from tools.stress import stress

LIMIT_SECONDS = 60


class SabotageTest(unittest.TestCase):
    def run_stress(self, *arguments):
        command = [sys.executable, "tools/stress/stress.py",
                   "--binary=tests/stress/double_alloc_stress", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=LIMIT_SECONDS + 60)

    def check_caught(self, fault):
        # Short runs with other seeds, so that what is caught at once costs no minute.
        for seconds, seed in ((3, 1), (12, 2), (45, 3)):
            result = self.run_stress(f"--sabotage={fault}",
                                     f"--library=tests/sabotage/libpcmalloc-{fault}.so",
                                     f"--seconds={seconds}", f"--seed={seed}")
            if result.returncode == 1:
                self.assertRegex(result.stderr, "VIOLATION|SIGSEGV|SIGABRT|signal",
                                 result.stdout + result.stderr)
                return
            self.assertEqual(result.returncode, 0, result.stderr)
        self.fail(f"{fault} was not noticed in {LIMIT_SECONDS} s")


def add_case(fault):
    name = "test_" + fault.replace("-", "_")
    setattr(SabotageTest, name, lambda self: self.check_caught(fault))


for each in stress.SABOTAGES:
    add_case(each)


if __name__ == "__main__":
    cases.main()
