# SPDX-License-Identifier: Apache-2.0
"""The parts of ./pcm kernels that need no kernel: choice, archive, reading a console, judgement,
what is kept."""

import json
import os
import stat
import subprocess
import tempfile
import unittest
from unittest import mock
from xml.etree import ElementTree

from tests.testing import cases
import boot
import catalogue
import fetch
import initramfs
import judge
import keep
import kernels
import plan
import report

RECORDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recorded_packages.txt")


def recorded():
    """Kernel packages as the archive listed them on 2026-11-22, a selection of the suites."""
    with open(RECORDED, encoding="utf-8") as file:
        return list(catalogue.kernels_in(file.read(), "http://example.invalid", "recorded"))


def choice_of(arch, release):
    return catalogue.choose_versions(recorded(), [release], [arch])[0]


class CatalogueTest(unittest.TestCase):

    def test_releases(self):
        for version, release in (("7.0.10-1~bpo13+1", (7, 0, 10)), ("6.1.176-1", (6, 1, 176)),
                                 ("7.3~rc7-1~exp1", (7, 3, -1, 7))):
            self.assertEqual(catalogue.release_of(version), release)
            self.assertEqual(catalogue.release_text(release), version.split("-")[0])
        self.assertLess(catalogue.release_of("7.3~rc7-1"), catalogue.release_of("7.3.4-1"))
        self.assertGreater(catalogue.release_of("7.3~rc7-1"), catalogue.release_of("7.2.13-1"))
        self.assertLess(catalogue.release_of("7.0.9-1"), catalogue.release_of("7.0.10-1"))

    def test_classes_at_their_edges(self):
        for arch, release, name in (
                ("x86_64", (6, 18, 15), "CACHE_OK"), ("x86_64", (6, 19, 6), "NO_CACHE"),
                ("x86_64", (7, 0, 9), "NO_CACHE"), ("x86_64", (7, 0, 10), "V2"),
                ("x86_64", (7, 3, -1, 7), "V2"),
                ("arm64", (6, 18, 15), "CACHE_OK"), ("arm64", (6, 19, 6), "NO_RSEQ"),
                ("arm64", (7, 0, 13), "NO_RSEQ"), ("arm64", (7, 1, 3), "V2")):
            self.assertEqual(catalogue.expected_class(arch, release), name, (arch, release))

    def test_packages_that_hold_an_image(self):
        packages = recorded()
        self.assertGreater(len(packages), 40)
        for package in packages:
            self.assertGreater(package.size, 1000000, package.name)
            self.assertNotIn("-dbg", package.name)
        self.assertFalse([p for p in packages if p.release >= (6, 19) and "image" in p.name])

    def test_choice_takes_both_edges_of_each_class(self):
        choices = catalogue.choose(recorded())
        chosen = [(c.arch, c.expected, catalogue.version_text(c.package)) for c in choices]
        for wanted in (("x86_64", "CACHE_OK", "6.18.15"), ("x86_64", "NO_CACHE", "6.19.6"),
                       ("x86_64", "NO_CACHE", "7.0.9"), ("x86_64", "V2", "7.0.10"),
                       ("x86_64", "V2", "7.3.4"), ("arm64", "NO_RSEQ", "6.19.6"),
                       ("arm64", "NO_RSEQ", "7.0.9"), ("arm64", "NO_RSEQ", "7.0.10"),
                       ("arm64", "NO_RSEQ", "7.0.13"), ("arm64", "V2", "7.1.3"),
                       ("arm64", "V2", "7.3.4-16k")):
            self.assertIn(wanted, chosen)
        self.assertEqual(len(chosen), len(set(chosen)))

    def test_quick_choice(self):
        choices = catalogue.choose(recorded(), quick=True)
        self.assertEqual([(c.arch, c.expected) for c in choices], list(catalogue.QUICK))

    def test_a_class_that_has_gone_is_told(self):
        without = [p for p in recorded() if catalogue.expected_class(p.arch, p.release)
                   != "NO_CACHE"]
        gone = [c for c in catalogue.choose(without, ["x86_64"]) if c.package is None]
        self.assertEqual([c.expected for c in gone], ["NO_CACHE"])
        row = judge.not_available(gone[0])
        self.assertEqual((row["class"], row["ok"]), ("not available", False))


class InitramfsTest(unittest.TestCase):

    def test_what_goes_in_comes_out(self):
        files = {"init": b"\x7fELF", "bin/a/b": b"x" * 4097, "plan": b""}
        found = {name: (mode, data) for name, mode, data in
                 initramfs.entries(initramfs.newc(files))}
        for name, data in files.items():
            self.assertEqual(found[name][1], data)
            self.assertTrue(stat.S_ISREG(found[name][0]) and found[name][0] & 0o111)
        for name in ("dev", "bin", "bin/a"):
            self.assertTrue(stat.S_ISDIR(found[name][0]), name)
        self.assertTrue(stat.S_ISCHR(found["dev/console"][0]))
        names = [name for name, _, _ in initramfs.entries(initramfs.newc(files))]
        self.assertLess(names.index("bin/a"), names.index("bin/a/b"))

    def test_cpio_agrees(self):
        with tempfile.TemporaryDirectory() as directory:
            try:
                done = subprocess.run(["cpio", "-it"], input=initramfs.newc({"bin/x": b"y"}),
                                      cwd=directory, capture_output=True, check=False)
            except FileNotFoundError:
                self.skipTest("no cpio here")
            self.assertEqual(done.stdout.split(), [b"bin", b"dev", b"dev/console", b"bin/x"])


class ConsoleTest(unittest.TestCase):

    def test_lines(self):
        result = boot.Result()
        for line in ("noise", "\x1b[2JPCM init=1", "PCM stress_v2safe-cpu.status=0",
                     "PCM mode.reason=a = b", "LOG probe: text: more"):
            result.take(line)
        self.assertTrue(result.started)
        self.assertFalse(result.complete)
        self.assertEqual(result.program("stress_v2safe-cpu"), {"status": "0"})
        self.assertEqual(result.program("mode"), {"reason": "a = b"})
        self.assertEqual(result.log, ["probe: text: more"])

    def test_command_line(self):
        words = boot.command("arm64", "K", "I", 4, 512, "rseq_debug=1")
        self.assertEqual(words[0], "qemu-system-aarch64")
        self.assertIn("rdinit=/init console=ttyAMA0 rseq_debug=1", words[-1])
        self.assertEqual(words[words.index("-smp") + 1], "4")


PROGRAMS = {"instructions", plan.SABOTAGED_INSTRUCTIONS, "musl", "stress_legacy_unproved"}
NOTICED = "Push stopped at 20 of 24 in section 3 of the table, a pop: the model says otherwise;"


def good(choice, boots):
    """Results in which everything is as it must be."""
    results = []
    for one in boots:
        result = boot.Result()
        result.take("PCM init=1")
        for name in judge.programs_of(one):
            broken = name == "same_core" and choice.expected == "NO_RSEQ"
            if name == "sabotage_legacy":
                broken = plan.legacy_mode(choice.expected) != "legacy"
            if name == "sabotage_preempt":
                broken = True
                result.take("PCM sabotage_preempt.failed=1")
                result.take("PCM sabotage_preempt.noticed=" + NOTICED)
            result.take("PCM %s.status=%d" % (name, broken))
            result.take("PCM %s.class=%s" % (name, choice.expected))
            result.take("PCM %s.killed=0" % name)
            result.take("PCM %s.passed=3" % name)
            mode = plan.EXPECTED_MODE[choice.expected]
            for other in judge.MODES:
                if name.startswith(("stress", "sabotage")) and other in name:
                    mode = plan.legacy_mode(choice.expected) if other == "legacy" else other
            result.take("PCM %s.mode=%s" % (name, mode))
            result.take('PCM %s.json={"mode": "%s", "operations": 5, "drains": 5}' % (name, mode))
        result.take("PCM end=1")
        results.append(result)
    return results


class JudgeTest(unittest.TestCase):

    def row(self, arch, release, change=None):
        choice = choice_of(arch, release)
        boots = plan.boots_for(choice, PROGRAMS, {}, False, 5)
        results = good(choice, boots)
        if change:
            change(results)
        return judge.row_of(choice, boots, results)

    def test_what_is_right_is_right(self):
        for arch, release in (("x86_64", "6.18.15"), ("x86_64", "7.0.9"), ("x86_64", "7.3.4"),
                              ("arm64", "7.0.13"), ("arm64", "7.1.3")):
            row = self.row(arch, release)
            self.assertEqual(row["wrong"], [], (arch, release))
            self.assertTrue(row["ok"])
            for key in ("version", "arch", "class", "expected", "mode", "ok", "seconds"):
                self.assertIn(key, row)

    def test_each_wrong_cell_is_noticed(self):
        def say(line):
            return lambda results: results[0].take(line)

        for change in (say("PCM detect.class=CACHE_OK"), say("PCM probe.class=NO_RSEQ"),
                       say("PCM probe.status=2"), say("PCM same_core.status=1"),
                       say("PCM same_core.status=2"), say("PCM mode.mode=locked"),
                       say("PCM stress_v2safe-cpu.status=1"), say("PCM stress_locked.status=124"),
                       say("PCM stress_locked.json=oops"),
                       say('PCM stress_locked.json={"mode": "legacy", "operations": 5}'),
                       say('PCM stress_own.json={"mode": "locked", "operations": 0}'),
                       say("PCM unit_lock.status=1"), say("PCM unit_lock.passed=0"),
                       say("PCM preempt.status=139"), say("PCM mount_failed=/sys 2"),
                       lambda results: results[0].values.pop("end"),
                       lambda results: results[0].values.pop("stress_locked.status"),
                       lambda results: results[1].take("PCM probe.killed=1")):
            row = self.row("x86_64", "7.0.9", change)
            self.assertEqual(len(row["wrong"]), 1, row["wrong"])
            self.assertFalse(row["ok"])

    def test_the_reproducer_must_fail_where_nothing_aborts(self):
        row = self.row("arm64", "7.0.9", lambda results: results[0].take("PCM same_core.status=0"))
        self.assertEqual(row["wrong"], ["same core: holds, expected broken"])

    def test_topology(self):
        for arch, release in (("x86_64", "6.18.15"), ("x86_64", "7.3.4"), ("arm64", "7.3.4")):
            choice = choice_of(arch, release)
            boots = plan.topology_boots(choice, 5)
            results = good(choice, boots)
            for result, one in zip(results, boots):
                for name in judge.programs_of(one):
                    result.take("PCM %s.changes=%d" % (name, 1 if name == "mode_hotadd" else 3))
                    result.take("PCM %s.slabs_before=2" % name)
                    result.take("PCM %s.slabs=3" % name)
                    if name == "mode_cid":
                        result.take("PCM mode_cid.mode=v2safe-cid")
            self.assertEqual(judge.row_of(choice, boots, results)["wrong"], [])
            bad = 0
            for result, one in zip(results, boots):
                for name in judge.programs_of(one):
                    if name == "mode_cid":
                        result.take("PCM mode_cid.slabs=17")
                    elif name == "mode_hotadd":
                        result.take("PCM mode_hotadd.slabs=2")
                    elif "toggle" in name or "cpuset" in name:
                        result.take("PCM %s.changes=0" % name)
                    else:
                        continue
                    bad += 1
            self.assertGreater(bad, 0)
            self.assertEqual(len(judge.row_of(choice, boots, results)["wrong"]), bad)

    def test_sabotage(self):
        def change(line):
            return lambda results: results[0].take("PCM sabotage_legacy." + line)

        for release, said, right in (("7.0.9", "status=1", True), ("7.0.9", "status=139", True),
                                     ("7.0.9", "status=0", False), ("7.0.9", "status=124", False),
                                     ("7.3.4", "status=0", True), ("7.3.4", "status=1", False),
                                     ("7.3.4", "json={}", False)):
            row = self.row("x86_64", release, change(said))
            self.assertEqual(row["cells"]["sabotage"] == [], right, (release, said))

    def test_preempt_sabotage(self):
        def change(*lines):
            def take(results):
                for line in lines:
                    results[0].take("PCM sabotage_preempt." + line)
            return take

        self.assertEqual(self.row("arm64", "7.1.3")["preempt_sabotage"], "caught")
        # Not noticed, skipped, out of time, a crash, dead before it began, refused by exec, and
        # what is wrong elsewhere than in the operation with the fault.
        for lines in (("status=0", "failed=0"), ("status=124",), ("status=139",), ("noticed=",),
                      ("failed=0",), ("status=127",), ("noticed=Pop stopped at 4 of 9",)):
            for arch, release in (("x86_64", "7.0.9"), ("arm64", "6.18.15")):
                row = self.row(arch, release, change(*lines))
                self.assertEqual(row["preempt_sabotage"], "missed", lines)
                self.assertEqual(len(row["cells"]["preempt sabotage"]), 1, lines)
                self.assertFalse(row["ok"])
        row = self.row("x86_64", "7.0.9", lambda results: [
            results[0].values.pop(key) for key in list(results[0].values) if "_preempt" in key])
        self.assertEqual(row["preempt_sabotage"], "missed")
        self.assertNotIn("preempt sabotage", self.row("arm64", "7.0.9")["cells"])

    def test_what_a_fault_says_is_told_only_if_it_is_wrong(self):
        def change(status):
            return lambda results: [
                results[0].take("PCM sabotage_preempt.status=%d" % status),
                results[0].take("LOG sabotage_preempt: one"),
                results[0].take("LOG sabotage_legacy: two"), results[0].take("LOG preempt: three")]

        self.assertEqual(self.row("x86_64", "7.0.9", change(1))["log"], ["preempt: three"])
        self.assertEqual(self.row("x86_64", "7.0.9", change(0))["log"],
                         ["sabotage_preempt: one", "preempt: three"])

    def test_only_some_programs(self):
        boots = plan.boots_for(choice_of("x86_64", "7.3.4"), {"instructions"}, {}, False, 5)
        self.assertEqual([one.name for one in boots], ["plain", "rseq_debug"])
        left = plan.only(boots, ["preempt", "unit_slabs*"])
        self.assertEqual([one.name for one in left], ["plain"])
        self.assertEqual(set(judge.programs_of(left[0])),
                         {"preempt", "unit_slabs_cpu", "unit_slabs_cid", "unit_slabs_locked"})
        self.assertIn("mount", left[0].text.split("\n"))
        self.assertEqual(plan.only(boots, ["none"]), [])


class KeepTest(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.path = os.path.join(self.directory.name, "rows.json")

    def test_digest_is_of_all_that_a_row_follows_from(self):
        programs = {"init": b"a", "stress": b"b"}
        libcs = {"glibc-2.36": {"glibc-2.36/ld-linux-x86-64.so.2": b"c"}}

        def digest(release="7.3.4", programs=programs, libcs=libcs, seconds=5, only=None,
                   why="first", digit=None):
            choice = choice_of("x86_64", release)._replace(why=why)
            if digit:
                choice = choice._replace(package=choice.package._replace(sha256=digit))
            boots = plan.boots_for(choice, set(programs) | {"stress_dynamic"}, libcs, False,
                                   seconds)
            return keep.digest(choice, plan.only(boots, only) if only else boots, programs)

        same = digest()
        self.assertEqual(digest(), same)
        self.assertEqual(digest(programs=dict(reversed(programs.items()))), same)
        others = [digest(programs=dict(programs, stress=b"B")), digest(release="7.0.10"),
                  digest(programs=dict(programs, extra=b"")), digest(seconds=6),
                  digest(only=["stress*"]), digest(digit="0" * 64),
                  digest(programs={"init": b"a'stress'b"}),
                  digest(libcs={"glibc-2.36": {"glibc-2.36/ld-linux-x86-64.so.2": b"C"}})]
        self.assertEqual(len(set(others + [same])), len(others) + 1)

    def test_digest_is_of_the_machine_too(self):
        choice = choice_of("arm64", "7.3.4")
        boots = plan.topology_boots(choice, 5)
        same = keep.digest(choice, boots, {})
        for change in ({"cpus": 3}, {"append": "rseq_debug=1"}, {"model": None},
                       {"without_cpu": 2}, {"hot_add": ("x",)}, {"text": ""}):
            self.assertNotEqual(keep.digest(choice, [boots[0], boots[1]._replace(**change)], {}),
                                same, change)

    def test_right_rows_are_found_again(self):
        row = {"arch": "x86_64", "version": "7.0.9", "why": "first", "digest": "d", "ok": True,
               "cells": {"class": []}}
        kept = keep.Kept(self.path)
        self.assertIsNone(kept.find("d"))
        kept.add(row)
        keep.Kept(self.path).add(dict(row, why="topology", digest="e", ok=False))
        keep.Kept(self.path).add(dict(row, arch="arm64", digest="f"))
        again = keep.Kept(self.path)
        self.assertEqual(again.find("d"), row)
        self.assertIsNone(again.find("e"), "a wrong row is booted again")
        self.assertIsNone(again.find("g"))
        # Of another build, it takes the old one's place.
        again.add(dict(row, digest="g"))
        self.assertIsNone(again.find("d"))
        self.assertEqual(again.find("g")["digest"], "g")
        self.assertEqual(again.find("f")["arch"], "arm64")
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(len(json.load(file)), 3)

    def test_another_file_is_left_alone(self):
        for text in ("", "oops", "{}", "[1]"):
            with open(self.path, "w", encoding="utf-8") as file:
                file.write(text)
            with self.assertRaises(keep.Unusable):
                keep.Kept(self.path).find("d")
            with self.assertRaises(keep.Unusable):
                keep.Kept(self.path).add({"digest": "d"})
            with open(self.path, encoding="utf-8") as file:
                self.assertEqual(file.read(), text)

    def test_an_interrupted_run_goes_on(self):
        booted = []

        def boot_all(choice, boots, *_):
            if len(booted) == 2:
                raise KeyboardInterrupt
            booted.append((choice.arch, choice.why, catalogue.version_text(choice.package)))
            results = good(choice, boots)
            return judge.row_of(choice, boots, results)

        def run(*more):
            options = kernels.arguments(["--json", "--version=7.0.9", "--version=7.3.4",
                                         "--keep=" + self.path, *more])
            fakes = {"boot_all": boot_all, "built_programs": lambda arch, _: {"init": b"x"},
                     "c_libraries": lambda *_: {}}
            with mock.patch.multiple(kernels, **fakes), mock.patch.multiple(
                    fetch, update_lists=lambda _: None, read_lists=lambda: (recorded(), {})):
                return kernels.run(options, kernels.Progress())

        with self.assertRaises(KeyboardInterrupt):
            run()
        self.assertEqual([row[2] for row in booted], ["7.0.9", "7.3.4"])
        first, booted[:] = list(booted), []
        with self.assertRaises(KeyboardInterrupt):
            run("--arch=arm64", "--arch=x86_64", "--version=7.0.10")
        self.assertFalse(set(first) & set(booted))
        booted[:] = []
        rows = run()
        self.assertEqual(len(rows), 4)
        self.assertTrue(all(row["ok"] for row in rows), rows)
        self.assertFalse(set(first) & set(booted))
        self.assertFalse(any("consoles" in row for row in rows))
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(
                sorted((row["arch"], row["version"]) for row in json.load(file)
                       if row["version"] != "7.0.10"),
                sorted((row["arch"], row["version"]) for row in rows))

    def test_a_run_without_a_selection_has_the_odd_machines(self):
        def whys(*arguments):
            return [choice.why for choice in kernels.choose(kernels.arguments(list(arguments)),
                                                            recorded())]
        self.assertEqual(whys().count("topology"), 3)
        self.assertEqual(whys("--arch=arm64").count("topology"), 1)
        self.assertEqual(set(whys("--topology")), {"topology"})
        self.assertEqual(whys("--topology", "--version=7.3.4"), ["topology"] * 2)
        for other in ("--quick", "--class=V2", "--version=7.3.4"):
            self.assertNotIn("topology", whys(other))


class ReportTest(unittest.TestCase):

    ROW = {"arch": "x86_64", "version": "7.0.9", "class": "NO_CACHE", "expected": "NO_CACHE",
           "mode": "v2safe-cpu", "ok": True, "seconds": 12.4}

    def test_table(self):
        lines = report.table([self.ROW, dict(self.ROW, ok=False, version="7.0.10")]).split("\n")
        self.assertEqual(len(lines), 3)
        self.assertEqual({line.index("NO_CACHE") for line in lines[1:]},
                         {lines[0].index("class")})
        self.assertIn("NO", lines[2].split())
        self.assertIn("12", lines[1].split())

    def test_status(self):
        bad = dict(self.ROW, ok=False)
        gone = dict(self.ROW, ok=False, **{"class": "not available"})
        skipped = dict(self.ROW, ok=False, **{"class": "skipped"})
        self.assertEqual(report.exit_status([self.ROW, gone, skipped]), 0)
        self.assertEqual(report.exit_status([self.ROW, bad]), 1)
        self.assertEqual(report.exit_status([gone, skipped]), 1)
        self.assertEqual(report.summary([self.ROW, bad, gone, skipped], 3.2),
                         "1 right, 1 wrong, 1 skipped, 1 not available; 3 s")


    def test_cells_as_test_cases(self):
        skipped = [judge.skipped(choice, "a & b") for choice in catalogue.choose_nothing()]
        row = dict(self.ROW, cells={"class": [], "stress": ["one <bad>", "two"]})
        suite = ElementTree.fromstring(report.junit([row] + skipped))
        self.assertEqual([case.get("name") for case in suite], ["class", "stress"] + ["boot"] * 4)
        self.assertEqual([len(case) for case in suite], [0, 1, 1, 1, 1, 1])
        self.assertEqual(suite[1][0].get("message"), "one <bad>; two")
        self.assertEqual(len(suite.findall("testcase/skipped")), 4)


if __name__ == "__main__":
    cases.main()
