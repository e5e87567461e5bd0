# SPDX-License-Identifier: Apache-2.0
"""The doctor on this machine, with rseq switched off, refused, and without /proc and /sys."""

import ctypes
import json
import os
import platform
import pty
import re
import struct
import subprocess
import sys
import tempfile
import unittest

from tests.testing import cases

DOCTOR, LIBRARY = (os.path.abspath(path) for path in (sys.argv.pop(1), sys.argv.pop(1)))

# docs/rseq.md says what each means.
KEYS = {"mode", "reason", "per_cpu_caches", "messages", "kernel", "machine", "libc",
        "registered_length", "feature_size", "align", "rseq_error", "cpus_possible", "cpus_online",
        "cpus_allowed", "cpus_used", "membarrier_rseq", "membarrier_cpu", "class_32_bytes",
        "class_longer", "page_size", "thp", "overcommit", "advice"}
MODES = {"v2safe-cpu", "v2safe-cid", "legacy", "locked"}
SYSTEM_CALL_RSEQ = {"x86_64": 334, "aarch64": 293}.get(platform.machine())


def environment(**changes):
    result = {name: value for name, value in os.environ.items()
              if name not in ("GLIBC_TUNABLES", "LD_PRELOAD", "PCMALLOC_CONF", "NO_COLOR")}
    result.update(changes)
    return result


def run(*flags, library=LIBRARY, **options):
    options.setdefault("env", environment())
    return subprocess.run([DOCTOR, f"--library={library}", *flags], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options)


def refuse_rseq(error):
    """In the child: a seccomp filter that answers rseq with an error number."""
    allow, errno = 0x7fff0000, 0x00050000 | error
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in (
        (0x20, 0, 0, 0),                 # load the system call's number
        (0x15, 0, 1, SYSTEM_CALL_RSEQ),  # skip one unless it is rseq
        (0x06, 0, 0, errno),
        (0x06, 0, 0, allow)))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    if (libc.prctl(set_no_new_privs, 1, 0, 0, 0) != 0
            or libc.prctl(set_seccomp, filter_mode, header, 0, 0) != 0):
        raise OSError(ctypes.get_errno(), "seccomp")


class DoctorTest(unittest.TestCase):

    def findings(self, *flags, **options):
        done = run("--json", *flags, **options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        findings = json.loads(done.stdout)
        self.assertEqual(set(findings), KEYS)
        self.assertIn(findings["mode"], MODES)
        self.assertEqual(findings["per_cpu_caches"], findings["mode"] != "locked")
        self.assertTrue(findings["reason"])
        return findings

    def test_json(self):
        findings = self.findings()
        self.assertEqual(findings["kernel"], os.uname().release)
        self.assertEqual(findings["machine"], os.uname().machine)
        self.assertEqual(findings["libc"], os.confstr("CS_GNU_LIBC_VERSION"))
        self.assertEqual(findings["page_size"], os.sysconf("SC_PAGESIZE"))
        for path, key, values in (
                ("/proc/sys/vm/overcommit_memory", "overcommit", (0, 1, 2)),
                ("/sys/kernel/mm/transparent_hugepage/enabled", "thp",
                 ("always", "madvise", "never"))):
            self.assertIn(findings[key], values if os.path.exists(path) else ("unknown",))

    def test_shared_area(self):
        if not SYSTEM_CALL_RSEQ or self.findings()["rseq_error"]:
            self.skipTest("rseq is not to be had here")
        self.assertGreaterEqual(self.findings()["registered_length"], 32)

    def test_allowed_cpus_are_those_of_the_mask(self):
        one = min(os.sched_getaffinity(0))
        findings = self.findings(preexec_fn=lambda: os.sched_setaffinity(0, {one}))
        self.assertEqual(findings["cpus_allowed"], str(one))
        self.assertEqual(findings["cpus_used"], str(one))

    def test_libc_registration_off(self):
        findings = self.findings(env=environment(GLIBC_TUNABLES="glibc.pthread.rseq=0"))
        self.assertEqual(findings["registered_length"], 0)

    @unittest.skipUnless(SYSTEM_CALL_RSEQ, "number of the system call is not known")
    def test_rseq_refused(self):
        for error, word in ((38, "missing"), (1, "EPERM")):
            with self.subTest(error=error):
                findings = self.findings(preexec_fn=lambda error=error: refuse_rseq(error))
                self.assertEqual(findings["registered_length"], 0)
                self.assertNotEqual(findings["rseq_error"], "")
                self.assertEqual(findings["mode"], "locked")
                self.assertIn(word, findings["advice"])

    def test_locked_on_demand(self):
        findings = self.findings(env=environment(PCMALLOC_CONF="rseq:locked"))
        self.assertEqual(findings["mode"], "locked")
        self.assertFalse(findings["per_cpu_caches"])

    def test_without_proc_and_sys(self):
        findings = self.findings("--root=/nonexistent")
        for key in ("cpus_possible", "cpus_online", "thp", "overcommit"):
            self.assertEqual(findings[key], "unknown", key)

    def test_probe(self):
        self.assertIsNone(self.findings()["class_32_bytes"])
        findings = self.findings("--probe")
        if findings["rseq_error"]:
            self.assertEqual(findings["class_32_bytes"], "NO_RSEQ")
            return
        self.assertIn(findings["class_32_bytes"], ("CACHE_OK", "NO_CACHE", "NO_RSEQ"))
        self.assertIn(findings["class_longer"], ("OK", "NO_RSEQ", "none"))
        release = tuple(int(part) for part in re.findall("[0-9]+", findings["kernel"])[:2])
        if (4, 18) <= release < (6, 19):
            self.assertEqual(findings["class_32_bytes"], "CACHE_OK")
            # A length above 32 is accepted from Linux 6.3 on.
            self.assertEqual(findings["class_longer"], "OK" if release >= (6, 3) else "none")

    def test_probe_of_kernels_that_misbehave(self):
        if self.findings()["rseq_error"]:
            self.skipTest("rseq is not to be had here")
        for kernel, class32, words in (
                ("keeps-mark", "NO_CACHE", "google/tcmalloc before its fix corrupts memory"),
                ("kills", "NO_CACHE", "kills whoever writes cpu_id_start"),
                ("never-aborts", "NO_RSEQ", "rseq must not be used on this kernel"),
                ("hangs", "unknown", "no full answer")):
            with self.subTest(kernel=kernel):
                findings = self.findings("--probe", f"--fake_kernel={kernel}")
                self.assertEqual(findings["class_32_bytes"], class32)
                self.assertIn(words, findings["advice"])
                self.assertEqual("Nothing to do" in findings["advice"], kernel == "hangs")

    @unittest.skipUnless(SYSTEM_CALL_RSEQ, "number of the system call is not known")
    def test_probe_where_rseq_is_refused(self):
        findings = self.findings("--probe", preexec_fn=lambda: refuse_rseq(38))
        self.assertEqual(findings["class_32_bytes"], "NO_RSEQ")
        self.assertEqual(findings["class_longer"], "none")
        self.assertNotIn("must not be used", findings["advice"])

    def test_table(self):
        done = run()
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual(lines[:2], ["pcmalloc on this machine", ""])
        self.assertTrue(lines[2].startswith("  mode                "), lines[2])
        self.assertNotIn("\033", done.stdout)

    def test_colour_on_a_terminal_only(self):
        for changes, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            try:
                master, slave = pty.openpty()
            except OSError as error:
                self.skipTest(str(error))
            subprocess.run([DOCTOR, f"--library={LIBRARY}"], stdout=slave, timeout=60, check=True,
                           env=environment(**changes))
            os.close(slave)
            self.assertEqual(b"\033[1m" in os.read(master, 65536), coloured)
            os.close(master)

    def assert_no_answer(self, done, words):
        self.assertEqual(done.returncode, 1, done.stdout)
        findings = json.loads(done.stdout)
        self.assertEqual(findings["mode"], "unknown")
        self.assertFalse(findings["per_cpu_caches"])
        self.assertIn(words, findings["reason"])

    def test_library_that_is_missing(self):
        self.assert_no_answer(run("--json", library="/nonexistent.so"), "No such file")

    def test_library_that_is_none(self):
        with tempfile.NamedTemporaryFile(prefix="pcm-doctor") as file:
            file.write(b"not an ELF file")
            file.flush()
            done = run("--json", library=file.name)
        self.assert_no_answer(done, "not loaded")
        self.assertIn("cannot be preloaded", json.loads(done.stdout)["messages"])

    def test_bad_arguments(self):
        self.assertEqual(run("more").returncode, 2)


if __name__ == "__main__":
    cases.main()
