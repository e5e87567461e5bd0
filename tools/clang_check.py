#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles every C++ source of the tree with clang 14, with the very flags of the gcc build.

Reads `bazel aquery --output=jsonproto 'mnemonic(CppCompile, ...)'` on standard input, so defines,
include paths and warnings are those of each target, and Bazel's cache stays with one compiler.
Leaves test.xml and test.log in --out, as a Bazel test does. The library's sources are compiled to
the end, because only code generation reads inline assembly; the others are parsed and checked.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

COMPILER = "clang++-14"
LIBRARY = ("allocator/", "rseq/", "percpu/")
# What gcc alone understands, or what names an output.
DROPPED = {"-fno-canonical-system-headers", "-Wno-free-nonheap-object", "-Wunused-but-set-parameter",
           "-MD", "-c"}
DROPPED_WITH_VALUE = {"-o", "-MF"}


def clang_command(arguments):
    """(source, command) for the arguments of one gcc compilation."""
    command, source = [COMPILER], None
    values = iter(arguments[1:])
    for argument in values:
        if argument in DROPPED_WITH_VALUE:
            next(values)
        elif argument == "-c":
            source = next(values)
        elif argument not in DROPPED and not argument.startswith("-frandom-seed"):
            command.append(argument)
    library = source is not None and source.startswith(LIBRARY)
    command += ["-c", "-o", os.devnull] if library else ["-fsyntax-only"]
    return source, command + [source]


def commands_of(graph):
    """The compilations to do, by source and flags; PIC and non-PIC twins count once."""
    found = {}
    for action in graph.get("actions", []):
        arguments = action.get("arguments", [])
        if "-c" not in arguments:
            continue
        source, command = clang_command(arguments)
        if not source.startswith("external/") and source.endswith((".cc", ".cpp")):
            found.setdefault((source, tuple(a for a in command if a != "-fPIC")), command)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tree", required=True, help="the workspace, for names in messages")
    parser.add_argument("--execution_root", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    flags = parser.parse_args()
    started = time.monotonic()
    log = []
    try:
        commands = commands_of(json.load(sys.stdin))
        if not commands:
            log.append("bazel aquery names no compilation")
    except ValueError as error:
        commands = {}
        log.append(f"bazel aquery: {error}")

    def compile_one(command):
        return subprocess.run(command, cwd=flags.execution_root, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)

    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for (source, _), done in zip(commands, pool.map(compile_one, commands.values())):
                if done.returncode != 0:
                    log.append(f"{source}: {COMPILER} ended with {done.returncode}\n{done.stdout}")
    except OSError as error:
        log.append(f"{COMPILER}: {error}")

    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "test.log").write_text("\n".join(log), encoding="utf-8")
    case = ElementTree.Element("testcase", name=f"{len(commands)} sources compile without a warning",
                               time=f"{time.monotonic() - started:.1f}")
    if log:
        ElementTree.SubElement(case, "failure", message=f"{len(log)} of {len(commands)} failed")
    suite = ElementTree.Element("testsuite", name="clang-14")
    suite.append(case)
    ElementTree.ElementTree(suite).write(flags.out / "test.xml")
    return 1 if log else 0


if __name__ == "__main__":
    sys.exit(main())
