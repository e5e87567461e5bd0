# SPDX-License-Identifier: Apache-2.0
"""double_alloc_stress with one thread, one a CPU of two, many, and far too many, on two CPUs.

    thread_counts_test.py BINARY [LIBRARY TO PRELOAD]
"""

import json
import os
import subprocess
import sys
import unittest

BINARY = os.path.abspath(sys.argv[1])
PRELOAD = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else None
SECONDS = 4.5


def two_cpus():
    """The first two CPUs this process may use, as --cpus wants them."""
    return ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2])


class ThreadCountsTest(unittest.TestCase):
    """One test a count."""

    def check(self, threads):
        """No violation, memory does not grow, and every disturbance took place."""
        environment = dict(os.environ)
        if PRELOAD:
            environment["LD_PRELOAD"] = PRELOAD
        done = subprocess.run(
            [BINARY, "--json", "--check_rss", "--seconds=%g" % SECONDS, "--threads=%d" % threads,
             "--cpus=" + two_cpus()],
            env=environment, capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        summary = json.loads(done.stdout)
        self.assertEqual(summary["threads"], threads)
        for key in ("operations", "handovers", "migrations", "signals", "forks", "respawns"):
            self.assertGreater(summary[key], 0, key)

    def test_1(self):
        """No concurrency but signals, migrations and the fork child."""
        self.check(1)

    def test_2(self):
        """A thread for each CPU."""
        self.check(2)

    def test_16(self):
        """Preemption all the time."""
        self.check(16)

    def test_200(self):
        """More threads than any cache was made for."""
        self.check(200)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
