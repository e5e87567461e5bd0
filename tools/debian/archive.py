# SPDX-License-Identifier: Apache-2.0
"""Debian's package lists and packages, kept outside of the tree; nothing is ever installed."""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import time
import urllib.request

MIRROR = "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FRESH_SECONDS = 24 * 3600
RETRY_SECONDS = 1800  # after an update that failed in part


class Unavailable(Exception):
    """The archive could not be asked, or did not give what it lists."""


def cache_directory(part):
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "pcmalloc", part)


def _run(argv, **options):
    """subprocess.run, where a program that is not there makes the archive unavailable."""
    try:
        return subprocess.run(argv, check=False, **options)
    except FileNotFoundError as error:
        raise Unavailable("%s: not found; is this a Debian system?" % argv[0]) from error


class Lists:
    """Package lists of some suites in a directory of our own, fetched and checked by apt.

    `suites` are pairs like ("debian", "trixie"), `architectures` Debian's names of them. `patience`
    is how often a failed fetch is tried again, and after how many seconds of silence it has failed.
    """

    def __init__(self, directory, suites, architectures, mirror=MIRROR, fresh=FRESH_SECONDS,
                 patience=(2, 30)):
        self.directory, self.suites, self.architectures = directory, suites, architectures
        self.mirror, self.fresh = mirror, fresh
        self.retries, self.timeout = patience
        self.stamp = os.path.join(directory, "updated")

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _options(self):
        options = ["Dir::Etc::sourcelist=" + self._path("sources.list"),
                   "Dir::Etc::sourceparts=/dev/null", "Dir::State::lists=" + self._path("lists"),
                   "Dir::State::status=" + self._path("status"),
                   "Dir::Cache=" + self._path("cache"),
                   "APT::Architecture=" + self.architectures[0], "APT::Sandbox::User=",
                   "Acquire::Languages=none", "Acquire::Retries=%d" % self.retries,
                   "Acquire::http::Timeout=%d" % self.timeout]
        options += ["APT::Architectures::=" + name for name in self.architectures]
        return [word for option in options for word in ("-o", option)]

    def update(self, warn, force=False):
        """Fetches the lists unless they are fresh; `warn` gets what failed in part."""
        if (not force and os.path.exists(self.stamp)
                and time.time() - os.stat(self.stamp).st_mtime < self.fresh):
            return
        for name in ("lists/partial", "cache/archives/partial"):
            os.makedirs(self._path(name), exist_ok=True)
        with open(self._path("sources.list"), "w", encoding="utf-8") as file:
            for archive, suite in self.suites:
                file.write("deb [signed-by=%s] %s/%s %s main\n" %
                           (KEYRING, self.mirror, archive, suite))
        open(self._path("status"), "a", encoding="utf-8").close()
        done = _run(["apt-get", "-q"] + self._options() + ["update"], text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        failed = done.returncode != 0 or "\nE:" in done.stdout or "Failed to fetch" in done.stdout
        if failed:
            said = re.findall(r"^(?:E:|W: Failed) .*", done.stdout, re.M)
            problem = "apt-get update: " + (said[0] if said else done.stdout.strip()[-400:])
            if not self._files():
                raise Unavailable(problem)
            # A suite that has gone, or lists of an earlier run: better than none.
            warn(problem + "\nonly the lists that are there are used")
        with open(self.stamp, "w", encoding="utf-8"):
            pass
        if failed:
            soon = time.time() - self.fresh + RETRY_SECONDS
            os.utime(self.stamp, (soon, soon))

    def _files(self):
        return sorted(glob.glob(os.path.join(self._path("lists"), "*_Packages*")))

    def texts(self):
        """(text, base URL, suite) of every list that was fetched."""
        for path in self._files():
            match = re.match(r"(.+?)_(debian(?:-security)?)_dists_(.+?)_main_binary-\w+_Packages",
                             os.path.basename(path))
            done = _run(["/usr/lib/apt/apt-helper", "cat-file", path], stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
            if match is None or done.returncode != 0:
                raise Unavailable("cannot read the package list %s" % path)
            yield (done.stdout.decode("utf-8", "replace"),
                   "%s/%s" % (self.mirror, match.group(2)), match.group(3))


def stanzas(text):
    """The stanzas of a Packages file as dictionaries of their one-line fields."""
    for block in text.split("\n\n"):
        fields = {}
        for line in block.split("\n"):
            key, colon, value = line.partition(": ")
            if colon and not key.startswith(" "):
                fields[key] = value
        if fields:
            yield fields


def stanzas_of(text, name):
    """Those of one package; far quicker than to take all of a list apart."""
    for match in re.finditer(r"^Package: %s$" % re.escape(name), text, re.M):
        end = text.find("\n\n", match.start())
        yield from stanzas(text[match.start():end if end >= 0 else len(text)])


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def download(package, directory, progress):
    """Path of the .deb in `directory`, fetched if it is not there; its digest is the list's.

    A package has name, version, arch, size, sha256 and url.
    """
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, os.path.basename(package.url))
    if os.path.exists(path) and os.path.getsize(path) == package.size:
        return path
    progress("downloading %s, %.1f MB" % (os.path.basename(path), package.size / 1e6))
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


def place_of(package, cache):
    """Where unpack() puts it. The colon of an epoch would end a path in LD_PRELOAD."""
    return os.path.join(cache, "unpacked", ("%s_%s_%s" % (
        package.name, package.version, package.arch)).replace(":", "%3a"))


def unpack(package, cache, progress, drop=()):
    """Directory with the package's files, without those that the patterns `drop` name."""
    directory = place_of(package, cache)
    if os.path.isdir(directory):
        return directory
    deb = download(package, os.path.join(cache, "debs"), progress)
    fresh = "%s.%d" % (directory, os.getpid())
    os.makedirs(fresh)
    done = _run(["dpkg", "-x", deb, fresh], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        shutil.rmtree(fresh)
        raise Unavailable("dpkg -x %s: %s" % (deb, done.stderr.strip()))
    for bulk in drop:
        for path in glob.glob(os.path.join(fresh, bulk)):
            shutil.rmtree(path)
    os.rename(fresh, directory)
    os.unlink(deb)
    return directory
