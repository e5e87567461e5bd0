#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares pcmalloc with glibc and Debian's other allocators. See benchmarks/README.md.

Builds the benchmarks and the library, and installs peers and programs that are missing (as root).
The tables have colours on a terminal, unless NO_COLOR is set.
Exit status: 0 all rows were measured, 1 some failed, 130 interrupted (what was done is shown).
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(1, os.path.join(ROOT, "tools", "debian"))

import allocators as allocators_module
import markdown
import page
import peers
import run
import stats
import suites
import table
import warm

BINARIES = ("micro", "scale", "memory", "linearity", "exec_counted")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="./pcm bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="all",
                        help="comma list of %s, or all (default)" % ", ".join(suites.SUITES))
    parser.add_argument("--allocators", default="", metavar="LIST",
                        help="comma list of %s (default: all that can be had); of Debian's newer "
                        "suites: NAME@trixie, NAME@sid for %s; others: NAME=/path/lib.so" %
                        (", ".join(allocators_module.DEFAULT), ", ".join(peers.IN_ARCHIVE)))
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows that match in full")
    parser.add_argument("--runs", type=int, default=None, metavar="N",
                        help="default 5, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--warm-memory", default="auto", choices=warm.MODES,
                        help="touch free memory before it is measured, so that a virtual machine's "
                        "host has backed it (default auto: on virtual machines)")
    parser.add_argument("--metrics", default="", metavar="LIST",
                        help="metrics in the table: comma list, or all (default: the main ones)")
    parser.add_argument("--subject", default=allocators_module.SUBJECT,
                        help="the allocator whose ratios are shown (default pcmalloc)")
    parser.add_argument("--json", metavar="FILE", help="write the results, for --from-json")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots")
    parser.add_argument("--markdown", metavar="FILE", help="the tables of docs/performance.md")
    parser.add_argument("--from-json", metavar="FILES",
                        help="comma list: show earlier results, run nothing")
    parser.add_argument("--bin-dir", metavar="DIR", help="built benchmarks (default: build them)")
    parser.add_argument("--library", metavar="FILE", help="libpcmalloc.so (default: build it)")
    parser.add_argument("--list", action="store_true",
                        help="list the rows of --suite and --rows and stop")
    options = parser.parse_args(argv)
    names = suites.SUITES if options.suite == "all" else options.suite.split(",")
    unknown = [n for n in names if n not in suites.SUITES]
    if unknown:
        parser.error("unknown suite %s" % ", ".join(unknown))
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be positive")
    try:
        re.compile(options.rows)
    except re.error as error:
        parser.error("--rows: %s: %s" % (options.rows, error))
    for path in (options.json, options.html, options.markdown):
        # Now rather than after hours of measuring.
        if path and not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            parser.error("cannot write %s" % path)
    options.suites = [s for s in suites.SUITES if s in names]
    options.runs = options.runs or (3 if options.quick else 5)
    return options


def in_colour(stream):
    """Whether what is written there may have colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def names_target(package, target):
    """Whether the BUILD file of `package` has the target; asking Bazel would cost seconds."""
    try:
        with open(os.path.join(ROOT, package, "BUILD"), encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return False
    return '"%s"' % target in text


def build(wanted_library):
    """Builds the benchmarks, and the library if the tree has it; returns (bin dir, library)."""
    targets = ["//benchmarks:" + name for name in BINARIES]
    if names_target("benchmarks", "micro_static"):
        targets.append("//benchmarks:micro_static")
    library = None
    if wanted_library and names_target("", "libpcmalloc.so"):
        targets.append("//:libpcmalloc.so")
        library = os.path.join(ROOT, "bazel-bin", "libpcmalloc.so")
    command = ["bazel", "build", "--noshow_progress", "--ui_event_filters=-info",
               "--color=" + ("no" if os.environ.get("NO_COLOR") else "auto"), *targets]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    except FileNotFoundError:
        sys.exit("pcm bench: bazel not found; give --bin-dir (and --library)")
    if done.returncode != 0:
        sys.exit("pcm bench: the build failed; give --bin-dir to use existing binaries")
    return os.path.join(ROOT, "bazel-bin", "benchmarks"), library


def machine():
    """What the results were measured on, as (name, value) pairs."""
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            hugepages = file.read().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        hugepages = "unknown"
    return [("CPU", "%s, %d CPUs" % (model, len(os.sched_getaffinity(0)))),
            ("memory", "%.1f GB" % (warm.meminfo().get("MemTotal", 0) / 1e9)),
            ("virtual machine", "yes" if warm.under_hypervisor() else "not that it tells"),
            ("kernel", platform.release()), ("libc", " ".join(platform.libc_ver())),
            ("transparent hugepages", hugepages)]


def measure(options):
    """(records, failed, facts, interrupted) of a fresh run."""
    if options.bin_dir:
        bin_dir, library = options.bin_dir, options.library
    else:
        bin_dir, library = build(not options.library)
        library = options.library or library
    bin_dir = os.path.abspath(bin_dir)
    say = allocators_module.say
    with tempfile.TemporaryDirectory(prefix="pcm-bench-") as work_dir:
        jobs, notes = suites.jobs(options.suites, bin_dir, options.quick, options.rows, work_dir,
                                  install_missing=not options.list)
        if not jobs:
            for note in notes:
                say(note)
            sys.exit("pcm bench: no row matches %r in full; --list shows them" % options.rows)
        if options.list:
            for job in jobs:
                print(job.suite, job.row)
            sys.exit(0)
        try:
            allocators, left_out = allocators_module.resolve(options.allocators, library, bin_dir)
        except allocators_module.AllocatorError as error:
            sys.exit("pcm bench: %s" % error)
        for note in notes + left_out:
            say(note)
        progress = run.Progress(sum(options.runs for j in jobs for a in allocators
                                    if j.supports(a)))
        warmer = warm.Warmer(options.warm_memory, options.quick, progress.show,
                             lambda text: progress.message("pcm bench: " + text))
        warmer.start(jobs)
        records, failed, interrupted = run.run_all(jobs, allocators, options.runs, progress, warmer)
    facts = machine() + warmer.facts()
    facts += [("runs", "%d, interleaved%s%s" % (options.runs, ", quick" if options.quick else "",
                                                ", interrupted" if interrupted else ""))]
    facts += [(a.name, allocators_module.describe(a)) for a in allocators]
    return records, failed, facts, interrupted


def earlier(paths):
    """The records of files that --json wrote."""
    records = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            if not all(set(stats.FIELDS) <= set(r) for r in found):
                raise ValueError("not what --json writes")
        except (OSError, ValueError, TypeError) as error:
            sys.exit("pcm bench: %s: %s" % (path, error))
        records += found
    return records


def main(argv=None):
    options = parse_arguments(argv)
    if options.from_json:
        paths = options.from_json.split(",")
        records, failed, interrupted = earlier(paths), set(), False
        facts = [("results", ", ".join(os.path.basename(path) for path in paths))]
    else:
        records, failed, facts, interrupted = measure(options)
        for name, value in facts:
            print("%s: %s" % (name, value), file=sys.stderr)
    names = list(dict.fromkeys([r["allocator"] for r in records] + sorted(f[2] for f in failed)))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(records, file, indent=1)
            file.write("\n")
    if options.html:
        with open(options.html, "w", encoding="utf-8") as file:
            file.write(page.render(records, names, options.subject, facts))
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write(markdown.render(records, names, options.subject, facts, options.metrics))
    print(table.render(records, names, options.subject, failed, in_colour(sys.stdout),
                       options.metrics), end="")
    if failed:
        print("pcm bench: %d rows failed" % len(failed), file=sys.stderr)
    if interrupted:
        return 130
    return 1 if failed or not records else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
