# SPDX-License-Identifier: Apache-2.0
"""The hit paths of libpcmalloc.so, counted by kind of instruction, are what was last agreed on.

A change is made by hand:  bazel run //tests/golden:golden_test -- --update
"""

import os
import pathlib
import sys
import unittest

from tests.golden import hit_path
from tests.testing import cases

UPDATE = "--update" in sys.argv
if UPDATE:
    sys.argv.remove("--update")
LIBRARY = sys.argv.pop(1)

# (entry point, most instructions that it may ever have)
ENTRY_POINTS = {
    "malloc": 20,
    "free": 21,
    "calloc": 26,
    "cfree": 21,
    "free_sized": 21,
    "free_aligned_sized": 21,
    "sdallocx": 21,
    "__libc_malloc": 20,
    "__libc_free": 21,
    "_Znwm": 20,
    "_Znam": 20,
    "_ZnwmRKSt9nothrow_t": 20,
    "_ZnamRKSt9nothrow_t": 20,
    "_ZdlPv": 20,
    "_ZdaPv": 20,
    "_ZdlPvm": 20,
    "_ZdaPvm": 20,
    "_ZdlPvRKSt9nothrow_t": 20,
    "_ZdaPvRKSt9nothrow_t": 20,
    "_ZdlPvSt11align_val_t": 20,
    "_ZdaPvSt11align_val_t": 20,
    "_ZdlPvmSt11align_val_t": 20,
    "_ZdaPvmSt11align_val_t": 20,
    "_ZdlPvSt11align_val_tRKSt9nothrow_t": 20,
    "_ZdaPvSt11align_val_tRKSt9nothrow_t": 20,
}

HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# Instructions on the hit path of each entry point of libpcmalloc.so, as {compiler} compiles it.
# Written by: bazel run //tests/golden:golden_test -- --update
"""


def table(compiler, counts):
    width = max(map(len, counts))
    columns = hit_path.COLUMNS + ("end",)
    lines = [" ".join(["# function".ljust(width), *columns])]
    for name, numbers in counts.items():
        cells = [str(numbers[column]).rjust(len(column)) for column in columns[:-1]]
        lines.append(" ".join([name.ljust(width), *cells, numbers["end"]]))
    return HEADER.format(compiler=compiler) + "\n".join(lines) + "\n"


class GoldenTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.disassembly = hit_path.Disassembly(LIBRARY)
        cls.compiler = hit_path.compiler_of(LIBRARY)
        cls.counts = {name: cls.disassembly.counts(name) for name in ENTRY_POINTS}

    def code_of(self, name):
        return "\n".join(f"  {i.address:x}: {i.text}" for i in self.disassembly.hit_path(name))

    def test_counts_are_the_agreed_ones(self):
        path = pathlib.Path(__file__).with_name(f"{self.compiler}.txt")
        found = table(self.compiler, self.counts)
        if UPDATE:
            tree = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
            if tree:
                path = pathlib.Path(tree, "tests/golden", path.name)
            path.write_text(found, encoding="utf-8")
            print(f"wrote {path.name}")
            return
        self.assertTrue(path.exists(), f"no counts agreed on for {self.compiler}; found:\n{found}")
        agreed = path.read_text(encoding="utf-8")
        if found == agreed:
            return
        changed = [name for name in ENTRY_POINTS if
                   [line for line in agreed.splitlines() if line.split()[:1] == [name]] !=
                   [line for line in found.splitlines() if line.split()[:1] == [name]]]
        code = "\n".join(f"{name}:\n{self.code_of(name)}" for name in changed[:3])
        self.fail(f"agreed on:\n{agreed}\nfound:\n{found}\n{code}")

    def test_limits(self):
        for name, limit in ENTRY_POINTS.items():
            with self.subTest(name=name):
                self.assertLessEqual(self.counts[name]["instructions"], limit, self.code_of(name))

    def test_nothing_is_read_from_the_got(self):
        for name in ENTRY_POINTS:
            with self.subTest(name=name):
                # The one address that calloc needs from there is memset's, to jump to at the end.
                self.assertEqual(self.counts[name]["got_loads"], 1 if name == "calloc" else 0,
                                 self.code_of(name))

    def test_the_stack_is_not_touched(self):
        for name in ENTRY_POINTS:
            # clang 14 calls memset and saves a register around it; gcc 12 ends in a jump to it.
            if name == "calloc" and self.compiler.startswith("clang"):
                continue
            with self.subTest(name=name):
                self.assertEqual(self.counts[name]["stack_uses"], 0, self.code_of(name))

    def test_nothing_is_called(self):
        for name in ENTRY_POINTS:
            with self.subTest(name=name):
                calls = self.counts[name]["calls"]
                if name == "calloc" and self.compiler.startswith("clang"):
                    calls -= 1
                self.assertEqual(calls, 0, self.code_of(name))
                self.assertEqual(self.counts[name]["end"].partition("@")[0],
                                 "memset" if name == "calloc" else "ret", self.code_of(name))


class ReaderTest(unittest.TestCase):
    """That the counting can tell the kinds apart: what it overlooks, no golden file would show."""

    def check(self, text, loads=0, stores=0, stack=False):
        instruction = hit_path.Instruction(0, text)
        self.assertEqual(instruction.accesses(), (loads, stores), text)
        self.assertEqual(instruction.uses_stack(), stack, text)

    def test_kinds(self):
        self.check("lea    0xf(%rdi),%rdx")
        self.check("nopl   0x0(%rax)")
        self.check("cmp    0x1b8dd1(%rip),%rdx        # 1bdcc0 <gate>", loads=1)
        self.check("cmpl   $0x0,0x4(%rcx,%rax,8)", loads=1)
        self.check("mov    (%r8,%rsi,8),%rsi", loads=1)
        self.check("movslq %fs:0x4(%rcx),%rsi", loads=1)
        self.check("mov    %fs:0x28,%rax", loads=1)
        self.check("mov    %r8,%fs:0x8(%rcx)", stores=1)
        self.check("mov    %r8d,(%rsi,%rdx,8)", stores=1)
        self.check("lock incq 0x10(%rip)        # 1bdcc0 <n>", loads=1, stores=1)
        self.check("addl   $0x1,(%rax)", loads=1, stores=1)
        self.check("jmp    *0x2fe2(%rip)        # 5fc8 <malloc>", loads=1)
        self.check("call   *0x2fe2(%rip)        # 5fc8 <malloc>", loads=1)
        self.check("jne    4f30 <malloc+0x50>")
        self.check("push   %rbx", stack=True)
        self.check("sub    $0x8,%rsp", stack=True)
        self.check("mov    0x8(%rsp),%rax", loads=1, stack=True)


if __name__ == "__main__":
    cases.main()
