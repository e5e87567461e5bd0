# SPDX-License-Identifier: Apache-2.0
"""double_alloc_stress must notice each fault of the toy malloc, name it rightly, and pass
without."""

import json
import os
import re
import subprocess
import sys
import unittest

BINARY, BROKEN = [os.path.abspath(path) for path in sys.argv[1:3]]

# Signals, forks and exits only slow these runs down; a test of its own has them on.
CALM = ["--nosignals", "--noforks", "--norespawn", "--notrim"]
OWNER = re.compile(r"thread \d+( \(signal handler\))?, sequence \d+, block 0x[0-9a-f]+, size \d+, "
                   r"allocated on cpu \d+, held \d+(\.\d+)? (ns|us|ms|s), (still held|released )")
# What a fault entails: calloc and realloc write into the block before anybody can look
# at its address.
DUPLICATES = ["duplicate", "lost_contents", "nonzero_calloc"]


def run(fault, *options):
    """(exit status, counts by kind, stderr) of one run with the fault switched on."""
    environment = dict(os.environ, LD_PRELOAD=BROKEN)
    environment.pop("BROKEN_MALLOC", None)
    if fault:
        environment["BROKEN_MALLOC"] = fault
    done = subprocess.run([BINARY, "--json", *options], env=environment, capture_output=True,
                          text=True, timeout=60, check=False)
    counts = json.loads(done.stdout)["violations"] if done.stdout else {}
    return done.returncode, counts, done.stderr


class FaultsTest(unittest.TestCase):
    """One test a fault."""

    def check(self, fault, kinds, *options):
        """Runs; expects a failure of exactly these kinds, and the first of them in the report."""
        status, counts, stderr = run(fault, "--seconds=1", "--threads=4", *options)
        self.assertEqual(status, 1, stderr)
        self.assertGreater(counts.get(kinds[0], 0), 0, (counts, stderr))
        self.assertLessEqual(set(counts) - {"total"}, set(kinds), (counts, stderr))
        self.assertRegex(stderr, r"VIOLATION \d+: (%s): " % "|".join(kinds))
        self.assertLessEqual(len(re.findall("VIOLATION", stderr)), 10)
        return stderr

    def test_no_fault_passes(self):
        """With everything switched on."""
        status, counts, stderr = run("", "--seconds=2", "--fork_rate=50")
        self.assertEqual((status, counts, stderr), (0, {"total": 0}, ""))

    def test_duplicate(self):
        """Both owners are named, with how long each has held the block."""
        stderr = self.check("duplicate:1000", DUPLICATES, *CALM)
        lines = stderr.splitlines()
        pairs = [(line, lines[i + 1]) for i, line in enumerate(lines) if line.startswith("  new:")]
        self.assertTrue(pairs, stderr)
        for new, other in pairs:
            self.assertRegex(new, OWNER)
            self.assertTrue(other.startswith("  other:"), other)
        self.assertTrue(any(OWNER.search(other) and "still held" in other for _, other in pairs),
                        pairs)

    def test_rare_duplicate(self):
        """One in a million is found by the registry, not by luck with stamps."""
        self.check("duplicate:500000", DUPLICATES, *CALM)

    def test_duplicate_under_full_stress(self):
        """Signals, forks and exits do not hide it; a child may see it too."""
        self.check("duplicate:2000", DUPLICATES + ["fork_child"], "--fork_rate=20")

    def test_overlap(self):
        """A block that reaches into the next one; a smaller one is also short and less aligned."""
        self.check("overlap:5000", ["overlap", "misaligned", "short_block"] + DUPLICATES, *CALM)

    def test_scribble(self):
        """Stamps notice what the registry cannot."""
        self.check("scribble:2000", ["lost_contents", "nonzero_calloc"], *CALM)

    def test_truncated_realloc(self):
        """realloc must keep the contents."""
        self.check("truncate:20", ["lost_contents", "nonzero_calloc"], *CALM)

    def test_misaligned(self):
        """Eight bytes off."""
        self.check("misaligned:1000", ["misaligned"], *CALM)

    def test_wild(self):
        """What no process has memory at, as a list that is broken yields."""
        stderr = self.check("wild:100000", ["crash", "misaligned"], *CALM)
        # calloc and realloc write there before anybody can look; such an access has no address.
        self.assertRegex(stderr, r"malloc gave 0x1db2c0001db20, which is no address|"
                                 r"SIGSEGV at address \(nil\) in thread \d+, inside a call of")

    def test_nonzero_calloc(self):
        """One byte that is not 0."""
        stderr = self.check("nonzero:100", ["nonzero_calloc"], *CALM)
        self.assertIn("calloc gave", stderr)

    def test_short_block(self):
        """malloc_usable_size promises less than was asked for."""
        self.check("short:100", ["short_block"], *CALM)

    def test_leak(self):
        """Memory that is never reused shows in the resident size."""
        stderr = self.check("leak:20", ["rss_growth"], "--check_rss", "--seconds=3", *CALM)
        self.assertIn("KiB", stderr)

    def test_leak_unchecked(self):
        """Without --check_rss a leak is not a failure."""
        self.assertEqual(run("leak:20", "--seconds=1", *CALM)[0], 0)

    def test_hang(self):
        """A malloc that never returns is a failure, not a timeout."""
        self.check("hang:100000", ["stall"], "--stall_seconds=2", *CALM)

    def test_crash(self):
        """The report comes out of the dying process, and so does the summary."""
        stderr = self.check("crash:100000", ["crash"], *CALM)
        self.assertIn("SIGSEGV at address 0x8", stderr)
        self.assertIn("inside a call of the malloc under test", stderr)

    def test_fork_child_hangs(self):
        """A child that inherits a lock nobody will ever release."""
        status, counts, stderr = run("forkhang", "--seconds=2", "--fork_rate=200", "--norespawn",
                                     "--fork_limit_seconds=2")
        self.assertEqual(status, 1, stderr)
        self.assertGreater(counts.get("fork_child", 0), 0, stderr)
        self.assertIn("hung for 2 s", stderr)


class OptionsTest(unittest.TestCase):
    """The command line."""

    def test_help(self):
        """All options, status 0."""
        done = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True)
        for option in ("--seconds", "--threads", "--seed", "--cpus", "--check_rss", "--json"):
            self.assertIn(option, done.stdout)

    def test_wrong_usage(self):
        """Status 2, told apart from a violation."""
        for wrong in ("--threads=-1", "--cpus=9999", "--max_size=0", "--handler_malloc=x", "extra"):
            done = subprocess.run([BINARY, wrong], capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 2, wrong)

    def test_table_and_json_have_the_same_keys(self):
        """One key a line in the table, values right-aligned."""
        table = subprocess.run([BINARY, "--seconds=0.2"], capture_output=True, text=True,
                               check=True)
        summary = subprocess.run([BINARY, "--seconds=0.2", "--json"], capture_output=True,
                                 text=True, check=True)
        keys = [line.split()[0] for line in table.stdout.splitlines()]
        self.assertEqual(keys, list(json.loads(summary.stdout)))
        self.assertEqual(table.stderr + summary.stderr, "")

    def test_quiet(self):
        """Nothing to say, nothing said."""
        done = subprocess.run([BINARY, "--seconds=0.2", "--quiet"], capture_output=True, text=True,
                              check=True)
        self.assertEqual(done.stdout + done.stderr, "")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
