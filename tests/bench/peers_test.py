# SPDX-License-Identifier: Apache-2.0
"""Which build of a peer is taken, and what happens where none can be had."""

import dataclasses
import hashlib
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
import unittest

from tests.testing import cases
import allocators
import archive
import peers

STANZA = """Package: %s
Version: %s
Architecture: %s
Depends: %s
Description: an allocator
 Package: librpmalloc1 is not this one
Filename: pool/%s_%s.deb
Size: %d
SHA256: %s
"""


def stanza(name, version, libc, arch="amd64", size=7, sha256="0" * 64):
    return STANZA % (name, version, arch, "libgcc-s1 (>= 3.0), libc6 (>= %s)" % libc, name, version,
                     size, sha256)


OLD = "\n".join([stanza("libmimalloc-dev", "3.9", "2.34"),
                 stanza("libmimalloc3", "3.0.1+ds-2.1", "2.34"),
                 stanza("libmimalloc30", "30", "2.34")])
NEW = "\n".join([stanza("libmimalloc3", "3.10.0+ds-1", "2.38"),
                 stanza("libmimalloc3", "3.6.0+ds-1", "2.34"),
                 stanza("librpmalloc1", "2.0.1-1", "2.38"),
                 stanza("libjemalloc2", "1:5.3", "2.10", arch="arm64")])


def packages(*names):
    return [p for text, suite in ((OLD, "trixie"), (NEW, "sid"))
            for p in peers.packages_in(text, "http://archive.invalid/debian", suite, names)]


class Choice(unittest.TestCase):
    def test_fields(self):
        package = packages("libmimalloc3")[0]
        self.assertEqual(package, peers.Package(
            "libmimalloc3", "3.0.1+ds-2.1", "amd64", 7, "0" * 64,
            "http://archive.invalid/debian/pool/libmimalloc3_3.0.1+ds-2.1.deb", "trixie", (2, 34)))
        self.assertEqual([p.name for p in packages("librpmalloc1")], ["librpmalloc1"])

    def test_newest_that_loads(self):
        for libc, wanted in (((2, 41), ["3.10.0+ds-1", "3.6.0+ds-1", "3.0.1+ds-2.1"]),
                             ((2, 36), ["3.6.0+ds-1", "3.0.1+ds-2.1"]), ((2, 33), [])):
            found, reason = peers.choose(packages("libmimalloc3"), libc)
            self.assertEqual([p.version for p in found], wanted, libc)
            self.assertEqual(reason is None, bool(wanted))

    def test_what_is_too_new_is_told(self):
        found, reason = peers.choose(packages("librpmalloc1"), (2, 36))
        self.assertEqual(found, [])
        for word in ("librpmalloc1", "2.0.1-1", "sid", "2.38", "2.36"):
            self.assertIn(word, reason)

    def test_needed_libc(self):
        for text, wanted in (("libc6 (>= 2.34)", (2, 34)), ("libc6 (>= 2.9), x", (2, 9)),
                             ("a, libc6 (>= 2.38), b", (2, 38)), ("libc6-dev (>= 2.40)", (0, 0)),
                             ("", (0, 0))):
            self.assertEqual(peers.needed_libc(text), wanted)
        self.assertGreater((2, 38), peers.needed_libc("libc6 (>= 2.9)"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@dataclasses.dataclass
class FakeLists:
    """Lists that were fetched."""

    text: str
    base: str
    suites: tuple = (("debian", "sid"),)

    def update(self, _):
        pass

    def texts(self):
        return [(self.text, self.base, "sid")]


class Fetching(unittest.TestCase):
    """With an archive of our own on the loopback device, or one that refuses."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.cache = os.path.join(self.directory, "cache")
        self.said, self.checked = [], []

    def archive(self, lists=None, libc=(2, 36), refused=()):
        def check(path):
            self.checked.append(path)
            if any(word in path for word in refused):
                raise ValueError("%s cannot be preloaded" % path)

        source = peers.Archive(check, self.said.append, self.cache, mirror="http://127.0.0.1:1",
                               libc=libc)
        source.arch = "amd64"
        if lists:
            source.lists = lists
        return source

    def deb(self, version, damaged=False):
        """A package in the served folder; its stanza."""
        root = os.path.join(self.directory, "root-" + version)
        os.makedirs(root + "/DEBIAN")
        os.makedirs(root + "/usr/lib/x86_64-linux-gnu")
        with open(root + "/DEBIAN/control", "w", encoding="ascii") as file:
            file.write("Package: libmimalloc3\nVersion: %s\nArchitecture: amd64\n"
                       "Maintainer: x <x@x>\nDescription: x\n" % version)
        with open(root + "/usr/lib/x86_64-linux-gnu/libmimalloc.so.3", "w",
                  encoding="ascii") as file:
            file.write(version)
        os.makedirs(self.directory + "/pool", exist_ok=True)
        path = "%s/pool/libmimalloc3_%s.deb" % (self.directory, version)
        subprocess.run(["dpkg-deb", "-b", root, path], check=True, stdout=subprocess.DEVNULL)
        with open(path, "rb") as file:
            data = file.read()
        if damaged:
            with open(path, "r+b") as file:
                file.write(b"?")
        return stanza("libmimalloc3", version, "2.34", size=len(data),
                      sha256=hashlib.sha256(data).hexdigest())

    def serve(self):
        """Base URL of the folder."""
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), lambda *a: Quiet(*a, directory=self.directory))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def stop():
            server.shutdown()
            thread.join()
            server.server_close()

        self.addCleanup(stop)
        return "http://127.0.0.1:%d" % server.server_port

    def content(self, path):
        with open(path, encoding="ascii") as file:
            return file.read()

    def test_newest_is_fetched_once_and_used_offline(self):
        if shutil.which("dpkg-deb") is None:
            self.skipTest("no dpkg-deb here")
        text = "\n".join([self.deb("3.6"), self.deb("3.10")])
        path, version = self.archive(FakeLists(text, self.serve())).find("mimalloc3")
        self.assertEqual((self.content(path), version), ("3.10", "libmimalloc3 3.10 of sid"))
        self.assertEqual(len(self.said), 1)
        self.assertEqual(os.listdir(self.cache + "/debs"), [])
        # Another program, no network: first with the lists of then, then without any.
        gone = FakeLists(text, "http://127.0.0.1:1")
        self.assertEqual(self.archive(gone).find("mimalloc3"), (path, version))
        self.assertEqual(self.archive().find("mimalloc3"), (path, "libmimalloc3 3.10"))

    def test_next_one_where_the_newest_does_not_load(self):
        if shutil.which("dpkg-deb") is None:
            self.skipTest("no dpkg-deb here")
        lists = FakeLists("\n".join([self.deb("3.6"), self.deb("3.10")]), self.serve())
        path, _ = self.archive(lists, refused=["3.10"]).find("mimalloc3")
        self.assertEqual(self.content(path), "3.6")
        with self.assertRaisesRegex(archive.Unavailable, "cannot be preloaded"):
            self.archive(lists, refused=["3."]).find("mimalloc3")

    def test_another_file_than_the_list_says_is_refused(self):
        if shutil.which("dpkg-deb") is None:
            self.skipTest("no dpkg-deb here")
        lists = FakeLists(self.deb("3.6", damaged=True), self.serve())
        with self.assertRaisesRegex(archive.Unavailable, "digest"):
            self.archive(lists).find("mimalloc3")
        self.assertEqual(self.checked, [])
        self.assertEqual(os.listdir(self.cache + "/debs"), [])

    def test_a_mirror_that_refuses(self):
        lists = FakeLists(NEW, "http://127.0.0.1:1")
        with self.assertRaisesRegex(archive.Unavailable, "refused"):
            self.archive(lists).find("mimalloc3")
        with self.assertRaises(archive.Unavailable):
            self.archive().find("mimalloc3")  # not even lists

    def test_left_out_unless_it_was_named(self):
        source = self.archive(FakeLists(NEW, "http://127.0.0.1:1"))
        with self.assertRaisesRegex(allocators.AllocatorError, "mimalloc3: .*refused"):
            allocators.resolve("mimalloc3", None, "/nonexistent", source)
        default = allocators.DEFAULT
        self.addCleanup(setattr, allocators, "DEFAULT", default)
        self.assertTrue({"mimalloc3", "rpmalloc"} <= set(default))
        allocators.DEFAULT = ("glibc", "mimalloc3", "rpmalloc")
        found, notes = allocators.resolve("", None, "/nonexistent", source)
        self.assertEqual([a.name for a in found], ["glibc"])
        self.assertEqual([note.split(":")[0] for note in notes],
                         ["mimalloc3 left out", "rpmalloc left out"])
        self.assertFalse(any("\n" in note for note in notes))

    def test_suites_by_name(self):
        source = self.archive(FakeLists(NEW, "http://127.0.0.1:1"))
        with self.assertRaisesRegex(allocators.AllocatorError, "known are sid"):
            allocators.resolve("jemalloc@nonsense", None, "/nonexistent", source)
        with self.assertRaisesRegex(allocators.AllocatorError, "no libjemalloc2 in sid"):
            allocators.resolve("jemalloc@sid", None, "/nonexistent", source)  # arm64's alone
        source.arch = "arm64"
        with self.assertRaisesRegex(allocators.AllocatorError, "refused"):
            allocators.resolve("jemalloc@sid", None, "/nonexistent", source)

    def test_a_colon_in_a_version_is_none_in_a_path(self):
        package = packages("libmimalloc3")[0]._replace(version="1:3.0")
        path = archive.place_of(package, self.cache)
        self.assertNotIn(":", path)
        os.makedirs(path)
        self.assertEqual([p.version for p in peers.unpacked(self.cache, ["libmimalloc3"], "amd64")],
                         ["1:3.0"])


if __name__ == "__main__":
    cases.main()
