# SPDX-License-Identifier: Apache-2.0
"""The summary of a test run, from events as Bazel writes them."""

import io
import json
import pathlib
import shutil
import tempfile
import unittest

from tests.testing import cases
from tools import test_summary

GTEST = """<testsuites><testsuite name="S">
<testcase name="Good" classname="S" status="run" time="0.5"/>
<testcase name="Bad" classname="S" status="run"><failure message="expected 1&#10;got 2"/></testcase>
<testcase name="Off" classname="S" status="notrun"/>
<testcase name="Skipped" classname="S" status="run"><skipped message="no rseq"/></testcase>
</testsuite></testsuites>"""
CRASH = """<testsuites><testsuite name="t" tests="1" errors="1"><testcase name="t" status="run">
<error message="exited with error code 134"></error></testcase></testsuite></testsuites>"""
GOOD = '<testsuite><testcase name="one"/><testcase name="two"/></testsuite>'


class TestSummaryTest(unittest.TestCase):

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pcm summary"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.events = []

    def built(self, label, success=True, **event):
        completed = {"completed": {"success": True} if success else {}}
        self.events.append({"id": {"targetCompleted": {"label": label}}, **(event or completed)})

    def ran(self, label, status, xml, log="", **where):
        self.built(label)
        files = []
        for name, text in (("test.xml", xml), ("test.log", log)):
            if text is not None:
                path = self.directory / f"{len(self.events)}.{name}"
                path.write_text(text)
                files.append({"name": name, "uri": path.as_uri()})
        self.events.append({
            "id": {"testResult": {"label": label, "run": 1, "shard": 1, "attempt": 1, **where}},
            "testResult": {"status": status, "testActionOutput": files,
                           "testAttemptDurationMillis": "1500"}})

    def summary(self, *flags):
        """(exit status, lines) of the program."""
        path = self.directory / "events"
        path.write_text("".join(json.dumps(event) + "\n" for event in self.events))
        out = io.StringIO()
        status = test_summary.main([*flags, str(path)], out)
        return status, out.getvalue().splitlines()

    def test_all_passed(self):
        self.ran("//a:test", "PASSED", GOOD)
        self.built("//a:library")
        status, lines = self.summary()
        self.assertEqual((status, lines[-1]), (0, "2 passed, 0 failed"))
        self.assertNotIn("//a:library", "\n".join(lines))
        self.assertEqual(lines[1].split(), ["//a:test", "2", "0", "0", "1.5"])

    def test_cases_are_counted_one_by_one(self):
        self.ran("//a:test", "FAILED", GTEST, log="".join(f"line {i}\n" for i in range(100)))
        status, lines = self.summary("--bazel_status=3")
        self.assertEqual((status, lines[-1]), (1, "1 passed, 1 failed, 2 skipped"))
        self.assertIn("  S.Bad: expected 1", lines)
        self.assertIn("  | line 99", lines)
        self.assertIn("  | line 40", lines)
        self.assertNotIn("  | line 39", lines)

    def test_crash_and_timeout_fail(self):
        self.ran("//a:crash", "FAILED", CRASH)
        self.ran("//a:slow", "TIMEOUT", GOOD)
        self.ran("//a:silent", "FAILED", None)
        status, lines = self.summary("--bazel_status=3")
        self.assertEqual((status, lines[-1]), (1, "2 passed, 3 failed"))

    def test_what_does_not_build_fails(self):
        self.built("//a:test", success=False)
        self.built("//b:test", aborted={"reason": "ANALYSIS_FAILURE", "description": "no such"})
        self.ran("//c:test", "PASSED", GOOD)
        status, lines = self.summary("--bazel_status=1")
        self.assertEqual((status, lines[-1]), (1, "2 passed, 2 failed"))
        self.assertIn("  no such", lines)

    def test_bazel_that_fails_without_a_target_fails(self):
        self.ran("//c:test", "PASSED", GOOD)
        status, lines = self.summary("--bazel_status=1")
        self.assertEqual((status, lines[-1]), (1, "2 passed, 1 failed"))

    def test_another_run_counts_under_its_own_name(self):
        self.ran("//a:test", "PASSED", GOOD)
        other = self.directory / "other:events"
        self.summary()
        shutil.copy(self.directory / "events", other)
        self.events = []
        self.built("//b:library")
        self.ran("//a:test", "FAILED", CRASH)
        status, lines = self.summary(f"--also=new:0:{other}")
        self.assertEqual((status, lines[-1]), (1, "2 passed, 1 failed"))
        self.assertEqual(lines[2].split()[:3], ["//a:test", "(new)", "2"])
        self.assertEqual(self.summary(f"--also=new:1:{other}")[1][-1], "2 passed, 2 failed")
        other.unlink()
        self.assertEqual(self.summary(f"--also=new:0:{other}")[1][-1], "0 passed, 2 failed")

    def test_nothing_ran_is_a_failure(self):
        self.assertEqual(self.summary()[0], 1)
        out = io.StringIO()
        self.assertEqual(test_summary.main([str(self.directory / "absent")], out), 1)
        self.assertEqual(out.getvalue().splitlines()[-1], "0 passed, 1 failed")

    def test_passed_without_a_result_is_a_failure(self):
        self.ran("//a:test", "PASSED", "<cut")
        self.assertEqual(self.summary()[1][-1], "0 passed, 1 failed")

    def test_last_attempt_counts_and_shards_add_up(self):
        self.ran("//a:test", "FAILED", CRASH, attempt=1)
        self.ran("//a:test", "PASSED", GOOD, attempt=2)
        self.ran("//a:test", "PASSED", GOOD, shard=2)
        status, lines = self.summary()
        self.assertEqual((status, lines[-1]), (0, "4 passed, 0 failed"))

    def test_extra_results(self):
        self.ran("//a:test", "PASSED", GOOD)
        (self.directory / "test.xml").write_text(CRASH)
        (self.directory / "test.log").write_text("boom\n")
        status, lines = self.summary(f"--extra=clang:{self.directory}",
                                     f"--extra=gone:{self.directory}/absent")
        self.assertEqual((status, lines[-1]), (1, "2 passed, 2 failed"))
        self.assertIn("  | boom", lines)


if __name__ == "__main__":
    cases.main()
