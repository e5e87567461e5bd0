#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Finds which functions of libpcmalloc.so run in small programs, for its layout.

  bazel build //:libpcmalloc.so //tests/artifacts:footprint_probe //benchmarks:scale
  tools/build/hot_functions.py bazel-bin/libpcmalloc.so

Runs the programs with each of the given libraries preloaded (one a compiler: they inline
differently) and a breakpoint at the beginning of each function, which goes when it is first met.
Prints how much text each program adds to those before it, and writes the functions into layout.lds
beside this file, in that order. x86_64 only; the libraries must have their symbol tables.
"""

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import textwrap

PTRACE_TRACEME, PTRACE_CONT, PTRACE_SYSCALL = 0, 7, 24
PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_SETOPTIONS = 12, 13, 0x4200
TRACE_CLONE, EXIT_KILL = 1 << 3, 1 << 20
WALL = 0x40000000
RIP = 16  # index of the instruction pointer among the 27 words of user_regs_struct
BREAKPOINT = b"\xcc"

HERE = os.path.dirname(os.path.abspath(__file__))
LAYOUT = os.path.join(HERE, "layout.lds")
BUILT = os.path.join(HERE, "../../bazel-bin")
PROBE = os.path.join(BUILT, "tests/artifacts/footprint_probe")
SCALE = os.path.join(BUILT, "benchmarks/scale")
# The smallest first, and none that forks.
PROGRAMS = (
    [PROBE, "malloc"],
    ["ls", "-l", "/usr/bin"],
    ["cat", "/etc/passwd"],
    [SCALE, "run", "transfer/1to1/64"],
    [SCALE, "run", "remote-free/1t"],
    [SCALE, "run", "pair-64/1t"],
    [SCALE, "run", "thread-churn"],
    [SCALE, "run", "larson/2t"],
    ["perl", "-e", "$h{$_} = $_ x 20 for 1..50000"],
    ["/usr/bin/python3", "-c", "import json; json.dumps([str(i) * 10 for i in range(50000)])"],
)
RUNS = 4  # of each: what threads meet varies

BEGIN, END = "    /* functions, by hot_functions.py */\n", "    /* end of functions */\n"

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
Registers = ctypes.c_uint64 * 27


def ptrace(request, pid, data=None):
    if libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace request {request}")


def functions(library):
    """Offset -> (size, names) of every function."""
    found = {}
    listing = subprocess.run(["nm", "-S", library], check=True, capture_output=True, text=True)
    for line in listing.stdout.splitlines():
        match = re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) [tTwWi] (\S+)", line)
        if match:
            size, names = found.setdefault(int(match[1], 16), (int(match[2], 16), []))
            names.append(match[3])
    return found


def start(program, library):
    pid = os.fork()
    if pid == 0:
        os.environ["LD_PRELOAD"] = library
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        ptrace(PTRACE_TRACEME, 0)
        os.execvp(program[0], program)
    os.waitpid(pid, 0)
    ptrace(PTRACE_SETOPTIONS, pid, TRACE_CLONE | EXIT_KILL)
    return pid


def loaded_at(pid, library):
    """Where the library lies, once libc does too: it has been mapped in full then."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        lines = maps.read().splitlines()
    if not any("r-xp" in line and "/libc.so" in line for line in lines):
        return None
    base = [int(line.split("-")[0], 16) for line in lines if line.endswith(library)]
    return base[0] if base else None


def met(program, library, offsets):
    """The offsets of the functions that run, in the order of their first call."""
    pid = start(program, library)
    base = None
    while base is None:
        ptrace(PTRACE_SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            sys.exit(f"{program[0]} does not load {library}")
        base = loaded_at(pid, library)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    first_bytes = {}
    for offset in offsets:
        first_bytes[offset] = os.pread(memory, 1, base + offset)
        os.pwrite(memory, BREAKPOINT, base + offset)
    order = []
    ptrace(PTRACE_CONT, pid)
    while True:
        task, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if task == pid:
                return order
            continue
        stopped_by = os.WSTOPSIG(status)
        if stopped_by == signal.SIGTRAP and status >> 16 == 0:
            registers = Registers()
            ptrace(PTRACE_GETREGS, task, ctypes.cast(registers, ctypes.c_void_p))
            offset = registers[RIP] - 1 - base
            if offset in first_bytes:
                if offset not in order:
                    order.append(offset)
                    os.pwrite(memory, first_bytes[offset], base + offset)
                registers[RIP] -= 1
                ptrace(PTRACE_SETREGS, task, ctypes.cast(registers, ctypes.c_void_p))
        quiet = stopped_by in (signal.SIGTRAP, signal.SIGSTOP)
        ptrace(PTRACE_CONT, task, None if quiet else stopped_by)


def section_names(names):
    """Of the sections that -ffunction-sections makes; the compiler's copies of parts
    go with them."""
    for name in names:
        name = re.split(r"\.(?:part|constprop|isra|cold)\b", name)[0]
        yield f".text.{name}*" if name.startswith("_Z") else f".text.{name}"


def write(path, groups):
    lines = []
    for names in groups:
        text = " ".join(sorted(set(section_names(names))))
        lines += textwrap.wrap(f"*({text})", 98, initial_indent="    ", subsequent_indent="      ",
                               break_long_words=False, break_on_hyphens=False)
    with open(path, encoding="utf-8") as file:
        before, rest = file.read().split(BEGIN)
    after = rest.split(END)[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(before + BEGIN + "\n".join(lines) + "\n" + END + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", metavar="LIBRARY")
    options = parser.parse_args()
    known = {path: functions(path) for path in map(os.path.realpath, options.libraries)}
    seen = {path: set() for path in known}
    groups = []
    for program in PROGRAMS:
        names = []
        for path, table in known.items():
            new = []
            for _ in range(RUNS):
                new += [offset for offset in met(program, path, table) if offset not in seen[path]]
                seen[path].update(new)
            names += [name for offset in new for name in table[offset][1]]
            size = sum(table[offset][0] for offset in new)
            total = sum(table[offset][0] for offset in seen[path])
            print(f"{size:7} bytes more, {total:7} in all: {' '.join(program)[-70:]}")
        groups.append(names)
    write(LAYOUT, [names for names in groups if names])


if __name__ == "__main__":
    main()
