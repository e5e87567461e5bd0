# SPDX-License-Identifier: Apache-2.0
"""The allocators compared: glibc, Debian's packages of the peers (the system's, and newer ones that
only this program sees), pcmalloc, others by path."""

import dataclasses
import glob
import os
import subprocess
import sys

import archive
import install
import peers

# name: (Debian package, the library it installs)
PEERS = {
    "jemalloc": ("libjemalloc2", "libjemalloc.so.2"),
    "mimalloc": ("libmimalloc2.0", "libmimalloc.so.2"),
    "tcmalloc_minimal": ("libtcmalloc-minimal4", "libtcmalloc_minimal.so.4"),
}
SUBJECT = "pcmalloc"
STATIC = "pcmalloc-static"


# What an empty --allocators means, in the tables' order.
DEFAULT = ("glibc", "jemalloc", "mimalloc", "mimalloc3", "rpmalloc", "tcmalloc_minimal", SUBJECT,
           STATIC)


class AllocatorError(ValueError):
    """An allocator that was asked for cannot be had."""


@dataclasses.dataclass(frozen=True)
class Allocator:
    name: str
    preload: str = ""  # path; empty: what the program is linked with
    static: bool = False  # linked into micro_static, so in the micro suite only
    version: str = ""  # of its package


def find_library(soname):
    """The file that the loader would find, or None."""
    places = ["/usr/local/lib", "/usr/lib", "/lib", "/usr/lib64"]
    places += glob.glob("/usr/lib/*-linux-gnu*")
    for place in places:
        path = os.path.join(place, soname)
        if os.path.exists(path):
            return path
    return None


def owner(path):
    """"package version" of an installed file, or an empty string."""
    # dpkg knows some files by the name that they had before /lib became a link.
    for name in (path, path[len("/usr"):] if path.startswith("/usr/lib") else path):
        try:
            done = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True,
                                  check=False)
            package = done.stdout.partition(": ")[0]
            if done.returncode == 0 and "," not in package:
                done = subprocess.run(["dpkg-query", "-W", "-f=${Package} ${Version}", package],
                                      capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    return done.stdout
        except FileNotFoundError:
            return ""
    return ""


def installed(name):
    """A peer as the system has it; installs it if it can. Raises AllocatorError."""
    package, soname = PEERS[name]
    reason = None
    file = find_library(soname)
    if file is None:
        reason = install.ensure([package])
        file = find_library(soname)
    if file is None:
        raise AllocatorError(reason or "%s not found" % soname)
    return Allocator(name, file, version=owner(file))


def from_archive(label, source):
    """A peer as another suite has it: NAME or NAME@SUITE. Raises AllocatorError."""
    name, _, suite = label.partition("@")
    if name not in peers.IN_ARCHIVE:
        raise AllocatorError("from a suite come only: %s" % ", ".join(peers.IN_ARCHIVE))
    known = [s for _, s in source.lists.suites]
    if suite and suite not in known:
        raise AllocatorError("unknown suite; known are %s" % ", ".join(known))
    try:
        path, version = source.find(name, suite or None)
    except archive.Unavailable as error:
        raise AllocatorError(str(error)) from error
    return Allocator(label, path, version=version)


def one(name, library, bin_dir, source):
    """The allocator of that name; raises AllocatorError where it cannot be had."""
    if name == "glibc":
        return Allocator(name, version=owner(find_library("libc.so.6") or ""))
    if name in PEERS:
        return installed(name)
    if name == SUBJECT:
        if not library or not os.path.exists(library):
            raise AllocatorError("libpcmalloc.so is not built")
        return Allocator(name, os.path.abspath(library))
    if name == STATIC:
        if not os.path.exists(os.path.join(bin_dir, "micro_static")):
            raise AllocatorError("micro_static is not built")
        return Allocator(name, static=True)
    return from_archive(name, source)


def say(text):
    print("pcm bench: " + text, file=sys.stderr)


def resolve(spec, library, bin_dir, source=None):
    """The allocators of an --allocators value; `library` is libpcmalloc.so or None.

    An empty spec means everything that can be had; what is named must exist. Returns (allocators,
    notes), the notes telling what was left out. `source` is where peers of other suites come from.
    """
    source = source or peers.Archive(lambda path: check_preload(
        Allocator(os.path.basename(path), path)), say)
    found, notes = [], []
    for item in spec.split(",") if spec else DEFAULT:
        name, _, path = item.strip().partition("=")
        if not path and name.partition("@")[0] not in {*DEFAULT, *peers.IN_ARCHIVE}:
            raise AllocatorError("unknown allocator %r; give others as name=/path/lib.so" % name)
        try:
            if path:
                found.append(Allocator(name, os.path.abspath(path), version=owner(path)))
            else:
                found.append(one(name, library, bin_dir, source))
        except AllocatorError as error:
            if spec:
                raise AllocatorError("%s: %s" % (name, error)) from error
            notes.append("%s left out: %s" % (name, error))
    if len({a.name for a in found}) != len(found):
        raise AllocatorError("two allocators have the same name")
    for allocator in found:
        check_preload(allocator)
    return found, notes


def describe(allocator):
    """Version and place, for the heading of the results."""
    place = allocator.preload or ("linked statically" if allocator.static else "the C library's")
    return ", ".join(part for part in (allocator.version, place) if part)


def environment(allocator, base=None):
    """The environment of a benchmark process. PCMALLOC_CONF and the like pass through."""
    env = dict(os.environ if base is None else base)
    env.pop("LD_PRELOAD", None)
    env["LC_ALL"] = "C"
    if allocator.preload:
        env["LD_PRELOAD"] = allocator.preload
    return env


def check_preload(allocator):
    """The loader only warns about a library it cannot preload, and then measures glibc."""
    if not allocator.preload:
        return
    if set(allocator.preload) & set(" :\t\n"):
        raise AllocatorError("%s: the loader cannot preload a path with blanks or colons: %s" %
                             (allocator.name, allocator.preload))
    if not os.path.exists(allocator.preload):
        raise AllocatorError("%s: no file %s" % (allocator.name, allocator.preload))
    done = subprocess.run(["/bin/true"], env=environment(allocator), stderr=subprocess.PIPE,
                          timeout=30, check=False)
    if done.returncode != 0 or b"cannot be preloaded" in done.stderr:
        raise AllocatorError("%s: cannot be preloaded: %s" %
                             (allocator.name, done.stderr.decode(errors="replace").strip()))
