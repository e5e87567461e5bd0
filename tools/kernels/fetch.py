# SPDX-License-Identifier: Apache-2.0
"""Debian's package lists and packages, kept outside of the tree; nothing is ever installed."""

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import catalogue

MIRROR = "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = (
    ("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian", "bookworm-backports"),
    ("debian-security", "bookworm-security"),
    ("debian", "trixie"), ("debian", "trixie-updates"), ("debian", "trixie-backports"),
    ("debian-security", "trixie-security"),
    ("debian", "sid"), ("debian", "experimental"),
)
LISTS_FRESH_SECONDS = 24 * 3600
RETRY_SECONDS = 1800  # after an update that failed in part


class Unavailable(Exception):
    """The archive could not be asked, or did not give what it lists."""


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "pcmalloc", "kernels")


def cache_bytes():
    total = 0
    for directory, _, files in os.walk(cache_directory()):
        total += sum(os.lstat(os.path.join(directory, name)).st_size for name in files)
    return total


def _apt_options(apt):
    return ["-o", "Dir::Etc::sourcelist=" + os.path.join(apt, "sources.list"),
            "-o", "Dir::Etc::sourceparts=/dev/null",
            "-o", "Dir::State::lists=" + os.path.join(apt, "lists"),
            "-o", "Dir::State::status=" + os.path.join(apt, "status"),
            "-o", "Dir::Cache=" + os.path.join(apt, "cache"),
            "-o", "APT::Architecture=amd64",
            "-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=arm64",
            "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none",
            "-o", "Acquire::Retries=2"]


def update_lists(force=False):
    """Fetches the package lists into a directory of our own, checked by apt as always."""
    apt = os.path.join(cache_directory(), "apt")
    stamp = os.path.join(apt, "updated")
    if (not force and os.path.exists(stamp)
            and time.time() - os.stat(stamp).st_mtime < LISTS_FRESH_SECONDS):
        return
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(apt, name), exist_ok=True)
    with open(os.path.join(apt, "sources.list"), "w", encoding="utf-8") as file:
        for archive, suite in SUITES:
            file.write("deb [signed-by=%s] %s/%s %s main\n" % (KEYRING, MIRROR, archive, suite))
    open(os.path.join(apt, "status"), "a", encoding="utf-8").close()
    done = subprocess.run(["apt-get", "-q"] + _apt_options(apt) + ["update"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    failed = done.returncode != 0 or "\nE:" in done.stdout or "Failed to fetch" in done.stdout
    if failed:
        problem = "apt-get update: " + done.stdout.strip()[-400:]
        if not glob.glob(os.path.join(apt, "lists", "*_Packages*")):
            raise Unavailable(problem)
        # A suite that has gone, or lists of an earlier run: better than none.
        warn(problem + "\nonly the lists that are there are used")
    with open(stamp, "w", encoding="utf-8"):
        pass
    if failed:
        soon = time.time() - LISTS_FRESH_SECONDS + RETRY_SECONDS
        os.utime(stamp, (soon, soon))


def _packages_files():
    """(text, base URL, suite) of every list that was fetched."""
    lists = os.path.join(cache_directory(), "apt", "lists")
    for path in sorted(glob.glob(os.path.join(lists, "*_Packages*"))):
        match = re.match(r"(.+?)_(debian(?:-security)?)_dists_(.+?)_main_binary-\w+_Packages",
                         os.path.basename(path))
        done = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if match is None or done.returncode != 0:
            raise Unavailable("cannot read the package list %s" % path)
        yield (done.stdout.decode("utf-8", "replace"), "%s/%s" % (MIRROR, match.group(2)),
               match.group(3))


def _read_all_lists():
    kernels = []
    others = {}
    for text, base, suite in _packages_files():
        kernels += catalogue.kernels_in(text, base, suite)
        for name in ("libc6", "libabsl-dev"):
            for match in re.finditer(r"^Package: %s$" % name, text, re.M):
                fields = next(catalogue.stanzas(text[match.start():].split("\n\n", 1)[0]))
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
    newest = max(os.stat(path).st_mtime for path in (updated, __file__, catalogue.__file__))
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


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def download(package, progress):
    """Path of the package's .deb, fetched if it is not there; its digest is the list's."""
    directory = os.path.join(cache_directory(), "debs")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, os.path.basename(package.url))
    if os.path.exists(path) and os.path.getsize(path) == package.size:
        return path
    progress("downloading %s, %.0f MB" % (os.path.basename(path), package.size / 1e6))
    part = "%s.%d.part" % (path, os.getpid())
    last = None
    for _ in range(2):
        try:
            with urllib.request.urlopen(package.url, timeout=60) as source, open(part, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if _sha256(part) != package.sha256:
                raise Unavailable("digest of %s differs from the list's" % package.url)
            os.replace(part, path)
            return path
        except (OSError, Unavailable) as error:
            last = error
            if os.path.exists(part):
                os.unlink(part)
    raise Unavailable("%s: %s" % (package.url, last))


def unpack(package, progress):
    """Directory with the package's files."""
    directory = os.path.join(cache_directory(), "unpacked",
                             "%s_%s_%s" % (package.name, package.version, package.arch))
    if os.path.isdir(directory):
        return directory
    deb = download(package, progress)
    fresh = "%s.%d" % (directory, os.getpid())
    os.makedirs(fresh)
    done = subprocess.run(["dpkg", "-x", deb, fresh], stderr=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        shutil.rmtree(fresh)
        raise Unavailable("dpkg -x %s: %s" % (deb, done.stderr.strip()))
    # A kernel's modules are the bulk of it, and not one is loaded.
    for bulk in ("lib/modules/*/kernel", "usr/lib/modules/*/kernel", "usr/share/doc"):
        for path in glob.glob(os.path.join(fresh, bulk)):
            shutil.rmtree(path)
    os.rename(fresh, directory)
    os.unlink(deb)
    return directory


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
