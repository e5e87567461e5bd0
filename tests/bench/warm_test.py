# SPDX-License-Identifier: Apache-2.0
"""Whether and how much memory is touched before a benchmark; with files of machines that are not
here."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from tests.testing import cases
import run
import warm

GIB = 1 << 30
MEMINFO = "MemTotal: %d kB\nMemFree: %d kB\nMemAvailable: %d kB\nHugePages_Total: 0\n"
UNLIMITED_V1 = str(2**63 - 4096)


class Machine(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(directory.cleanup)
        self.base, self.count = directory.name, 0

    def root(self, **files):
        """A file system of these files; "__" in a name stands for a slash."""
        self.count += 1
        root = os.path.join(self.base, str(self.count))
        os.makedirs(root)
        for name, text in files.items():
            path = os.path.join(root, *name.split("__"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return root

    def memory(self, free, available, **files):
        return self.root(proc__meminfo=MEMINFO % (64 << 20, free >> 10, available >> 10), **files)


class Hypervisor(Machine):
    def test_flag_of_the_cpu(self):
        flags = "processor : 0\nflags\t\t: fpu %s sse2\n"
        self.assertTrue(warm.under_hypervisor(self.root(proc__cpuinfo=flags % "hypervisor")))
        self.assertFalse(warm.under_hypervisor(self.root(proc__cpuinfo=flags % "vme")))
        self.assertFalse(warm.under_hypervisor(
            self.root(proc__cpuinfo="model name: hypervisor\nflags: fpu hypervisors\n")))

    def test_others(self):
        self.assertFalse(warm.under_hypervisor(self.root()))
        for files in ({"sys__hypervisor__type": "xen\n"},
                      {"proc__device-tree__hypervisor__compatible": "linux,kvm\0"},
                      {"proc__device-tree__compatible": "linux,dummy-virt\0"}):
            self.assertTrue(warm.under_hypervisor(self.root(**files)), files)

    def test_dmi(self):
        for vendor, product, wanted in (
                ("QEMU", "KVM Virtual Machine", True), ("Amazon EC2", "m7g.large", True),
                ("Amazon EC2", "m7g.metal", False), ("Dell Inc.", "PowerEdge", False),
                ("Microsoft Corporation", "Virtual Machine", True),
                ("Microsoft Corporation", "Surface", False),
                ("Google", "Google Compute Engine", True), ("Google", "Redrix", False),
                ("", "", False)):
            root = self.root(sys__class__dmi__id__sys_vendor=vendor + "\n",
                             sys__class__dmi__id__product_name=product + "\n")
            self.assertEqual(warm.under_hypervisor(root), wanted, (vendor, product))

    def test_reporting(self):
        name = "sys__module__page_reporting__parameters__page_reporting_order"
        for text, wanted in (("9\n", True), ("0\n", True), ("4294967295\n", False), ("-1\n", False),
                             ("", False)):
            self.assertEqual(warm.reports_free_pages(self.root(**{name: text})), wanted, text)
        self.assertFalse(warm.reports_free_pages(self.root()))


class Amount(Machine):
    def test_margin(self):
        self.assertEqual(warm.margin(0), GIB)
        self.assertEqual(warm.margin(20 * GIB), 4 * GIB)
        self.assertEqual(warm.amount(self.memory(20 * GIB, 20 * GIB)), 16 * GIB)

    def test_page_cache_is_left_alone(self):
        self.assertEqual(warm.amount(self.memory(5 * GIB, 20 * GIB)), 1 * GIB)
        self.assertEqual(warm.amount(self.memory(4 * GIB, 20 * GIB)), 0)

    def test_what_the_kernel_keeps_is_left_alone(self):
        self.assertEqual(warm.amount(self.memory(30 * GIB, 20 * GIB)), 16 * GIB)

    def test_little_or_nothing(self):
        self.assertEqual(warm.amount(self.memory(1 * GIB, 1 * GIB)), 0)
        self.assertEqual(warm.amount(self.root()), 0)

    def test_cgroup_v2(self):
        def left(**files):
            return warm.cgroup_left(self.root(proc__self__cgroup="0::/a/b\n", **files))

        self.assertIsNone(left())
        self.assertIsNone(left(sys__fs__cgroup__a__b__memory__max="max\n"))
        for name in ("memory.max", "memory.high"):
            for place in ("", "a__", "a__b__"):
                used = {"sys__fs__cgroup__%smemory.current" % place: "%d\n" % GIB}
                limit = "sys__fs__cgroup__%s%s" % (place, name)
                self.assertEqual(left(**used, **{limit: "%d\n" % (4 * GIB)}), 3 * GIB, limit)
                self.assertEqual(left(**used, **{limit: "0\n"}), 0)
                self.assertIsNone(left(**used, **{limit: "max\n"}))

    def test_the_nearest_of_several_limits(self):
        for outer, inner in ((5, 3), (3, 5)):
            root = self.root(**{"proc__self__cgroup": "0::/a\n",
                                "sys__fs__cgroup__memory.max": str(outer * GIB),
                                "sys__fs__cgroup__memory.current": str(GIB),
                                "sys__fs__cgroup__a__memory.max": str(inner * GIB),
                                "sys__fs__cgroup__a__memory.current": str(GIB)})
            self.assertEqual(warm.cgroup_left(root), 2 * GIB)

    def test_cgroup_v1(self):
        def left(limit, controllers="cpu,memory"):
            return warm.cgroup_left(self.root(**{
                "proc__self__cgroup": "9:name=systemd:/\n4:%s:/job\n0::/\n" % controllers,
                "sys__fs__cgroup__memory__memory.limit_in_bytes": UNLIMITED_V1,
                "sys__fs__cgroup__memory__memory.usage_in_bytes": str(9 * GIB),
                "sys__fs__cgroup__memory__job__memory.limit_in_bytes": limit,
                "sys__fs__cgroup__memory__job__memory.usage_in_bytes": str(GIB)}))

        self.assertEqual(left(str(5 * GIB)), 4 * GIB)
        self.assertIsNone(left(UNLIMITED_V1))
        self.assertIsNone(left(str(5 * GIB), "cpu"))

    def test_a_limit_is_never_hit(self):
        root = self.memory(100 * GIB, 100 * GIB, **{
            "proc__self__cgroup": "0::/\n", "sys__fs__cgroup__memory.max": str(21 * GIB),
            "sys__fs__cgroup__memory.current": str(GIB)})
        self.assertEqual(warm.amount(root), 16 * GIB)


class Touching(Machine):
    def test_child(self):
        touched, shown = warm.Touched(), []
        if warm.amount() < 4 * warm.STEP:
            self.skipTest("too little memory is free here")
        warm.touch_in_child(warm.STEP + 4097, 60, touched, shown.append)
        self.assertEqual((touched.bytes, touched.stopped), (warm.STEP + 4097, ""))
        self.assertEqual(len(shown), 2)
        self.assertGreater(touched.seconds, 0.005)
        self.assertTrue(0 < touched.quickest <= touched.slowest < 1, touched)
        self.assertRegex(str(touched), r"^0\.3 GB in \d+ s, \S+ to \S+ us a page of 4 KiB$")

    def test_child_ends_in_time(self):
        touched = warm.Touched()
        warm.touch_in_child(warm.STEP, -1, touched)
        self.assertEqual(touched.bytes, 0)
        self.assertRegex(str(touched), r"^none \(stopped after")

    def test_child_asks_before_each_step_and_is_the_first_to_go(self):
        script = ("import sys; sys.path.insert(0, %r); import warm; left = [warm.STEP, 1]; "
                  "warm.amount = lambda: left.pop(0); warm.touch(3 * warm.STEP, 60); "
                  "print(open('/proc/self/oom_score_adj').read()); "
                  "print(open('/proc/self/status').read())" % os.path.dirname(warm.__file__))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              check=True)
        first, second, score, status = done.stdout.split("\n", 3)
        self.assertEqual(json.loads(first)["bytes"], warm.STEP)
        self.assertIn("stopped", json.loads(second))
        self.assertEqual(score, "1000")
        self.assertGreater(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) << 10, warm.STEP)

    def test_a_child_that_dies_is_told(self):
        touched = warm.Touched()
        with mock.patch.object(warm.sys, "executable", "/bin/false"):
            warm.touch_in_child(warm.STEP, 1, touched)
        self.assertIn("status 1", str(touched))


class Mode(Machine):
    def setUp(self):
        super().setUp()
        self.calls, self.said = [], []
        original = warm.touch_in_child

        def touch(size, limit, touched, *_):
            self.calls.append((size, limit))
            touched.add(size, 1.0)

        warm.touch_in_child = touch
        self.addCleanup(setattr, warm, "touch_in_child", original)

    def warmer(self, mode, virtual, reporting=False, quick=False, free=20 * GIB):
        files = {"proc__cpuinfo": "flags : hypervisor\n"} if virtual else {}
        if reporting:
            files["sys__module__page_reporting__parameters__page_reporting_order"] = "9"
        root = self.memory(free, free, **files)
        return warm.Warmer(mode, quick, None, self.said.append, root)

    JOBS = [run.Job("micro", "pair/32", None), run.Job("programs", "perl", None)]

    def test_when(self):
        for mode, virtual, jobs, wanted in (
                ("auto", True, self.JOBS, 1), ("auto", False, self.JOBS, 0),
                ("auto", True, self.JOBS[:1], 0), ("always", True, self.JOBS[:1], 1),
                ("always", False, self.JOBS, 1), ("never", True, self.JOBS, 0)):
            self.calls.clear()
            warmer = self.warmer(mode, virtual)
            warmer.start(jobs)
            for job in jobs:
                warmer.before(job)
            self.assertEqual(len(self.calls), wanted, (mode, virtual))
            self.assertEqual(len(warmer.facts()), wanted)
            if wanted:
                self.assertEqual(self.calls, [(16 * GIB, warm.LIMIT_SECONDS)])

    def test_a_quick_run_ends_sooner(self):
        self.warmer("auto", True, quick=True).start(self.JOBS)
        self.assertEqual(self.calls, [(16 * GIB, warm.LIMIT_SECONDS_QUICK)])
        self.assertLess(warm.LIMIT_SECONDS_QUICK, 60)

    def test_too_little_is_free(self):
        warmer = self.warmer("always", True, free=GIB)
        warmer.start(self.JOBS)
        self.assertEqual(self.calls, [])
        self.assertEqual(warmer.facts()[0][1], "none (too little is free)")

    def test_before_each_run_where_it_does_not_last(self):
        warmer = self.warmer("auto", True, reporting=True)
        warmer.start(self.JOBS)
        self.assertEqual(self.calls, [])
        for job in self.JOBS + [run.Job("micro", "first-touch/4K", None),
                                run.Job("memory", "start", None),
                                run.Job("linearity", "heap-MiB/64", None, memory=80 << 20)]:
            warmer.before(job)
        self.assertEqual([size for size, _ in self.calls],
                         [warm.FIRST_GUESS, warm.FIRST_GUESS, 80 << 20])
        self.assertIn("each run", warmer.facts()[0][0])

    def test_nothing_is_told_where_no_row_asks_for_memory(self):
        warmer = self.warmer("auto", True, reporting=True)
        warmer.start(self.JOBS[:1])
        self.assertEqual((self.said, warmer.facts()), ([], []))

    def test_by_the_largest_run_of_the_row(self):
        warmer = self.warmer("auto", True, reporting=True)
        job, other = run.Job("programs", "perl", None), run.Job("programs", "lua", None)
        for peak in (400 << 20, 100 << 20):
            warmer.after(job, [("perl", "cpu_seconds", "s", 5.0),
                               ("perl", "max_rss_bytes", "B", float(peak))])
        warmer.after(other, [("lua", "cpu_seconds", "s", 5.0)])
        self.assertEqual(warmer.size_for(job), 504 << 20)
        self.assertEqual(warmer.size_for(other), warm.FIRST_GUESS)
        warmer.after(job, [("perl", "max_rss_bytes", "B", 100.0 * GIB)])
        self.assertEqual(warmer.size_for(job), warm.MOST_BEFORE_RUN)
        self.assertEqual(self.warmer("auto", True, True, free=GIB).size_for(job), 0)


if __name__ == "__main__":
    cases.main()
