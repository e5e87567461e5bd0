# SPDX-License-Identifier: Apache-2.0
"""The allocators compared: glibc, Debian's packages of the peers, pcmalloc, others by path."""

import dataclasses
import glob
import os
import subprocess

import debian

# name: (Debian package, the library it installs)
PEERS = {
    "jemalloc": ("libjemalloc2", "libjemalloc.so.2"),
    "mimalloc": ("libmimalloc2.0", "libmimalloc.so.2"),
    "tcmalloc_minimal": ("libtcmalloc-minimal4", "libtcmalloc_minimal.so.4"),
}
SUBJECT = "pcmalloc"
STATIC = "pcmalloc-static"


class AllocatorError(Exception):
    """An allocator that was asked for cannot be had."""


@dataclasses.dataclass(frozen=True)
class Allocator:
    name: str
    preload: str = ""  # path; empty: what the program is linked with
    static: bool = False  # linked into micro_static, so in the micro suite only


def find_library(soname):
    """The file that the loader would find, or None."""
    places = ["/usr/local/lib", "/usr/lib", "/lib", "/usr/lib64"]
    places += glob.glob("/usr/lib/*-linux-gnu*")
    for place in places:
        path = os.path.join(place, soname)
        if os.path.exists(path):
            return path
    return None


def resolve(spec, library, bin_dir):
    """The allocators of an --allocators value; `library` is libpcmalloc.so or None.

    An empty spec means everything that can be had; what is named must exist. Returns (allocators,
    notes), the notes telling what was left out.
    """
    notes = []
    explicit = bool(spec)
    static_binary = os.path.join(bin_dir, "micro_static")
    names = spec.split(",") if explicit else ["glibc", *PEERS, SUBJECT, STATIC]
    found = []
    for item in names:
        name, _, path = item.strip().partition("=")
        reason = None
        if path:
            found.append(Allocator(name, os.path.abspath(path)))
        elif name == "glibc":
            found.append(Allocator(name))
        elif name in PEERS:
            package, soname = PEERS[name]
            file = find_library(soname)
            if file is None:
                reason = debian.ensure([package])
                file = find_library(soname)
            if file:
                found.append(Allocator(name, file))
            else:
                reason = reason or "%s not found" % soname
        elif name == SUBJECT:
            if library and os.path.exists(library):
                found.append(Allocator(name, os.path.abspath(library)))
            else:
                reason = "libpcmalloc.so is not built"
        elif name == STATIC:
            if os.path.exists(static_binary):
                found.append(Allocator(name, static=True))
            else:
                reason = "micro_static is not built"
        else:
            raise AllocatorError("unknown allocator %r; give others as name=/path/lib.so" % name)
        if reason and explicit:
            raise AllocatorError("%s: %s" % (name, reason))
        if reason:
            notes.append("%s left out: %s" % (name, reason))
    if len({a.name for a in found}) != len(found):
        raise AllocatorError("two allocators have the same name")
    for allocator in found:
        check_preload(allocator)
    return found, notes


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
    if not os.path.exists(allocator.preload):
        raise AllocatorError("%s: no file %s" % (allocator.name, allocator.preload))
    done = subprocess.run(["/bin/true"], env=environment(allocator), stderr=subprocess.PIPE,
                          timeout=30, check=False)
    if done.returncode != 0 or b"cannot be preloaded" in done.stderr:
        raise AllocatorError("%s: cannot be preloaded: %s" %
                             (allocator.name, done.stderr.decode(errors="replace").strip()))
