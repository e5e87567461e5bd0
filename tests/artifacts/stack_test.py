# SPDX-License-Identifier: Apache-2.0
"""No function of libpcmalloc.so has a large frame on the stack, which may be a signal handler's.

//tests/lifecycle measures what malloc and free use in all; this is for paths that no test takes.
"""

import re
import subprocess
import sys
import unittest

from tests.testing import cases

LIBRARY = sys.argv.pop(1)

MOST = 704  # bytes
# What no handler comes to, or as good as none: the start, the end, statistics on request, messages
# of which most are the process's last, the background thread. And the one that calls nothing else.
MAY_HAVE_MORE = {
    "malloc_info", "malloc_stats", "pcmalloc_stats_json", "(anonymous namespace)::Finish",
    "(anonymous namespace)::Load", "(anonymous namespace)::Start",
    "(anonymous namespace)::StartOnce",
    "(anonymous namespace)::ChooseOtherwise", "rseq::Discover", "ParseConfig", "ParseKeys",
    "rseq::(anonymous namespace)::CpuBound", "rseq::(anonymous namespace)::FillIn",
    "observe::ReportAtExit", "observe::(anonymous namespace)::Report",
    "(anonymous namespace)::WriteLine", "(anonymous namespace)::Complain", "Warn", "Fatal",
    "(anonymous namespace)::BadFree", "(anonymous namespace)::FatalPointer", "CheckFailed",
    "NewFailed", "NothrowNewFailed",
    "release::(anonymous namespace)::BecomeOrdinary", "release::(anonymous namespace)::Run",
    "os::(anonymous namespace)::ZeroPages", "os::Zero",
}

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
# One large constant: x86_64 and aarch64.
FRAME = re.compile(r"\bsub\s+(?:\$0x([0-9a-f]+),%rsp|sp, sp, #0x([0-9a-f]+))")


def plain(name):
    """The name without parameters, return type, clones and the outermost name space."""
    name = re.sub(r"\s*\[clone .*?\]", "", name).replace("pcmalloc::", "")
    name = name.replace("(anonymous namespace)", "{}")
    name = re.sub(r"\(.*", "", name).split(" ")[-1]
    return name.replace("{}", "(anonymous namespace)")


def frames():
    text = subprocess.run(["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", LIBRARY],
                          stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout
    found, name = {}, None
    for line in text.splitlines():
        if function := FUNCTION.match(line):
            name = plain(function[1])
        elif frame := FRAME.search(line):
            size = int(frame[1] or frame[2], 16)
            if size < 1 << 63:  # -128 is written as a difference, too
                found[name] = max(found.get(name, 0), size)
    return found


class StackTest(unittest.TestCase):

    def test_frames_are_small(self):
        found = frames()
        self.assertGreater(len(found), 50)  # the disassembly was understood
        large = {name: size for name, size in found.items()
                 if size > MOST and name not in MAY_HAVE_MORE}
        self.assertEqual(large, {})


if __name__ == "__main__":
    cases.main()
