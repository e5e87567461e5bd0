# SPDX-License-Identifier: Apache-2.0
"""Which kernels there are, how each should behave, and which of them to boot."""

import collections
import re

import archive

ARCHES = ("x86_64", "arm64")
DEBIAN_ARCH = {"x86_64": "amd64", "arm64": "arm64"}

# How kernels behave: the release from which on, and the class. A class holds up to the next row.
# "V2": rewrites for a registration of 32 bytes, the strict mode for a longer one.
#
# The edges are those that were measured; mainline's lie between the two neighbours named.
BEHAVIOUR = {
    "x86_64": (((0,), "CACHE_OK"), ((6, 19), "NO_CACHE"), ((7, 0, 10), "V2")),
    "arm64": (((0,), "CACHE_OK"), ((6, 19), "NO_RSEQ"), ((7, 1), "V2")),
}

# Releases below this accept registrations of 32 bytes only; worth a boot of their own.
FIRST_WITH_LENGTHS = (6, 3)
# From here on arm64 aborts sections by signals, and only by them: the trap for a careless probe.
SIGNALS_ONLY = (7, 0, 10)
# rseq_debug= on the kernel command line.
FIRST_WITH_DEBUG = (6, 19)

# What a run with little time boots, one kernel of each.
QUICK = (("x86_64", "CACHE_OK"), ("x86_64", "NO_CACHE"), ("x86_64", "V2"), ("arm64", "NO_RSEQ"))

Package = collections.namedtuple(
    "Package", "name version arch size sha256 url suite release")
Choice = collections.namedtuple("Choice", "arch expected why package")


def release_of(version):
    """Upstream release of a Debian version, comparable: "7.0.10-1~bpo13+1" -> (7, 0, 10).

    A release candidate, (7, 3, -1, 7), lies below every release of its series but not below (7, 3):
    behaviour changes before the first candidate.
    """
    upstream = version.split(":")[-1].split("-")[0]
    base, _, candidate = upstream.partition("~rc")
    numbers = tuple(int(n) for n in re.findall(r"\d+", base))
    return numbers + (-1, int(candidate)) if candidate else numbers


def release_text(release):
    """(7, 0, 10) -> "7.0.10"; (7, 3, -1, 7) -> "7.3~rc7"."""
    if -1 in release:
        at = release.index(-1)
        return ".".join(map(str, release[:at])) + "~rc%d" % release[at + 1]
    return ".".join(map(str, release))


def expected_class(arch, release):
    """What BEHAVIOUR says of a release."""
    found = None
    for first, name in BEHAVIOUR[arch]:
        if release >= first:
            found = name
    return found


def modern_enough_for_debug(release):
    return release >= FIRST_WITH_DEBUG


# The small "cloud" flavour: from 6.19 on linux-binary-* holds the image alone, and linux-image-*
# next to nothing.
_KERNEL = re.compile(r"linux-(image|binary)-\d.*-cloud-(amd64|arm64)(-unsigned)?$")
# The same with pages of 16 KiB, of which there is no cloud flavour; before 6.19 they come with
# 90 MB of modules, and are left alone.
_KERNEL_16K = re.compile(r"linux-binary-\d.*-arm64-16k$")


def kernels_in(text, base_url, suite):
    """Packages with a kernel image in one Packages file."""
    for fields in archive.stanzas(text):
        name = fields.get("Package", "")
        if not (_KERNEL.match(name) or _KERNEL_16K.match(name)) or int(fields["Size"]) < 1000000:
            continue
        arch = {v: k for k, v in DEBIAN_ARCH.items()}[fields["Architecture"]]
        yield Package(name, fields["Version"], arch, int(fields["Size"]), fields["SHA256"],
                      base_url + "/" + fields["Filename"], suite, release_of(fields["Version"]))


def has_16k_pages(package):
    return package.name.endswith("-16k")


def version_text(package):
    """How a kernel is named in tables: "7.3.4", "7.3.4-16k"."""
    return release_text(package.release) + ("-16k" if has_16k_pages(package) else "")


def one_per_release(packages, pages_16k=False):
    """Newest package of each (arch, release), signed images before their unsigned twins."""
    best = {}
    for package in packages:
        if has_16k_pages(package) != pages_16k:
            continue
        key = (package.arch, package.release)
        rank = (not package.name.endswith("-unsigned"), package.version)
        if key not in best or rank > best[key][0]:
            best[key] = (rank, package)
    return sorted((package for _, package in best.values()),
                  key=lambda p: (ARCHES.index(p.arch), p.release))


TOPOLOGY = "topology"
BYTES_32 = "32 bytes only"
PAGES_16K = "16k pages"


def _spans(arch):
    """(what, class, condition on the release) of each stretch whose edges are worth a boot."""
    if arch == "x86_64":
        return ((BYTES_32, "CACHE_OK", lambda r: r < FIRST_WITH_LENGTHS),
                ("", "CACHE_OK", lambda r: r >= FIRST_WITH_LENGTHS),
                ("", "NO_CACHE", lambda r: True),
                ("", "V2", lambda r: True))
    return ((BYTES_32, "CACHE_OK", lambda r: r < FIRST_WITH_LENGTHS),
            ("", "CACHE_OK", lambda r: r >= FIRST_WITH_LENGTHS),
            ("nothing aborts", "NO_RSEQ", lambda r: r < SIGNALS_ONLY),
            ("signals alone abort", "NO_RSEQ", lambda r: r >= SIGNALS_ONLY),
            ("", "V2", lambda r: True),
            (PAGES_16K, "V2", lambda r: True))


def choose(packages, arches=ARCHES, classes=None, quick=False):
    """What to boot: both edges of every stretch; where the archive has none, package is None."""
    releases = one_per_release(packages)
    large_pages = one_per_release(packages, pages_16k=True)
    choices = []
    for arch in arches:
        for what, name, condition in _spans(arch):
            if classes and name not in classes:
                continue
            if quick and ((arch, name) not in QUICK or what in (BYTES_32, PAGES_16K)):
                continue
            here = [p for p in (large_pages if what == PAGES_16K else releases) if p.arch == arch
                    and expected_class(arch, p.release) == name and condition(p.release)]
            suffix = ", " + what if what else ""
            if not here:
                choices.append(Choice(arch, name, "not available" + suffix, None))
            elif quick or what == PAGES_16K:
                choices.append(Choice(arch, name, "newest" + suffix, here[-1]))
            else:
                choices.append(Choice(arch, name, "first" + suffix, here[0]))
                if here[-1] is not here[0]:
                    choices.append(Choice(arch, name, "last" + suffix, here[-1]))
    if quick:
        seen = set()
        choices = [c for c in choices
                   if (c.arch, c.expected) not in seen and not seen.add((c.arch, c.expected))]
    return choices


def for_topology(choices):
    """Of what was chosen, the newest of each architecture, and of those kernels to which a CPU can
    be added while they run."""
    newest = {(c.arch, c.expected == "CACHE_OK"): c for c in choices
              if c.package and not has_16k_pages(c.package)}
    return [newest[key]._replace(why=TOPOLOGY)
            for key in (("x86_64", True), ("x86_64", False), ("arm64", False)) if key in newest]


def choose_nothing(arches=ARCHES):
    """The choices of a quick run where the archive cannot be asked."""
    return [Choice(arch, name, "quick", None) for arch, name in QUICK if arch in arches]


def choose_versions(packages, versions, arches=ARCHES):
    """The kernels whose release or Debian version is named."""
    choices = []
    for arch in arches:
        for package in one_per_release(packages) + one_per_release(packages, pages_16k=True):
            if package.arch == arch and (version_text(package) in versions
                                         or package.version in versions):
                choices.append(Choice(arch, expected_class(arch, package.release), "asked for",
                                      package))
    return choices
