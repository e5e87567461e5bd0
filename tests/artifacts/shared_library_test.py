# SPDX-License-Identifier: Apache-2.0
"""What libpcmalloc.so demands of the process it is preloaded into, and what it shows it."""

import re
import sys
import unittest

from tests.artifacts import elf
from tests.testing import cases

LIBRARY = elf.Elf(sys.argv.pop(1))
EXPORTS = sys.argv.pop(1)

TLS_LIMIT = 128
RETURN_NOTHING = {"cfree", "dallocx", "free", "free_aligned_sized", "free_sized", "malloc_stats",
                  "pcmalloc_set_hard_limit", "pcmalloc_set_percpu_cache", "pcmalloc_set_soft_limit",
                  "sdallocx"}


def listed(path):
    with open(path, encoding="utf-8") as file:
        return {line.strip() for line in file if line.strip() and not line.startswith("#")}


class SharedLibraryTest(unittest.TestCase):

    def test_needs_libc_alone(self):
        self.assertEqual(LIBRARY.needed(), ["libc.so.6"])

    def test_exports_what_is_listed(self):
        self.assertEqual(sorted(LIBRARY.exports()), sorted(listed(EXPORTS)))

    def test_thread_local_storage_is_small(self):
        # A library that is loaded late shares a small reserve with all others.
        sizes = [memory for kind, _, memory, _ in LIBRARY.segments() if kind == "TLS"]
        self.assertEqual(len(sizes), 1)
        self.assertLess(sizes[0], TLS_LIMIT)

    def test_thread_local_storage_needs_no_call(self):
        # The dynamic model's __tls_get_addr may call malloc.
        self.assertIn("STATIC_TLS", LIBRARY.flags())
        self.assertNotIn("__tls_get_addr", LIBRARY.imports())

    def test_binds_now(self):
        # A lazy binding inside malloc would enter the dynamic linker, which may call malloc.
        self.assertTrue({"BIND_NOW", "NOW"} & LIBRARY.flags())

    def test_relro(self):
        self.assertIn("GNU_RELRO", [kind for kind, *_ in LIBRARY.segments()])

    def test_no_text_relocations(self):
        self.assertNotIn("TEXTREL", [tag for tag, _ in LIBRARY.dynamic()])
        self.assertNotIn("TEXTREL", LIBRARY.flags())

    def test_nothing_is_writable_and_executable(self):
        segments = [(kind, flags) for kind, _, _, flags in LIBRARY.segments()]
        self.assertFalse([s for s in segments if "W" in s[1] and "E" in s[1]])
        self.assertIn("GNU_STACK", [kind for kind, _ in segments])

    def test_no_run_path(self):
        self.assertFalse([tag for tag, _ in LIBRARY.dynamic() if tag in ("RPATH", "RUNPATH")])

    def test_debuggers_know_the_types_of_the_c_interface(self):
        # Else `print malloc(1)` calls malloc without the argument and throws the result away.
        names = {name for name in LIBRARY.exports() if not name.startswith("_")} - RETURN_NOTHING
        self.assertEqual(names - LIBRARY.typed_functions(), set())

    def test_demands_only_what_libc_has(self):
        # Everything else, say of libstdc++, may only be a weak reference: programs
        # without it start.
        names = elf.output("nm", "--dynamic", "--undefined-only", "--with-symbol-versions",
                           LIBRARY.path)
        strong = re.findall(r"^\s+U (\S+)", names, re.M)
        self.assertTrue(strong)
        self.assertFalse([name for name in strong if "@GLIBC_" not in name])


if __name__ == "__main__":
    cases.main()
