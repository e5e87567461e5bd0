# SPDX-License-Identifier: Apache-2.0
"""What libpcmalloc.so adds to the memory of a small process into which it is preloaded.

Pages of the C library are not counted: how many are mapped depends on where it comes to lie.
"""

import os
import re
import resource
import statistics
import subprocess
import sys
import unittest

from tests.testing import cases

LIBRARY = os.path.realpath(sys.argv.pop(1))
PROBE = sys.argv.pop(1)

RUNS = 9  # where the stack begins varies by a page or two
# KiB that the kernel maps, from one multiple to the next, around a page of a file.
FAULT_AROUND = 64

# KiB. A page more is within the slack, a new one for each of several tables is not, and 64 KiB more
# of the library are not: see tools/build/layout.lds.
ANONYMOUS_AT_START = 28  # 20 to 24
ANONYMOUS_AFTER_MALLOC = 52  # 44 to 48


class Footprint:

    def __init__(self, arguments, preload):
        environment = {"LD_PRELOAD": LIBRARY} if preload else {}
        smaps = subprocess.run([PROBE] + arguments, env=environment, check=True,
                               stdout=subprocess.PIPE, text=True).stdout
        self.anonymous = sum(map(int, re.findall(r"^Anonymous: +(\d+) kB", smaps, re.M)))
        # Shared with every other process that has the library.
        self.shared = 0
        self.aligned = True
        self.mapped = False
        for start, rest in re.findall(r"^([0-9a-f]+)-\S+ (.*?)^VmFlags", smaps, re.M | re.S):
            if LIBRARY not in rest.split("\n")[0]:
                continue
            if not self.mapped:
                self.aligned = int(start, 16) % (FAULT_AROUND << 10) == 0
            self.mapped = True
            self.shared += int(re.search(r"^Rss: +(\d+) kB", rest, re.M)[1])
            self.shared -= int(re.search(r"^Anonymous: +(\d+) kB", rest, re.M)[1])


def footprints(arguments, preload):
    return [Footprint(arguments, preload) for _ in range(RUNS)]


def anonymous(runs):
    return statistics.median(run.anonymous for run in runs)


@unittest.skipUnless(resource.getpagesize() == 4096, "limits are for pages of 4 KiB")
class FootprintTest(unittest.TestCase):

    def check(self, arguments, limit, windows):
        ours = footprints(arguments, preload=True)
        self.assertTrue(all(run.mapped for run in ours), "not preloaded")
        added = anonymous(ours) - anonymous(footprints(arguments, preload=False))
        print(f"{arguments}: {added} KiB anonymous, {ours[0].shared} KiB of the library")
        self.assertLessEqual(added, limit)
        for run in ours:
            # Elsewhere what is used spans one more of the kernel's windows.
            self.assertLessEqual(run.shared, FAULT_AROUND * (windows + (not run.aligned)),
                                 "functions that are not where those of every start are? "
                                 "tools/build/hot_functions.py puts them there")

    def test_at_start(self):
        self.check([], ANONYMOUS_AT_START, windows=1)

    def test_after_malloc(self):
        # One window where the list of functions is up to date; the other is for changes.
        self.check(["malloc"], ANONYMOUS_AFTER_MALLOC, windows=2)


if __name__ == "__main__":
    cases.main()
