# SPDX-License-Identifier: Apache-2.0
"""Everything that names a version names the one of the public header; and what glibc is needed."""

import os
import pathlib
import re
import subprocess
import sys
import unittest

from tests.artifacts import elf
from tests.testing import cases

LIBRARY, HEADER, README, CHANGELOG = (pathlib.Path(sys.argv.pop(1)) for _ in range(4))

ASK = """
import ctypes
ask = ctypes.CDLL(None).pcmalloc_version
ask.restype = ctypes.c_char_p
print(ask().decode())
"""


def macro(name):
    found = re.search(rf"^#define PCMALLOC_VERSION{name} (\S+)$", HEADER.read_text(), re.M)
    return found[1].strip('"')


class VersionTest(unittest.TestCase):

    def setUp(self):
        self.version = macro("")

    def test_parts(self):
        self.assertEqual(".".join(map(macro, ("_MAJOR", "_MINOR", "_PATCH"))), self.version)

    def test_library(self):
        told = subprocess.run([sys.executable, "-c", ASK], check=True, stdout=subprocess.PIPE,
                              text=True, env={**os.environ, "LD_PRELOAD": str(LIBRARY.absolute())})
        self.assertEqual(told.stdout.strip(), self.version)

    def test_soname(self):
        self.assertEqual([value for tag, value in elf.Elf(LIBRARY).dynamic() if tag == "SONAME"],
                         [f"Library soname: [libpcmalloc.so.{macro('_MAJOR')}]"])

    def test_readme(self):
        text = README.read_text()
        self.assertEqual(re.findall(r"pcmalloc_version\(void\)` \| `\"(.*?)\"`", text),
                         [self.version])
        named = set(re.findall(r"libpcmalloc\.so\.(\d+\.[\d.]*\d)", text))
        self.assertEqual(named, {self.version})

    def test_changelog(self):
        self.assertEqual(re.findall(r"^## (\S+)", CHANGELOG.read_text(), re.M)[0], self.version)

    def test_needs_the_glibc_that_the_readme_names(self):
        def number(text):
            return tuple(map(int, text.split(".")))

        needed = max(map(number, re.findall(r"\bGLIBC_(\d[\d.]*)",
                                            elf.output("objdump", "-T", LIBRARY))))
        named = [number(text) for text in
                 re.findall(r"glibc (\d[\d.]*\d) or newer", README.read_text())]
        self.assertEqual(len(named), 1)
        self.assertLessEqual(needed, named[0])


if __name__ == "__main__":
    cases.main()
