# SPDX-License-Identifier: Apache-2.0
"""Peers in newer builds than the system offers: unpacked from other suites of Debian into a cache.

Nothing is installed. What is in the cache is used where the archive cannot be reached.
"""

import collections
import functools
import glob
import os
import platform
import re
import subprocess

import archive

SUITES = (("debian", "trixie"), ("debian", "sid"))
LISTS_FRESH_SECONDS = 7 * 24 * 3600
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}

# name: (packages that hold it in one suite or another, the library)
IN_ARCHIVE = {
    "jemalloc": (("libjemalloc2",), "libjemalloc.so.2"),
    "mimalloc3": (("libmimalloc3",), "libmimalloc.so.3"),
    "rpmalloc": (("librpmalloc1",), "librpmalloc.so.1"),
    "tcmalloc_minimal": (("libtcmalloc-minimal4t64",), "libtcmalloc_minimal.so.4"),
}

Package = collections.namedtuple("Package", "name version arch size sha256 url suite libc")


def needed_libc(depends):
    """The glibc that a Depends field asks for: "libc6 (>= 2.34), ..." -> (2, 34)."""
    match = re.search(r"(?:^|[ ,])libc6 \(>= (\d+)\.(\d+)", depends)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def running_libc():
    try:
        match = re.match(r"glibc (\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except ValueError:
        match = None
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def packages_in(text, base_url, suite, names):
    """The packages `names` of one Packages file."""
    for name in names:
        for fields in archive.stanzas_of(text, name):
            yield Package(name, fields["Version"], fields["Architecture"], int(fields["Size"]),
                          fields["SHA256"], base_url + "/" + fields["Filename"], suite,
                          needed_libc(fields.get("Depends", "")))


def _compare(first, second):
    """Order of Debian's versions."""
    for relation, order in (("gt", 1), ("lt", -1)):
        try:
            done = subprocess.run(["dpkg", "--compare-versions", first.version, relation,
                                   second.version], check=False)
        except FileNotFoundError as error:
            raise archive.Unavailable("dpkg: not found; is this a Debian system?") from error
        if done.returncode == 0:
            return order
    return 0


def newest_first(packages):
    return sorted(packages, key=functools.cmp_to_key(_compare), reverse=True)


def choose(packages, libc):
    """(those that this C library can load, newest first; why not more, or None)."""
    fitting = newest_first(p for p in packages if p.libc <= libc)
    if fitting or not packages:
        return fitting, None
    oldest = min(packages, key=lambda p: p.libc)
    return [], "%s %s of %s needs glibc %d.%d, here is %d.%d" % (
        oldest.name, oldest.version, oldest.suite, *oldest.libc, *libc)


def unpacked(cache, names, arch):
    """The packages that earlier runs left in the cache; of which suite is not known any more."""
    for name in names:
        for path in glob.glob(os.path.join(cache, "unpacked", "%s_*_%s" % (name, arch))):
            version = os.path.basename(path)[len(name) + 1:-len(arch) - 1].replace("%3a", ":")
            yield Package(name, version, arch, 0, "", "", None, (0, 0))


class Archive:
    """Where peers come from. `check(path)` raises ValueError if a library cannot be preloaded."""

    def __init__(self, check, say, cache=None, mirror=archive.MIRROR, suites=SUITES, libc=None):
        self.check, self.say = check, say
        self.cache = cache or archive.cache_directory("peers")
        self.arch = ARCHITECTURE.get(platform.machine())
        self.libc = libc or running_libc()
        self.lists = archive.Lists(os.path.join(self.cache, "apt"), suites, (self.arch,), mirror,
                                   LISTS_FRESH_SECONDS, patience=(0, 15))
        self.texts, self.problem = None, None

    def _listed(self, names, suite):
        if self.texts is None:
            self.texts = []
            try:
                self.lists.update(self.say)
                self.texts = list(self.lists.texts())
            except (archive.Unavailable, OSError) as error:
                self.problem = " ".join(str(error).split())
        return [p for text, base, of in self.texts for p in packages_in(text, base, of, names)
                if p.arch == self.arch and suite in (None, p.suite)]

    def find(self, name, suite=None):
        """(path, package and version) of the newest build that this system can load, of `suite`
        if named.

        Raises archive.Unavailable with what stands against each.
        """
        if self.arch is None:
            raise archive.Unavailable("Debian builds no peers for %s" % platform.machine())
        names, soname = IN_ARCHIVE[name]
        listed = self._listed(names, suite)
        fitting, reason = choose(listed, self.libc)
        reasons = [r for r in (self.problem, reason) if r]
        if not listed and not self.problem:
            reasons.append("no %s in %s" % (" or ".join(names),
                                            suite or ", ".join(s for _, s in self.lists.suites)))
        if suite is None:
            known = {(p.name, p.version) for p in listed}
            fitting += newest_first(p for p in unpacked(self.cache, names, self.arch)
                                    if (p.name, p.version) not in known)
        for package in fitting:
            try:
                root = archive.unpack(package, self.cache, self.say, drop=("usr/share",))
                path = library_in(root, soname)
                self.check(path)
                return path, "%s %s%s" % (package.name, package.version,
                                          " of " + package.suite if package.suite else "")
            except (archive.Unavailable, ValueError, OSError) as error:
                reasons.append(" ".join(str(error).split()))
        raise archive.Unavailable("; ".join(reasons))


def library_in(root, soname):
    found = glob.glob(os.path.join(root, "usr", "lib", "**", soname), recursive=True)
    if not found:
        raise archive.Unavailable("no %s in %s" % (soname, root))
    return min(found, key=len)
