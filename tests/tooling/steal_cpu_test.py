# SPDX-License-Identifier: Apache-2.0
"""steal_cpu: takes the CPUs from a command, and ends as the command does."""

import subprocess
import sys
import unittest

from tests.testing import cases

STEAL_CPU = sys.argv.pop(1)

# Computes for so long by the clock; prints the seconds of CPU time it got for it.
COMPUTE = """
import time
end = time.monotonic() + 2
while time.monotonic() < end:
    pass
print(time.process_time())
"""


class StealCpuTest(unittest.TestCase):

    def run_it(self, *command):
        return subprocess.run([STEAL_CPU, *command], capture_output=True, text=True, timeout=120)

    def test_ends_as_the_command_does(self):
        self.assertEqual(self.run_it('sh', '-c', 'exit 3').returncode, 3)
        self.assertEqual(self.run_it('sh', '-c', 'kill -TERM $$').returncode, 128 + 15)
        self.assertEqual(self.run_it('/nonexistent').returncode, 127)
        self.assertEqual(self.run_it().returncode, 2)

    def test_takes_the_cpus(self):
        done = self.run_it(sys.executable, '-c', COMPUTE)
        if 'no real-time thread' in done.stderr:
            self.skipTest(done.stderr.splitlines()[0])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(float(done.stdout), 1.8)


if __name__ == '__main__':
    cases.main()
