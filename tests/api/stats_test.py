# SPDX-License-Identifier: Apache-2.0
"""The statistics that a program writes when it ends, and the page that explains them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

from tests.testing import cases

LIBRARY = os.path.realpath(sys.argv.pop(1))
PAGE = sys.argv.pop(1)


def run(directory, command, conf):
    environment = {"LD_PRELOAD": LIBRARY, "PCMALLOC_CONF": conf, "PATH": os.environ["PATH"]}
    done = subprocess.run(["/bin/sh", "-c", command], cwd=directory, env=environment, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.stdout, done.stderr


class StatsTest(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))

    def path(self, name):
        return os.path.join(self.directory, name)

    def test_json_of_each_process(self):
        pid, errors = run(self.directory, "echo $$; exec ls /", "stats_json:" + self.path("s"))
        self.assertEqual(errors, "")
        pid = pid.split()[0]
        with open(self.path("s.%s.json" % pid), encoding="utf-8") as stream:
            figures = json.load(stream)
        self.assertEqual(figures["program"], "ls")
        self.assertEqual(figures["pid"], int(pid))
        self.assertRegex(figures["version"], r"^\d+\.\d+\.\d+$")
        self.assertIsNone(figures["small_operations"])
        self.assertIsNone(figures["fast_operations"])
        self.assertIsNone(figures["limit_hard"])
        self.assertGreater(figures["small_bytes"], 0)
        for key, value in figures.items():
            if not isinstance(value, str) and value is not None:
                self.assertLess(value, 1 << 53, key)

    def test_limits_are_told(self):
        _, table = run(self.directory, "exec ls /", "stats_print:true,limit_hard:64M")
        self.assertRegex(table, r"\n +hard limit +64\.0 MiB\n")
        self.assertRegex(table, r"\n +soft limit in force +none\n")

    def test_table_names_the_process(self):
        pid, table = run(self.directory, "echo $$; exec ls /", "stats_print:true")
        first, *rows = table.splitlines()
        self.assertRegex(first,
                         r"^pcmalloc \d+\.\d+\.\d+ statistics of ls, PID %s$" % pid.split()[0])
        self.assertNotIn("small operations", table)
        columns = {re.match(r"(  +\S.*?  +)\S", row).end(1) for row in rows}
        self.assertEqual(len(columns), 1, table)

    def test_a_link_is_not_followed(self):
        with open(self.path("victim"), "w", encoding="utf-8") as stream:
            stream.write("kept")
        _, errors = run(self.directory, "ln -s victim s.$$.json; exec perl -e 1",
                        "stats_json:" + self.path("s"))
        self.assertIn("cannot write", errors)
        with open(self.path("victim"), encoding="utf-8") as stream:
            self.assertEqual(stream.read(), "kept")

    def test_every_figure_is_explained(self):
        pid, _ = run(self.directory, "echo $$; exec ls /", "stats_json:" + self.path("s"))
        with open(self.path("s.%s.json" % pid.split()[0]), encoding="utf-8") as stream:
            keys = list(json.load(stream))
        with open(PAGE, encoding="utf-8") as stream:
            rows = re.findall(r"^\| (`.*?`) \| \S", stream.read(), re.M)
        self.assertEqual([key for row in rows for key in re.findall(r"`(\w+)`", row)], keys)


if __name__ == "__main__":
    cases.main()
