# SPDX-License-Identifier: Apache-2.0
"""./pcm as a program: in a tree of its own, with stand-ins for Bazel and the package tools."""

import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from tests.testing import cases

PCM, PACKAGES = (os.path.realpath(path) for path in (sys.argv.pop(1), sys.argv.pop(1)))
HELP_TEXTS = [(path, path.read_text(encoding="utf-8"))
              for path in pathlib.Path("tools").glob("*/help.txt")]

# Writes its arguments to $LOG. As `bazel build` it makes each label's file and says something; it
# fails when $FAIL is set.
BAZEL = """#!/bin/bash
echo "bazel $*" >>"$LOG"
for word; do [[ $word == --* ]] || break; shift; done
case $1 in
  build)
    echo 'INFO: noise'
    [[ -n ${FAIL:-} ]] && { echo 'ERROR: line one'; echo 'ERROR: line two'; exit 1; }
    for label; do
      [[ $label == //* ]] || continue
      file=bazel-bin/${label#//}
      file=${file/:/\\/}
      mkdir -p "$(dirname "$file")"
      cp "$LIBRARY" "$file"
    done
    ;;
  info) [[ $2 == bazel-bin ]] && echo "$PWD/bazel-bin" ;;
esac
"""
DPKG_QUERY = """#!/bin/bash
for package; do
  [[ $package == -* || $package == *' '* ]] && continue
  [[ " ${MISSING:-} " == *" $package "* && ! -e $LOG.installed ]] || echo "$package installed"
done
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >>"$LOG"
case $* in
  *install*) [[ -n ${STALE:-} && ! -e $LOG.updated ]] && { echo 'E: no candidate'; exit 100; }
    touch "$LOG.installed" ;;
  *update*) [[ -n ${OFFLINE:-} ]] && { echo 'E: cannot reach'; exit 100; }
    touch "$LOG.updated" ;;
esac
"""


class PcmTest(unittest.TestCase):

    def setUp(self):
        top = tempfile.mkdtemp(prefix="pcm-test")
        self.addCleanup(shutil.rmtree, top)
        self.top = pathlib.Path(top)
        self.tree = self.top / "tree"
        (self.tree / "tools").mkdir(parents=True)
        (self.tree / "allocator").mkdir()
        shutil.copy(PCM, self.tree / "pcm")
        shutil.copy(PACKAGES, self.tree / "tools/packages.txt")
        for path, text in HELP_TEXTS:
            (self.tree / path).parent.mkdir()
            (self.tree / path).write_text(text)
        self.source = self.tree / "allocator/source.cc"
        self.source.write_text("")
        programs = self.top / "programs"
        programs.mkdir()
        for name, text in (("bazel", BAZEL), ("dpkg-query", DPKG_QUERY), ("apt-get", APT_GET)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        # Something that can really be preloaded.
        library = self.top / "library.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], input="int i;",
                       text=True, check=True)
        self.log = self.top / "log"
        self.environment = {"PATH": f"{programs}:/usr/bin:/bin", "LOG": str(self.log),
                            "LIBRARY": str(library), "HOME": top}

    def pcm(self, *arguments, script=None, cwd="/", **changes):
        return subprocess.run([script or self.tree / "pcm", *arguments], cwd=cwd, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                              timeout=60, env={**self.environment, **changes})

    def logged(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def test_help(self):
        done = self.pcm("help")
        self.assertEqual(done.returncode, 0)
        rows = [line for line in done.stdout.splitlines() if line.startswith("  pcm ")]
        self.assertEqual([row.split()[1] for row in rows][:3], ["run", "doctor", "stress"])
        # Aligned: what a command does begins in one column.
        starts = {row.index(words) for row, words in zip(rows, ("run a program", "what this",
                                                                "look for"))}
        self.assertEqual(len(starts), 1, rows)

    def test_help_of_each_command(self):
        """Nothing is built or installed for it."""
        table = re.search(r'^commands="\\\n(.*?)"$', pathlib.Path(PCM).read_text(), re.S | re.M)[1]
        for row in table.splitlines():
            command, _, _, program = (field.strip() for field in row.split("|"))
            if program and not program.startswith("//"):
                script = self.tree / program
                script.parent.mkdir(exist_ok=True)
                script.write_text(f'#!/bin/sh\necho "usage: ./pcm {command} $*"\n')
                script.chmod(0o755)
            done = self.pcm(command, "--help", MISSING="g++ python3 qemu-system-x86")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue(done.stdout.startswith(f"usage: ./pcm {command}"), done.stdout)
        self.assertEqual(self.logged(), [])

    def test_help_texts(self):
        self.assertEqual({path.parent.name for path, _ in HELP_TEXTS}, {"doctor", "stress"})
        for path, text in HELP_TEXTS:
            for arguments in (["-h"], ["--help"], ["--json", "--help"]):
                self.assertEqual(self.pcm(path.parent.name, *arguments).stdout, text)
        self.assertEqual(self.logged(), [])

    def test_help_that_is_for_a_program(self):
        for separator in ([], ["--"]):
            done = self.pcm("run", *separator, "sh", "-c", "echo $1", "sh", "--help")
            self.assertEqual(done.stdout, "--help\n", done.stderr)

    def test_bazel_obeys_no_color(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        for changes, colourless in (({}, False), ({"NO_COLOR": ""}, False),
                                    ({"NO_COLOR": "1"}, True)):
            self.log.unlink(missing_ok=True)
            subprocess.run([self.tree / "pcm", "build"], stdout=slave, stderr=slave, timeout=60,
                           check=True, env={**self.environment, **changes})
            self.assertEqual("--color=no" in self.logged()[0].split(), colourless)
        os.close(slave)

    def test_unknown_command(self):
        for command in ("frobnicate", ".*", "run |"):
            done = self.pcm(command)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(f"unknown command: {command}", done.stderr)
        self.assertEqual(self.pcm().returncode, 2)
        self.assertEqual(self.pcm("run").returncode, 2)
        self.assertEqual(self.pcm("run", "--").returncode, 2)
        self.assertEqual(self.pcm("run", "--fast", "true").returncode, 2)

    def test_run_builds_once_and_then_is_silent(self):
        first = self.pcm("run", "--", "echo", "a b", "--json")
        self.assertEqual((first.returncode, first.stdout), (0, "a b --json\n"), first.stderr)
        self.assertNotIn("noise", first.stderr)
        builds = len(self.logged())
        self.assertGreater(builds, 0)
        second = self.pcm("run", "true")
        self.assertEqual((second.returncode, second.stdout, second.stderr), (0, "", ""))
        self.assertEqual(len(self.logged()), builds)

    def test_run_builds_again_after_a_change(self):
        self.pcm("run", "true")
        for change in (lambda: self.source.write_text("x"), self.source.unlink,
                       (self.tree / "out/libpcmalloc.so").unlink):
            builds = len(self.logged())
            time.sleep(0.02)  # beyond the tick of the file system's clock
            change()
            self.assertEqual(self.pcm("run", "true").returncode, 0)
            self.assertGreater(len(self.logged()), builds)

    def test_run_preloads_in_front(self):
        library = str(self.tree / "out/libpcmalloc.so")
        show = ("run", "--", "sh", "-c", "echo $LD_PRELOAD; grep -c libpcmalloc /proc/self/maps")
        self.assertEqual(self.pcm(*show).stdout.splitlines()[0], library)
        other = self.environment["LIBRARY"]
        self.assertEqual(self.pcm(*show, LD_PRELOAD=other).stdout.splitlines()[0],
                         f"{library}:{other}")

    def test_run_passes_status_and_signals(self):
        self.assertEqual(self.pcm("run", "--", "sh", "-c", "exit 37").returncode, 37)
        self.assertEqual(self.pcm("run", "--", "sh", "-c", "kill -9 $$").returncode, -9)
        self.assertEqual(self.pcm("run", "--", "/nonexistent").returncode, 127)
        with subprocess.Popen([self.tree / "pcm", "run", "--", "sleep", "60"],
                              env=self.environment) as running:
            time.sleep(0.5)
            running.send_signal(signal.SIGTERM)
            self.assertEqual(running.wait(10), -signal.SIGTERM)

    def test_works_through_links_and_from_anywhere(self):
        link = self.top / "link"
        link.symlink_to(self.tree / "pcm")
        (self.top / "link2").symlink_to("link")
        done = self.pcm("run", "--", "pwd", script="./link2", cwd=self.top)
        self.assertEqual((done.returncode, done.stdout.strip()), (0, str(self.top)), done.stderr)

    def test_path_that_cannot_be_preloaded(self):
        self.tree.rename(self.top / "a b")
        done = self.pcm("run", "true", script=self.top / "a b/pcm")
        self.assertEqual(done.returncode, 2)
        self.assertIn("blanks", done.stderr)

    def test_script_as_a_command(self):
        script = self.tree / "pcm"
        script.write_text(script.read_text().replace(
            "\nhelp ", "\ngreet | | says hello | tools/greet\nhelp ", 1))
        greet = self.tree / "tools/greet"
        greet.write_text('#!/bin/sh\necho "hello $*"\nexit 3\n')
        greet.chmod(0o755)
        done = self.pcm("greet", "--help", "you")
        self.assertEqual((done.returncode, done.stdout), (3, "hello --help you\n"), done.stderr)
        self.assertEqual(self.logged(), [])

    def test_build(self):
        done = self.pcm("build")
        self.assertEqual(done.returncode, 0, done.stderr)
        out = self.tree / "out"
        self.assertEqual(done.stdout.split(), [f"{out}/libpcmalloc.so", f"{out}/libpcmalloc.a"])
        for path in done.stdout.split():
            self.assertTrue(os.path.exists(path))

    def test_build_makes_a_link_of_the_soname(self):
        library = self.top / "with_soname.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libpcmalloc.so.7", "-o", library,
                        "-x", "c", "-"], input="int i;", text=True, check=True)
        for _ in range(2):
            self.assertEqual(self.pcm("build", LIBRARY=str(library)).returncode, 0)
            self.assertEqual(os.readlink(self.tree / "out/libpcmalloc.so.7"), "libpcmalloc.so")

    def test_install_sees_what_is_wrong_before_it_builds(self):
        script = self.tree / "tools/install/install.py"
        script.parent.mkdir()
        script.write_text('#!/bin/sh\necho "$*"\ncase $* in *--bad*) exit 2; esac\n')
        script.chmod(0o755)
        done = self.pcm("install", "--bad")
        self.assertEqual((done.returncode, done.stdout), (2, "install --check --bad\n"))
        self.assertEqual(self.pcm("uninstall", "--x").stdout, "uninstall --x\n")
        self.assertEqual(self.logged(), [])
        done = self.pcm("install", "--prefix", "/x")
        self.assertEqual(done.stdout.splitlines(),
                         ["install --check --prefix /x", "install --prefix /x"])
        self.assertTrue((self.tree / "out/libpcmalloc.a").exists())

    def test_build_failure_is_shown_in_full(self):
        done = self.pcm("run", "echo", "ran", FAIL="1")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("ERROR: line one\nERROR: line two\n", done.stderr)
        self.assertEqual(self.pcm("run", "echo", "ran").stdout, "ran\n")

    def test_without_a_home(self):
        done = self.pcm("build", HOME="/nonexistent")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("--output_user_root=/tmp/", self.logged()[0])

    @unittest.skipUnless(os.geteuid() == 0, "installs as root only")
    def test_installs_what_is_missing(self):
        done = self.pcm("build", MISSING="g++ python3 clang-14")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("installing g++ python3\n", done.stderr)
        lines = [line for line in self.logged() if line.startswith("apt-get")]
        self.assertEqual(len(lines), 1)
        self.assertTrue(lines[0].endswith(" g++ python3"), lines)

    @unittest.skipUnless(os.geteuid() == 0, "installs as root only")
    def test_fetches_package_lists_when_they_are_stale(self):
        done = self.pcm("build", MISSING="g++", STALE="1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([next(w for w in line.split() if w in ("install", "update"))
                          for line in self.logged() if line.startswith("apt-get")],
                         ["install", "update", "install"])

    @unittest.skipUnless(os.geteuid() == 0, "installs as root only")
    def test_says_so_when_installing_fails(self):
        done = self.pcm("test", MISSING="g++", STALE="1", OFFLINE="1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("E: cannot reach", done.stderr)
        self.assertIn("apt-get install --no-install-recommends g++", done.stderr)
        self.assertEqual(done.stdout.splitlines()[-1], "0 passed, 1 failed")

    def test_kernels_are_counted_or_skipped(self):
        summary = self.tree / "tools/test_summary.py"
        summary.write_text("import sys\nprint(*sys.argv[1:])\n")
        boots = self.tree / "tools/kernels/kernels.py"
        boots.parent.mkdir()
        boots.write_text("#!/bin/sh\necho \"$*\"\n")
        boots.chmod(0o755)
        check = self.tree / "out/kernels_check"
        done = self.pcm("test", "--kernels", "//some:test")
        self.assertIn(f"--extra=kernels:{check}", done.stdout.split())
        self.assertIn(f"--xml={check}/test.xml", (check / "test.log").read_text())
        # It left no result, which counts as failed; what is wrong is not papered over here.
        self.assertFalse((check / "test.xml").exists())
        if os.geteuid() == 0:
            self.pcm("test", "--kernels", "//some:test", MISSING="qemu-system-x86", OFFLINE="1",
                     STALE="1")
            self.assertIn("<skipped", (check / "test.xml").read_text())
        self.assertNotIn("kernels", self.pcm("test", "//some:test").stdout)

    @unittest.skipUnless(os.geteuid() == 0, "becomes another user")
    def test_names_the_command_to_whoever_may_not_install(self):
        for path in (self.top, *self.top.rglob("*")):
            path.chmod(0o777)
        sudo = self.top / "programs/sudo"
        sudo.write_text("#!/bin/sh\nexit 1\n")
        sudo.chmod(0o755)
        done = subprocess.run([self.tree / "pcm", "build"], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False, timeout=60, cwd="/", user=65534,
                              env={**self.environment, "MISSING": "g++ pkg-config"})
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("apt-get install --no-install-recommends g++ pkg-config", done.stderr)
        self.assertEqual(self.logged(), [])


if __name__ == "__main__":
    cases.main()
