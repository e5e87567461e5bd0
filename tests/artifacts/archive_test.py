# SPDX-License-Identifier: Apache-2.0
"""libpcmalloc.a as a user links it: each compiler, linker and way of linking, and
the program runs."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from tests.artifacts import elf
from tests.testing import cases

ARCHIVE, PROBE = (os.path.abspath(path) for path in (sys.argv.pop(1), sys.argv.pop(1)))
MODES = {"v2safe-cpu", "v2safe-cid", "legacy", "locked"}


class ArchiveTest(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="pcm-archive")
        self.addCleanup(shutil.rmtree, self.directory)

    def build(self, compiler, *flags, suffix=".cc"):
        """Compiles and links the probe the plain way; returns the program."""
        source = os.path.join(self.directory, "probe" + suffix)
        program = os.path.join(self.directory, "probe")
        shutil.copyfile(PROBE, source)
        done = subprocess.run([*compiler, "-O1", "-o", program, source, ARCHIVE, *flags,
                               "-pthread"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False, timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertNotIn("warning", done.stdout)
        return program

    def link_and_run(self, *arguments, **options):
        program = self.build(*arguments, **options)
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              check=False, timeout=60, env=environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(done.stdout.split(":")[0], MODES)
        self.assertEqual(done.stderr, "")
        return elf.Elf(program)

    def test_plain(self):
        program = self.link_and_run(["g++"])
        self.assertIn("libc.so.6", program.needed())

    def test_c_program_without_libstdcxx(self):
        self.assertEqual(self.link_and_run(["gcc"], suffix=".c").needed(), ["libc.so.6"])

    def test_no_pie(self):
        self.link_and_run(["g++"], "-no-pie")

    def test_static(self):
        self.assertEqual(self.link_and_run(["g++"], "-static").dynamic(), [])

    def test_static_pie(self):
        self.assertEqual(self.link_and_run(["g++"], "-static-pie").needed(), [])

    def test_garbage_collected_sections(self):
        self.link_and_run(["g++"], "-Wl,--gc-sections", "-ffunction-sections", "-fdata-sections")

    def test_link_time_optimisation_of_the_program(self):
        self.link_and_run(["g++"], "-flto")

    def test_gold(self):
        self.link_and_run(["g++"], "-fuse-ld=gold")

    def test_lld(self):
        self.link_and_run(["clang++-14"], "-fuse-ld=lld-14")

    def test_lld_static_pie(self):
        self.link_and_run(["clang++-14"], "-fuse-ld=lld-14", "-static-pie")

    def test_clang(self):
        self.link_and_run(["clang++-14"])

    def test_musl_static(self):
        self.assertEqual(self.link_and_run(["musl-gcc"], "-static", suffix=".c").needed(), [])

    def test_musl_dynamic(self):
        self.assertEqual(self.link_and_run(["musl-gcc"], suffix=".c").needed(), ["libc.so"])

    def test_into_a_shared_object(self):
        # Whoever links the archive into a plug-in needs position-independent code throughout.
        done = subprocess.run(["g++", "-shared", "-o", os.path.join(self.directory, "plugin.so"),
                               "-Wl,--whole-archive", ARCHIVE, "-Wl,--no-whole-archive",
                               "-Wl,-z,text,-z,defs"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_objects_keep_their_names_to_themselves(self):
        # Names of a static library share one space with the program's own.
        names = re.findall(r"^[0-9a-f]+ [TDBR] (\w+)$",
                           elf.output("nm", "--defined-only", "--extern-only", ARCHIVE), re.M)
        self.assertTrue(names)
        self.assertFalse([name for name in names
                          if re.match(r"_ZN(?!K?8pcmalloc)", name)
                          or (not name.startswith(("_Z", "pcmalloc", "__libc_", "__posix_",
                                                   "__size_returning_new"))
                              and name not in C_INTERFACE)])


C_INTERFACE = {
    "aligned_alloc", "calloc", "cfree", "dallocx", "free", "free_aligned_sized", "free_sized",
    "mallinfo", "mallinfo2", "malloc", "malloc_info", "malloc_stats", "malloc_trim",
    "malloc_usable_size", "mallocx", "mallopt", "memalign", "nallocx", "posix_memalign", "pvalloc",
    "rallocx", "realloc", "reallocarray", "sallocx", "sdallocx", "valloc", "xallocx",
}


if __name__ == "__main__":
    cases.main()
