#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Boots Debian's own kernels under QEMU and shows how pcmalloc fares on each.

    kernels.py [--arch A] [--class C | --version V] [--list] [--quick] [--json]

Finds which kernels Debian's suites offer now, takes both edges of every class of rseq behaviour,
downloads them into a cache (never installs them), boots each with the test programs inside, and
prints a row a kernel. Exit status: 0 all right, 1 a cell is wrong or nothing could be booted, 2 the
run could not be made.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(1, os.path.join(TREE, "tools", "debian"))

import boot
import catalogue
import fetch
import initramfs
import judge
import keep
import plan
import report

CONFIG = {"x86_64": [], "arm64": ["--config=aarch64"]}
OBJDUMP = {"x86_64": "objdump", "arm64": "aarch64-linux-gnu-objdump"}
COMMENT = {"x86_64": b"#", "arm64": b"//"}  # of the disassembler
TARGET = {"x86_64": "//tests/kernels:programs", "arm64": "//tests/kernels:programs_aarch64"}
# The C libraries that dynamic programs run with: one that registers 32 bytes, one that registers
# the length that the kernel advertises.
LIBC_SUITES = ("bookworm", "trixie")


class Failed(Exception):
    """The run could not be made."""


class Progress:
    """One line on a terminal, rewritten in place; nothing elsewhere."""

    def __init__(self):
        self.on = sys.stderr.isatty()
        self.prefix = ""

    def show(self, text):
        if self.on:
            sys.stderr.write("\r\033[K" + (self.prefix + text)[:110])
            sys.stderr.flush()

    def clear(self):
        if self.on:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def of_boot(self, name):
        """The callback for boot.boot."""
        def tell(result, seconds):
            done = [key for key in result.values if key.endswith(".status")]
            last = done[-1].split(".")[0] if done else "starting"
            self.show("%s: %d programs done, last %s, %.0f s" % (name, len(done), last, seconds))
        return tell


def bazel(*arguments):
    done = subprocess.run(["bazel", *arguments], cwd=TREE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Failed("bazel %s: %s" % (" ".join(arguments), done.stderr.strip()[-2000:]))
    return done.stdout


def built_programs(arch, progress):
    """{name: bytes} of the test programs for an architecture."""
    progress.show("building the test programs")
    config = CONFIG[arch] + aarch64_libraries(arch, progress)
    bazel("build", "--noshow_progress", "--color=no", *config, TARGET[arch])
    root = bazel("info", *config, "bazel-bin").strip()
    programs = {}
    for label in bazel("query", "--noshow_progress", "labels(srcs, %s)" % TARGET[arch]).split():
        package, _, name = label.lstrip("/").partition(":")
        path = os.path.join(root, package, name)
        with open(path, "rb") as file:
            programs[name] = file.read()
        if name == "stress_dynamic":
            programs.update(shared_libraries(path))
        if name in ("instructions", plan.SABOTAGED_INSTRUCTIONS):
            programs[name + ".listing"] = listing(arch, path)
    return programs


# What belongs to the C library, of which a boot brings its own.
C_LIBRARY = ("libc", "libm", "libpthread", "libdl", "librt", "ld-linux-x86-64")


def shared_libraries(path):
    """{"/lib/NAME": bytes} of what a program needs beside the C library."""
    done = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        raise Failed("ldd %s: %s" % (path, done.stderr.strip()))
    found = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.strip().partition(" => ")
        if rest.startswith("/") and name.split(".so")[0] not in C_LIBRARY:
            with open(rest.split(" ")[0], "rb") as file:
                found["/lib/" + name] = file.read()
    return found


def listing(arch, path):
    """The disassembly that the instruction test wants and cannot make inside a boot."""
    done = subprocess.run([OBJDUMP[arch], "--disassemble", "--wide", "--no-show-raw-insn", path],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Failed("objdump %s: %s" % (path, done.stderr.decode("utf-8", "replace")))
    # Comments would double its length.
    return b"\n".join(line.split(COMMENT[arch], 1)[0].split(b" <", 1)[0]
                      for line in done.stdout.split(b"\n") if b":\t" in line)


def aarch64_libraries(arch, progress):
    """Linker options for what Debian has no cross package of: Abseil, unpacked from arm64's."""
    if arch != "arm64":
        return []
    _, others = fetch.read_lists()
    package = others.get(("libabsl-dev", "bookworm", "arm64"))
    if package is None:
        raise fetch.Unavailable("bookworm lists no libabsl-dev for arm64")
    root = fetch.unpack(package, progress.show)
    return ["--linkopt=-L" + os.path.join(root, "usr/lib/aarch64-linux-gnu")]


def c_libraries(others, progress):
    """{directory: {path: bytes}} of the C libraries; missing ones are told on stderr."""
    found = {}
    for suite in LIBC_SUITES:
        package = others.get(("libc6", suite, "amd64"))
        try:
            if package is None:
                raise fetch.Unavailable("%s lists no libc6" % suite)
            root = fetch.unpack(package, progress.show)
        except fetch.Unavailable as error:
            fetch.warn("no C library of %s: %s" % (suite, error))
            continue
        directory = "glibc-" + package.version.split("-")[0]
        found[directory] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                if name.split(".so")[0] in C_LIBRARY:
                    path = os.path.join(folder, name)
                    if not os.path.islink(path):
                        with open(path, "rb") as file:
                            found[directory]["%s/%s" % (directory, name)] = file.read()
    return found


def archive_for(one, programs):
    """The initramfs of one boot."""
    names, more = one.files
    files = dict(more)
    files["plan"] = one.text.encode()
    for name in names:
        place = name[1:] if name.startswith("/") else "init" if name == "init" else "bin/" + name
        files[place] = programs[name]
    return initramfs.newc(files)


def boot_all(choice, boots, programs, progress, deadline):
    """The row of one kernel."""
    kernel = fetch.kernel_image(choice.package, progress.show)
    results = []
    for one in boots:
        results.append(boot.boot(choice.arch, kernel, archive_for(one, programs), one,
                                 deadline=deadline, progress=progress.of_boot(one.name)))
    return judge.row_of(choice, boots, results)


def list_kernels(choices, packages):
    """--list: what the archive offers and what would be booted."""
    chosen = {}
    for choice in choices:
        chosen.setdefault(choice.package, []).append(choice.why)
    for package in (catalogue.one_per_release(packages)
                    + catalogue.one_per_release(packages, pages_16k=True)):
        print("%-7s %-10s %-10s %-20s %5.0f MB  %s" % (
            package.arch, catalogue.version_text(package),
            catalogue.expected_class(package.arch, package.release), package.suite,
            package.size / 1e6,
            "boots: " + "; ".join(chosen[package]) if package in chosen else ""))
    for choice in choices:
        if choice.package is None:
            print("%-7s %-10s %-10s %s" % (choice.arch, "-", choice.expected, choice.why))


def arguments(argv):
    parser = argparse.ArgumentParser(prog="./pcm kernels", allow_abbrev=False,
                                     description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--arch", choices=catalogue.ARCHES, action="append")
    parser.add_argument("--class", dest="classes", action="append",
                        choices=("CACHE_OK", "NO_CACHE", "NO_RSEQ", "V2"))
    parser.add_argument("--version", dest="versions", action="append", metavar="V",
                        help="boot this release instead, such as 7.0.9")
    parser.add_argument("--topology", action="store_true",
                        help="only the odd sets of CPUs (hot-plug, gaps, 1, 64, nothing mounted), "
                        "which are part of a run for all classes")
    parser.add_argument("--list", action="store_true", help="only say what would be booted")
    parser.add_argument("--quick", action="store_true",
                        help="one kernel of four classes, shorter runs")
    parser.add_argument("--seconds", type=int, metavar="N",
                        help="length of each stress run; default 20, with --quick 3")
    parser.add_argument("--only", action="append", metavar="PATTERN",
                        help="only programs of that name inside the boots, such as preempt, "
                        "stress*")
    parser.add_argument("--limit", type=int, metavar="N",
                        help="seconds after which no further kernel is booted, and a boot ends")
    parser.add_argument("--keep", metavar="FILE",
                        help="write each row there (as --json prints them) when it is known, and "
                        "boot no kernel again of which it has a right one of the same programs")
    parser.add_argument("--xml", metavar="FILE", help="the cells as test cases, too")
    parser.add_argument("--update", action="store_true", help="fetch the package lists now")
    parser.add_argument("--json", action="store_true", help="an array of objects instead")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/kernels.md")
    parser.add_argument("--consoles", metavar="DIR", help="keep what each boot printed")
    options = parser.parse_args(argv)
    options.seconds = options.seconds or (3 if options.quick else 20)
    return options


def choose(options, packages):
    arches = options.arch or catalogue.ARCHES
    if options.versions:
        choices = catalogue.choose_versions(packages, options.versions, arches)
        if not choices:
            raise Failed("the archive offers no %s" % ", ".join(options.versions))
        if options.topology:
            choices = [choice._replace(why=catalogue.TOPOLOGY) for choice in choices]
        return choices
    choices = catalogue.choose(packages, arches, options.classes, options.quick)
    if options.quick or (options.classes and not options.topology):
        return choices
    odd = catalogue.for_topology(choices)
    return odd if options.topology else choices + odd


class Series:
    """The boots of one run, one kernel after the other."""

    def __init__(self, options, others, progress):
        self.options = options
        self.progress = progress
        self.deadline = time.monotonic() + options.limit if options.limit else float("inf")
        self.libcs = {} if options.quick else c_libraries(others, progress)
        self.kept = keep.Kept(options.keep) if options.keep else None
        self.programs = {}  # by architecture, built when the first kernel of it is to boot

    def row_for(self, choice):
        """The row of a kernel: booted, kept from an earlier run, or skipped and why."""
        if time.monotonic() > self.deadline:
            return judge.skipped(choice, "no time left")
        try:
            programs = self._programs_for(choice.arch)
            boots = self._boots_for(choice, programs)
            if not boots:
                return judge.skipped(choice, "nothing of --only runs there")
            return self._kept_or_booted(choice, boots, programs)
        except fetch.Unavailable as error:
            fetch.warn(str(error))
            return judge.skipped(choice, str(error))

    def _programs_for(self, arch):
        if arch not in self.programs:
            self.programs[arch] = built_programs(arch, self.progress)
        return self.programs[arch]

    def _boots_for(self, choice, programs):
        options = self.options
        if choice.why == catalogue.TOPOLOGY:
            boots = plan.topology_boots(choice, options.seconds)
        else:
            boots = plan.boots_for(choice, programs, self.libcs if choice.arch == "x86_64" else {},
                                   options.quick, options.seconds)
        return plan.only(boots, options.only) if options.only else boots

    def _kept_or_booted(self, choice, boots, programs):
        digest = keep.digest(choice, boots, programs)
        row = self.kept.find(digest) if self.kept else None
        note = " (kept)"
        if row is None:
            row = self._booted(choice, boots, programs, digest)
            note = ""
        if not self.options.json:
            self.progress.clear()
            tell(row, note)
        return row

    def _booted(self, choice, boots, programs, digest):
        row = boot_all(choice, boots, programs, self.progress, self.deadline)
        row["stress_seconds"] = self.options.seconds
        row["digest"] = digest
        consoles = row.pop("consoles")
        if self.options.consoles:
            keep_console(self.options.consoles, row, consoles)
        if self.kept:
            self.kept.add(row)
        return row


def run(options, progress):
    """Boots what was asked for; returns the rows."""
    progress.show("reading Debian's package lists")
    try:
        fetch.update_lists(options.update)
        packages, others = fetch.read_lists()
    except fetch.Unavailable as error:
        if not options.quick:
            raise
        fetch.warn(str(error))
        return [judge.skipped(choice, str(error))
                for choice in catalogue.choose_nothing(options.arch or catalogue.ARCHES)]
    choices = choose(options, packages)
    if options.list:
        progress.clear()
        list_kernels(choices, packages)
        return None
    series = Series(options, others, progress)
    rows = []
    for number, choice in enumerate(choices, 1):
        if choice.package is None:
            rows.append(judge.not_available(choice))
            continue
        progress.prefix = "[%d/%d] %s %s %s: " % (
            number, len(choices), choice.arch, catalogue.version_text(choice.package),
            choice.expected)
        rows.append(series.row_for(choice))
    progress.prefix = ""
    progress.clear()
    return rows


def keep_console(directory, row, consoles):
    os.makedirs(directory, exist_ok=True)
    for name, lines in consoles.items():
        path = os.path.join(directory, "%s-%s-%s.txt" % (row["arch"], row["version"],
                                                         name.replace(" ", "-")))
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def tell(row, note):
    """What is wrong with a kernel, as soon as it is known."""
    print("%s %s, %s: %s, %.0f s%s" % (row["arch"], row["version"], row["why"],
                                       "right" if row["ok"] else "WRONG", row["seconds"], note),
          file=sys.stderr)
    for text in row["wrong"]:
        print("  " + text, file=sys.stderr)
    for text in row["log"][-20:]:
        print("    " + text, file=sys.stderr)


def main(argv):
    options = arguments(argv)
    progress = Progress()
    began = time.monotonic()
    try:
        rows = run(options, progress)
    except (Failed, fetch.Unavailable, keep.Unusable) as error:
        progress.clear()
        fetch.warn(str(error))
        return 2
    if rows is None:
        return 0
    if options.xml:
        with open(options.xml, "w", encoding="utf-8") as file:
            file.write(report.junit(rows))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(report.markdown(rows) if options.markdown else report.table(rows))
    print("%s; cache %s, %.0f MB" % (report.summary(rows, time.monotonic() - began),
                                     fetch.cache_directory(), fetch.cache_bytes() / 1e6),
          file=sys.stderr if options.json else sys.stdout)
    return report.exit_status(rows)


def _terminated(*_):
    sys.exit(143)  # by the way of `finally`, which ends QEMU


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
