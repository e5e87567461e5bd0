# SPDX-License-Identifier: Apache-2.0
"""tests/instructions must notice each deliberate fault in the protocol."""

import os
import subprocess
import unittest

from tests.testing import cases

FAULTS = ("remote-write", "stale-index", "two-commits")
LIMIT_SECONDS = 120


def run(program):
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("XML_OUTPUT_FILE", "TEST_PREMATURE_EXIT_FILE")}
    return subprocess.run([program, "--gtest_filter=*EveryOneOfEverySection"], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          timeout=LIMIT_SECONDS)


class InstructionsSabotageTest(unittest.TestCase):

    def setUp(self):
        # Without breakpoints or a second CPU nothing is tested, sound or not.
        sound = run("tests/instructions/instructions_test")
        self.assertEqual(sound.returncode, 0, sound.stdout)
        if "SKIPPED" in sound.stdout:
            self.skipTest("the instruction test cannot be made here")

    def check_caught(self, fault):
        result = run(f"tests/sabotage/instructions_{fault}")
        self.assertNotEqual(result.returncode, 0, result.stdout)
        self.assertIn("FAILED", result.stdout)


def add_case(fault):
    name = "test_" + fault.replace("-", "_")
    setattr(InstructionsSabotageTest, name, lambda self: self.check_caught(fault))


for each in FAULTS:
    add_case(each)


if __name__ == "__main__":
    cases.main()
