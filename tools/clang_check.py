#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles every C++ source of the tree with clang 14, with the very flags of the gcc build.

Reads `bazel aquery --output=jsonproto 'mnemonic(CppCompile, ...)'` on standard input, so defines,
include paths and warnings are those of each target, and Bazel's cache stays with one compiler.
Leaves test.xml and test.log in --out, as a Bazel test does. The library's sources are compiled to
the end, because only code generation reads inline assembly; the others are parsed and checked.
What compiled before, under the same command, is not compiled again until a file it read changes.
"""

import argparse
import concurrent.futures
import hashlib
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
DROPPED = {"-fno-canonical-system-headers", "-Wno-free-nonheap-object",
           "-Wunused-but-set-parameter", "-MD", "-c"}
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


def dependencies(path):
    """The files that a compilation read, from the make rule that clang wrote."""
    _, _, files = path.read_text(encoding="utf-8").replace("\\\n", " ").partition(":")
    return files.split()


def unchanged(rule, directory):
    """Whether nothing that the compilation behind this make rule read is newer than it."""
    try:
        written = rule.stat().st_mtime_ns
        return all(os.stat(os.path.join(directory, name)).st_mtime_ns < written
                   for name in dependencies(rule))
    except OSError:
        return False


def compile_one(command, directory, cache):
    """None if the command succeeds or would, else its status and messages."""
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()
    rule, new = cache / f"{key}.d", cache / f"{key}.new"
    if unchanged(rule, directory):
        return None
    started = time.time_ns()
    done = subprocess.run([*command, "-MD", "-MF", str(new.absolute())], cwd=directory, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        return f"{COMPILER} ended with {done.returncode}\n{done.stdout}"
    # A file saved during the compilation must count as newer.
    os.utime(new, ns=(started, started))
    new.rename(rule)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
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

    cache = flags.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = pool.map(lambda c: compile_one(c, flags.execution_root, cache),
                                commands.values())
            log += [f"{source}: {problem}"
                    for (source, _), problem in zip(commands, problems) if problem]
    except OSError as error:
        log.append(f"{COMPILER}: {error}")

    (flags.out / "test.log").write_text("\n".join(log), encoding="utf-8")
    case = ElementTree.Element("testcase",
                               name=f"{len(commands)} sources compile without a warning",
                               time=f"{time.monotonic() - started:.1f}")
    if log:
        ElementTree.SubElement(case, "failure", message=f"{len(log)} of {len(commands)} failed")
    suite = ElementTree.Element("testsuite", name="clang-14")
    suite.append(case)
    ElementTree.ElementTree(suite).write(flags.out / "test.xml")
    return 1 if log else 0


if __name__ == "__main__":
    sys.exit(main())
