#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a test program in one of the environments that an allocator has to live in.

run_variant.py VARIANT LIBRARY LAUNCHER PROGRAM ARGUMENTS...

PCM_TEST_LIBRARY replaces the library: any malloc can be put under these tests.
"""

import os
import sys

PER_CPU = "v2safe-cpu,v2safe-cid"

# name -> (preload?, command in front, PCMALLOC_CONF, modes that pcmalloc must report)
VARIANTS = {
    "linked": (False, [], None, PER_CPU),
    "preload": (True, [], None, PER_CPU),
    "locked": (True, [], "rseq:locked", "locked"),
    "enosys": (True, ["LAUNCHER", "--errno=ENOSYS"], None, "locked"),
    "eperm": (True, ["LAUNCHER", "--errno=EPERM"], None, "locked"),
    # Its client has no rseq, a slow CPU and one thread at a time.
    "valgrind": (True, ["valgrind", "--tool=none", "-q", "--trace-children=yes",
                        "--fair-sched=yes"], None, "locked"),
}


def main(variant, library, launcher, program, *arguments):
    preload, command, conf, modes = VARIANTS[variant]
    other = os.environ.pop("PCM_TEST_LIBRARY", "")
    environment = dict(os.environ, PCM_TEST_VARIANT=variant)
    if preload:
        path = other or os.path.abspath(library)
        if not os.path.exists(path):
            sys.exit(f"no such library: {path}")
        environment["LD_PRELOAD"] = path
    if conf:
        environment["PCMALLOC_CONF"] = conf
    if not other:
        environment["PCM_EXPECT_MODE"] = modes
    if command[:1] == ["LAUNCHER"]:
        command = [os.path.abspath(launcher)] + command[1:]
    command = command + [os.path.abspath(program), *arguments]
    # This interpreter must not meet the library that it hands on, and the log should say what ran.
    shown = {key: environment[key] for key in ("LD_PRELOAD", "PCMALLOC_CONF") if key in environment}
    print("run_variant:", shown, *command, flush=True)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
