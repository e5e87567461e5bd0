# SPDX-License-Identifier: Apache-2.0
"""What --help of doctor and stress shows is a text, help.txt: it fits what the programs take."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import unittest

from tests.testing import cases
from tools.stress import stress

DOCTOR, STRESS, LIBRARY = (os.path.abspath(path) for path in sys.argv[1:4])
del sys.argv[1:4]
TEXTS = {name: pathlib.Path("tools", name, "help.txt").read_text(encoding="utf-8")
         for name in ("doctor", "stress")}

# A flag whose description ends like this is for no user.
FOR_TESTS = "(for tests)"
ROW = re.compile(r"  --(?P<flag>\w+)(=\S*)?  +(?P<does>\S.*)")


def output_of(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False,
                          timeout=60).stdout


def rows_of(text):
    """The lines that describe a flag, as matches of ROW."""
    return [row for row in map(ROW.fullmatch, text.splitlines()) if row]


def doctors_flags():
    """{name: what it does} of the flags that the doctor defines itself."""
    text = " ".join(output_of(DOCTOR, "--helpfull").split())
    own = text.split("Flags from tools/doctor/doctor.cc:", 1)[1].split("Flags from ", 1)[0]
    return dict(re.findall(r"--(\w+) \((.*?)\); default: ", own))


def examples_of(name):
    """The commands under "examples:", as lists of words."""
    return [shlex.split(line) for line in TEXTS[name].split("\nexamples:\n")[1].splitlines()]


class HelpTest(unittest.TestCase):

    def test_layout(self):
        for name, text in TEXTS.items():
            self.assertTrue(text.startswith(f"usage: ./pcm {name} ["), text)
            self.assertEqual([line for line in text.splitlines() if len(line) > 100], [])
            # One line a flag, what it does in one column.
            self.assertEqual(len(rows_of(text)), text.count("\n  --"))
            self.assertEqual(len({row.start("does") for row in rows_of(text)}), 1, text)
            self.assertEqual(len(examples_of(name)), 2)

    def test_doctor_has_these_flags_and_no_other_for_users(self):
        flags = doctors_flags()
        self.assertLessEqual({"json", "root"}, set(flags))
        for_users = {flag: does for flag, does in flags.items() if not does.endswith(FOR_TESTS)}
        self.assertEqual({row["flag"]: row["does"].split(" (default: ")[0]
                          for row in rows_of(TEXTS["doctor"])}, for_users)

    def test_stress_has_these_flags_and_no_other_for_users(self):
        # With defaults and descriptions, as the program prints them.
        of_program = [row.group() for row in rows_of(output_of(STRESS, "--help"))]
        self.assertGreater(len(of_program), 10)
        of_script = [action.dest for action in stress.make_parser()._actions
                     if action.dest != "help" and FOR_TESTS not in (action.help or "")]
        rows = rows_of(TEXTS["stress"])
        self.assertEqual([row["flag"] for row in rows[:len(of_script)]], of_script)
        self.assertEqual([row.group() for row in rows[len(of_script):]], of_program)

    def test_stress_names_its_choices(self):
        for opening, names in (("A malloc is ", stress.NAMES), ("A sabotage is ",
                                                                stress.SABOTAGES)):
            sentence = next(line for line in TEXTS["stress"].splitlines()
                            if line.startswith(opening))
            for name in names:
                self.assertIn(name, re.split(r"[ ,.]+", sentence))

    def test_stress_py_shows_the_same(self):
        self.assertEqual(output_of(sys.executable, "tools/stress/stress.py", "--help"),
                         TEXTS["stress"])

    def test_examples_of_doctor(self):
        for words in examples_of("doctor"):
            with self.subTest(example=words):
                start = words.index("./pcm")
                done = subprocess.run(["env", *words[:start], DOCTOR, f"--library={LIBRARY}",
                                       *words[start + 2:]], check=False, timeout=60)
                self.assertEqual((words[start + 1], done.returncode), ("doctor", 0))

    def test_examples_of_stress(self):
        for words in examples_of("stress"):
            with self.subTest(example=words):
                self.assertEqual(words[:2], ["./pcm", "stress"])
                done = subprocess.run([sys.executable, "tools/stress/stress.py",
                                       f"--binary={STRESS}", f"--malloc={LIBRARY}", *words[2:],
                                       "--seconds=0.3"], check=False, timeout=60)
                self.assertEqual(done.returncode, 0)


if __name__ == "__main__":
    cases.main()
