# SPDX-License-Identifier: Apache-2.0
"""tests/instructions must notice each deliberate fault in the protocol."""

import os
import subprocess
import unittest

from tests.testing import cases

LIMIT_SECONDS = 120


def run(program, *arguments):
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("XML_OUTPUT_FILE", "TEST_PREMATURE_EXIT_FILE")}
    return subprocess.run([program, *arguments], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=LIMIT_SECONDS)


class InstructionsSabotageTest(unittest.TestCase):
    FAULTS = ("remote-write", "stale-index", "two-commits")
    FILTER = "--gtest_filter=*EveryOneOfEverySection"

    def setUp(self):
        # Without breakpoints or a second CPU nothing is tested, sound or not.
        sound = run("tests/instructions/instructions_test", self.FILTER)
        self.assertEqual(sound.returncode, 0, sound.stdout)
        if "SKIPPED" in sound.stdout:
            self.skipTest("the instruction test cannot be made here")

    def check_caught(self, fault):
        result = run(f"tests/sabotage/instructions_{fault}", self.FILTER)
        self.assertNotEqual(result.returncode, 0, result.stdout)
        self.assertIn("FAILED", result.stdout)


class OwnerSabotageTest(unittest.TestCase):
    # The case that meets the fault first: one that pushes to a stack, one that writes both halves
    # of a header.
    FAULTS = {"early-header": "LockedPushBatch", "torn-header": "LockedFirstCapacity"}

    def check_caught(self, fault):
        case = f"--gtest_filter=*/{self.FAULTS[fault]}"
        sound = run("tests/instructions/owner_test", case)
        self.assertEqual(sound.returncode, 0, sound.stdout)
        if "SKIPPED" in sound.stdout:
            self.skipTest("the owner's test cannot be made here")
        self.assertIn("[  PASSED  ] 1 test.", sound.stdout)
        result = run(f"tests/sabotage/owner_{fault}", case)
        self.assertNotEqual(result.returncode, 0, result.stdout)
        self.assertIn("a child after instruction", result.stdout)


def add_case(test, fault):
    name = "test_" + fault.replace("-", "_")
    setattr(test, name, lambda self: self.check_caught(fault))


for group in (InstructionsSabotageTest, OwnerSabotageTest):
    for each in group.FAULTS:
        add_case(group, each)


if __name__ == "__main__":
    cases.main()
