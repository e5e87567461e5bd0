# SPDX-License-Identifier: Apache-2.0
"""bench.py as users run it: exit status, table, JSON, page; with the real programs, briefly."""

import contextlib
import io
import json
import os
import re
import subprocess
import tempfile
import unittest
from unittest import mock
import xml.etree.ElementTree

from tests.testing import cases
import allocators
import bench
import install
import stats
import warm

BIN_DIR = os.path.abspath("benchmarks")
UNITS = {"ns_per_op": "ns", "peak_rss_bytes": "B", "rss_bytes": "B"}


def run_bench(*arguments):
    """(status, stdout) of bench.py on the built programs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = bench.main(["--bin-dir", BIN_DIR, "--allocators", "glibc", "--quick", "--runs",
                             "1", "--warm-memory", "never", *arguments])
    return status, out.getvalue()


class Bench(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(directory.cleanup)
        self.json = os.path.join(directory.name, "out.json")
        self.html = os.path.join(directory.name, "out.html")

    def check_records(self, suite, rows):
        with open(self.json, encoding="utf-8") as file:
            records = json.load(file)
        self.assertTrue(records)
        for r in records:
            self.assertEqual(set(r), set(stats.FIELDS))
            self.assertEqual((r["suite"], r["allocator"]), (suite, "glibc"))
            self.assertTrue(r["min"] <= r["median"] <= r["max"], r)
            self.assertEqual(UNITS.get(r["metric"], r["unit"]), r["unit"])
        self.assertEqual({r["row"] for r in records} & set(rows), set(rows))
        return {(r["row"], r["metric"]): r["median"] for r in records}

    def check_page(self, *rows):
        with open(self.html, encoding="utf-8") as file:
            text = file.read()
        root = xml.etree.ElementTree.fromstring(text.replace("<!DOCTYPE html>", "", 1))
        self.assertTrue(list(root.iter("svg")))
        self.assertIsNone(re.search(r"(src|href)\s*=|@import|url\(", text))
        for row in rows:
            self.assertIn(row, text)

    def test_micro(self):
        status, out = run_bench("--suite", "micro", "--rows", "pair/32", "--metrics", "all",
                                "--json", self.json, "--html", self.html)
        self.assertEqual(status, 0)
        self.assertIn("pair/32", out)
        values = self.check_records("micro", ["pair/32"])
        # A pair takes neither nothing (the compiler dropped it) nor an age.
        self.assertTrue(1 < values[("pair/32", "ns_per_op")] < 2000, values)
        self.check_page("pair/32", "glibc")

    def test_scale(self):
        status, _ = run_bench("--suite", "scale", "--rows", "transfer/1to8/64|churn/(1|2|4)t",
                              "--json", self.json, "--html", self.html)
        self.assertEqual(status, 0)
        values = self.check_records("scale", ["churn/4t", "transfer/1to8/64"])
        # 100,000 live blocks of 383 B on average.
        self.assertGreater(values[("churn/4t", "peak_rss_bytes")], 30e6)
        self.check_page("churn", "threads")

    def test_memory(self):
        status, _ = run_bench("--suite", "memory", "--rows", "start|calloc-1GiB|realloc-.*",
                              "--json", self.json)
        self.assertEqual(status, 0)
        values = self.check_records("memory", ["start", "realloc-1-to-128MiB"])
        self.assertTrue(5e5 < values[("start", "rss_bytes")] < 2e7, values)
        self.assertGreater(values[("realloc-1-to-128MiB", "rss_bytes")], 127 * 2**20)

    def test_linearity(self):
        status, _ = run_bench("--suite", "linearity", "--rows", "heap-MiB/(1|16)|spans/100",
                              "--json", self.json)
        self.assertEqual(status, 0)
        values = self.check_records("linearity", ["heap-MiB/1", "heap-MiB/16", "spans/100"])
        self.assertGreater(values[("heap-MiB/16", "rss_bytes")], 15 * 2**20)

    def test_a_program(self):
        status, _ = run_bench("--suite", "programs", "--rows", "perl", "--json", self.json)
        self.assertEqual(status, 0)
        values = self.check_records("programs", ["perl"])
        self.assertGreater(values[("perl", "cpu_seconds")], 0.01)
        self.assertGreater(values[("perl", "max_rss_bytes")], 4 * 2**20)

    def test_rows_are_listed_without_measuring(self):
        with mock.patch.object(allocators, "resolve") as resolve, \
                mock.patch.object(install, "ensure") as ensure, \
                self.assertRaises(SystemExit) as caught, \
                contextlib.redirect_stdout(io.StringIO()) as out:
            bench.main(["--bin-dir", BIN_DIR, "--list", "--rows", "pair/32|perl"])
        self.assertEqual(caught.exception.code, 0)
        self.assertEqual(out.getvalue().splitlines(), ["micro pair/32", "programs perl"])
        resolve.assert_not_called()
        ensure.assert_not_called()

    def test_memory_is_touched_before_and_told(self):
        """As on a virtual machine whose guest reports free pages; glibc's peak is known by then."""
        with mock.patch.object(warm, "reports_free_pages", lambda root: True), \
                mock.patch.object(warm, "FIRST_GUESS", 8 << 20):
            status, _ = run_bench("--suite", "micro", "--rows", "first-touch/4K|pair/32",
                                  "--warm-memory", "always", "--html", self.html)
        self.assertEqual(status, 0)
        with open(self.html, encoding="utf-8") as file:
            text = file.read()
        self.assertRegex(text, r"memory touched before each run[^<]*</td><td>0.0 GB in \d+ s, ")
        self.assertRegex(text, r"<td>glibc</td><td>libc6 \d\S+, the C library")

    def test_exec_counted_reports_the_status(self):
        report = self.json
        done = subprocess.run([os.path.join(BIN_DIR, "exec_counted"), report, "-", "/bin/sh", "-c",
                               "exit 7"], check=False)
        self.assertEqual(done.returncode, 7)
        done = subprocess.run([os.path.join(BIN_DIR, "exec_counted"), report, "-", "/bin/sh", "-c",
                               "kill -SEGV $$"], check=False)
        self.assertEqual(done.returncode, 128 + 11)

    def test_wrong_use_is_refused(self):
        for arguments in (["--suite", "micro", "--rows", "no-such-row"],
                          ["--suite", "micro", "--rows", "pair/32", "--allocators", "nonsense"],
                          ["--suite", "micro", "--rows", "pair/32", "--allocators", "glibc@sid"],
                          ["--suite", "micro", "--rows", "pair/32["], ["--runs", "0"],
                          ["--from-json", self.json],
                          ["--suite", "micro", "--rows", "pair/32", "--json", "/no/such/place"]):
            with self.assertRaises(SystemExit) as caught, \
                    contextlib.redirect_stderr(io.StringIO()):
                run_bench(*arguments)
            self.assertNotIn(caught.exception.code, (0, None))

    def test_a_library_without_malloc_is_no_result(self):
        """The C library would be measured under the other's name."""
        library = allocators.find_library("libm.so.6")
        self.assertIsNotNone(library)
        status, _ = run_bench("--suite", "micro,memory", "--rows", "pair/32|start", "--allocators",
                              "glibc,fake=" + library, "--json", self.json)
        self.assertEqual(status, 1)
        with open(self.json, encoding="utf-8") as file:
            self.assertEqual({r["allocator"] for r in json.load(file)}, {"glibc"})

    def test_earlier_results_are_shown_again(self):
        with open(self.json, "w", encoding="utf-8") as file:
            json.dump([stats.record("micro", "pair/32", name, "cycles_per_op", "cycles", values)
                       for name, values in (("glibc", [40, 44, 30]), ("peer", [20]),
                                            ("pcmalloc", [30]))], file)
        status, out = run_bench("--from-json", self.json, "--html", self.html)
        self.assertEqual(status, 0)
        self.assertRegex(out, r"pair/32\s+40.0 \(30.0–44.0\).*peer\s+1.50\s+0.75")
        self.check_page("pair/32", "1.50", "0.75")


if __name__ == "__main__":
    cases.main()
