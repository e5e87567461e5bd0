# SPDX-License-Identifier: Apache-2.0
"""The kernels and libraries that Debian's suites offer, kept in a cache outside of the tree."""

import glob
import json
import os
import sys

import archive
import catalogue
from archive import Unavailable

SUITES = (
    ("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian", "bookworm-backports"),
    ("debian-security", "bookworm-security"),
    ("debian", "trixie"), ("debian", "trixie-updates"), ("debian", "trixie-backports"),
    ("debian-security", "trixie-security"),
    ("debian", "sid"), ("debian", "experimental"),
)


def cache_directory():
    return archive.cache_directory("kernels")


def cache_bytes():
    total = 0
    for directory, _, files in os.walk(cache_directory()):
        total += sum(os.lstat(os.path.join(directory, name)).st_size for name in files)
    return total


def _lists():
    return archive.Lists(os.path.join(cache_directory(), "apt"), SUITES, ("amd64", "arm64"))


def update_lists(force=False):
    """Fetches the package lists into a directory of our own, checked by apt as always."""
    _lists().update(warn, force)


def _read_all_lists():
    kernels = []
    others = {}
    for text, base, suite in _lists().texts():
        kernels += catalogue.kernels_in(text, base, suite)
        for name in ("libc6", "libabsl-dev"):
            for fields in archive.stanzas_of(text, name):
                others[name, suite, fields["Architecture"]] = catalogue.Package(
                    name, fields["Version"], fields["Architecture"], int(fields["Size"]),
                    fields["SHA256"], base + "/" + fields["Filename"], suite, ())
    if not kernels:
        raise Unavailable("the package lists name no kernel")
    return kernels, others


def read_lists():
    """(kernel packages, {(name, suite, Debian architecture): Package} of the libraries).

    Remembered as JSON beside the lists: reading 60 MB of them takes many seconds.
    """
    apt = os.path.join(cache_directory(), "apt")
    short = os.path.join(apt, "catalogue.json")
    updated = os.path.join(apt, "updated")
    newest = max(os.stat(path).st_mtime for path in (updated, __file__, catalogue.__file__,
                                                     archive.__file__))
    if os.path.exists(short) and os.stat(short).st_mtime >= newest:
        with open(short, encoding="utf-8") as file:
            known = json.load(file)
    else:
        kernels, others = _read_all_lists()
        known = {"kernels": kernels, "others": list(others.items())}
        with open(short + ".new", "w", encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(short + ".new", short)

    def package(fields):
        return catalogue.Package(*fields[:-1], tuple(fields[-1]))

    return ([package(fields) for fields in known["kernels"]],
            {tuple(key): package(fields) for key, fields in known["others"]})


def unpack(package, progress):
    """Directory with the package's files."""
    # A kernel's modules are the bulk of it, and not one is loaded.
    return archive.unpack(package, cache_directory(), progress, drop=(
        "lib/modules/*/kernel", "usr/lib/modules/*/kernel", "usr/share/doc"))


def kernel_image(package, progress):
    """Path of the bootable image."""
    root = unpack(package, progress)
    # Under /boot, or since 7.2 beside the modules.
    found = [path for place in ("boot", "usr/lib/modules/*", "lib/modules/*")
             for path in glob.glob(os.path.join(root, place, "vmlinu*"))]
    if len(found) != 1:
        raise Unavailable("%s holds %d kernel images" % (package.name, len(found)))
    return found[0]


def warn(text):
    print("kernels: " + text, file=sys.stderr)
