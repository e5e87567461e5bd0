#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs double_alloc_stress with a malloc of choice preloaded; the exit status is passed through.

    stress.py [--malloc NAME | --sabotage NAME] [--binary PATH] [options of double_alloc_stress]

The NAME of a malloc is a path, a soname in the dynamic linker's search path, or one of those below.
Exit status: 0 no violation, 1 some (or a crash or a hang), 2 the run could not be made, 77
--if_installed was given and the malloc is not there.
"""

import argparse
import ctypes.util
import os
import subprocess
import sys

NAMES = {
    "glibc": None,
    "jemalloc": ("libjemalloc.so.2", "libjemalloc2"),
    "mimalloc": ("libmimalloc.so.2", "libmimalloc2.0"),
    "tcmalloc_minimal": ("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
    "pcmalloc": ("libpcmalloc.so", None),
}
SABOTAGES = (
    "no-fence", "early-publish", "stale-index", "remote-write", "two-commits", "legacy-forced",
)
NOT_INSTALLED = 77
# What --help shows, and `./pcm stress --help` without building anything.
HELP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "help.txt")

# What a fault needs to show itself soon: the mode it is in, and a workload that meets it often.
SABOTAGE_ENVIRONMENT = {
    "legacy-forced": {
        "GLIBC_TUNABLES": "glibc.pthread.rseq=0",
        "PCMALLOC_CONF": "rseq:legacy",
    },
}
SABOTAGE_OPTIONS = {
    "stale-index": ["--max_size=32", "--migrate_rate=20000", "--noaligned", "--noforks"],
}


class NotFound(Exception):
    """A file that the run needs does not exist; the text says what to do about it."""


def tree():
    """The top of the source tree that this script lies in."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def search_soname(soname):
    """Full path of a shared library as the dynamic linker would find it, or None."""
    for directory in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        path = os.path.join(directory, soname)
        if directory and os.path.exists(path):
            return path
    for ldconfig in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"):
        try:
            cache = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        for line in cache.stdout.splitlines():
            name, _, path = line.strip().partition(" => ")
            if path and name.split(" ")[0] == soname:
                return path
        return None
    # No ldconfig: the linker itself can still tell whether the name loads.
    return ctypes.util.find_library(soname.removeprefix("lib").split(".so")[0])


def built(path, target):
    """A file that Bazel makes, from bazel-bin of the tree."""
    full = os.path.join(tree(), "bazel-bin", path)
    if not os.path.exists(full):
        raise NotFound("%s is not built: bazel build %s" % (full, target))
    return full


def resolve_malloc(name):
    """Path to preload for --malloc NAME; None for the system's own malloc."""
    if "/" in name:
        if not os.path.exists(name):
            raise NotFound("no such file: %s" % name)
        return os.path.abspath(name)
    if name == "pcmalloc":
        return built("libpcmalloc.so", "//:libpcmalloc.so")
    if name in NAMES:
        if NAMES[name] is None:
            return None
        soname, package = NAMES[name]
        path = search_soname(soname)
        if path is None:
            raise NotFound("%s is not installed: apt-get install %s" % (soname, package))
        return path
    path = search_soname(name)
    if path is None:
        raise NotFound("--malloc %s is neither a file, nor a soname the linker finds, nor one of %s"
                       % (name, ", ".join(NAMES)))
    return path


def make_parser():
    """The options of this script; all others are those of double_alloc_stress."""
    parser = argparse.ArgumentParser(
        prog="stress", allow_abbrev=False, add_help=False,
        usage="./pcm stress [FLAG...]; ./pcm stress --help explains them")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--malloc", metavar="NAME")
    parser.add_argument("--sabotage", choices=SABOTAGES)
    parser.add_argument("--library", help="where the sabotaged library is (for tests)")
    parser.add_argument("--binary", help="the double_alloc_stress to run (for tests)")
    parser.add_argument("--if_installed", action="store_true",
                        help="exit with status %d when the malloc is not there (for tests)" %
                        NOT_INSTALLED)
    return parser


def main(argv):
    """Returns the exit status of the run."""
    parser = make_parser()
    # What follows "--" is meant for double_alloc_stress alone.
    end = argv.index("--") if "--" in argv else len(argv)
    options, rest = parser.parse_known_args(argv[:end])
    rest += argv[end + 1:]
    if options.help:
        with open(HELP, encoding="utf-8") as file:
            sys.stdout.write(file.read())
        return 0
    if options.sabotage and options.malloc:
        parser.error("--sabotage already says which malloc to preload")
    try:
        binary = options.binary or built("tests/stress/double_alloc_stress",
                                         "//tests/stress:double_alloc_stress")
        if options.sabotage:
            library = options.library or built(
                "tests/sabotage/libpcmalloc-%s.so" % options.sabotage,
                "//tests/sabotage:" + options.sabotage)
            rest = SABOTAGE_OPTIONS.get(options.sabotage, []) + rest
        else:
            library = resolve_malloc(options.malloc or "pcmalloc")
    except NotFound as error:
        print("stress: %s" % error, file=sys.stderr)
        return NOT_INSTALLED if options.if_installed else 2
    environment = dict(os.environ)
    environment.pop("LD_PRELOAD", None)
    if library is not None:
        environment["LD_PRELOAD"] = os.path.abspath(library)
    environment.update(SABOTAGE_ENVIRONMENT.get(options.sabotage, {}))
    try:
        os.execve(binary, [binary] + rest, environment)
    except OSError as error:
        print("stress: cannot run %s: %s" % (binary, error.strerror), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
