# SPDX-License-Identifier: Apache-2.0
"""Turns what the boots of one kernel said into a row, and says which cells are wrong."""

import json

import catalogue
import plan

TIME_LIMIT_STATUS = 124  # of init.cc
# Runs of programs with a fault, and the cell of each.
SABOTAGES = {"sabotage_legacy": "sabotage", "sabotage_preempt": "preempt sabotage"}
MODES = ("v2safe-cpu", "v2safe-cid", "locked", "legacy")


def _is(value, expected, what, wrong):
    if value != expected:
        wrong.append("%s: %s, expected %s" % (what, value, expected))


def programs_of(boot):
    """The names of what a boot's plan runs."""
    return [line.split()[1] for line in boot.text.split("\n") if line.startswith("run ")]


def _cell_stress(choice, boot, result, cells):
    """(passed, run) of the stress runs of one boot."""
    names = [name for name in programs_of(boot) if name.startswith("stress")]
    wrong = cells.of("stress") if names else []
    passed = 0
    for name in names:
        problem = _stress_problem(choice, name, result.program(name))
        if problem:
            wrong.append("%s, %s: %s" % (boot.name, name, problem))
        else:
            passed += 1
    return passed, len(names)


def _stress_problem(choice, name, said):
    if said.get("status") != "0":
        return "exit status %s" % said.get("status", "none")
    if any(flag in name for flag in plan.CHANGES_CPUS) and int(said.get("changes", 0)) == 0:
        return "the CPUs never changed"
    asked = next((mode for mode in MODES if mode in name), None)
    if asked == "legacy":
        asked = plan.legacy_mode(choice.expected)
    return _summary_problem(asked, said.get("json"))


def _summary_problem(mode, text):
    """What is wrong with the summary of a run that passed, or None."""
    try:
        summary = json.loads(text or "")
    except ValueError:
        return "no summary"
    if mode is not None and summary.get("mode") != mode:
        return "ran in mode %s" % summary.get("mode")
    if not summary.get("operations") or not summary.get("drains"):
        return "did %s operations, %s drains" % (summary.get("operations"), summary.get("drains"))
    return None


class Cells(dict):
    """Cell -> what is wrong with it; a cell that something was asked for is there,
    empty if right."""

    def of(self, name):
        return self.setdefault(name, [])


def _judge_sabotage(choice, boot, result, row, cells):
    """The fault must be noticed where it is one, and be none elsewhere."""
    if "sabotage_legacy" not in programs_of(boot):
        return
    wrong = cells.of("sabotage")
    said = result.program("sabotage_legacy")
    status = int(said.get("status", TIME_LIMIT_STATUS))
    if plan.legacy_mode(choice.expected) == "legacy":
        problem = ("exit status %d" % status if status
                   else _summary_problem("legacy", said.get("json")))
    else:
        problem = None if status not in (0, 2, 127, TIME_LIMIT_STATUS) else (
            "not noticed, exit status %d" % status)
    row["sabotage"] = "clean" if status == 0 else "caught"
    if problem:
        wrong.append("%s, sabotage_legacy: %s" % (boot.name, problem))


def _judge_preempt_sabotage(boot, result, row, cells):
    """The instruction test must say at which instruction of the faulty operation it noticed
    what."""
    if "sabotage_preempt" not in programs_of(boot):
        return
    said = result.program("sabotage_preempt")
    caught = (said.get("status") == "1" and said.get("failed") == "1"
              and said.get("noticed", "").startswith(plan.SABOTAGED_OPERATION + " stopped at "))
    row["preempt_sabotage"] = "caught" if caught else "missed"
    wrong = cells.of("preempt sabotage")
    if not caught:
        wrong.append("%s, sabotage_preempt: exit status %s, noticed: %s" % (
            boot.name, said.get("status"), said.get("noticed", "nothing")))


def _judge_musl(choice, boot, result, row, cells):
    if "musl" not in programs_of(boot):
        return
    wrong = cells.of("musl")
    said = result.program("musl")
    _is(said.get("status"), "0", "%s, musl" % boot.name, wrong)
    _is(said.get("mode"), plan.EXPECTED_MODE[choice.expected], "%s, musl" % boot.name, wrong)
    row["musl"] = said.get("mode")


def row_of(choice, boots, results):
    """The row of one kernel: a dictionary, keys as in --json."""
    package = choice.package
    row = {"version": catalogue.version_text(package), "package": package.version,
           "suite": package.suite, "arch": choice.arch, "why": choice.why,
           "expected": choice.expected, "class": "unknown", "mode": None, "reason": None,
           "feature_size": None, "stress": None, "preemption": None, "same_core": None,
           "tests": None, "sabotage": None, "preempt_sabotage": None, "space": None, "musl": None,
           "boots": [], "log": [], "consoles": {}}
    cells = Cells()
    stress = [0, 0]
    tests = [0, 0]
    for boot, result in zip(boots, results):
        row["boots"].append({"name": boot.name, "seconds": round(result.seconds, 1),
                             "tries": result.tries, "complete": result.complete})
        wrong = cells.of("boot")
        if not result.complete:
            wrong.append("%s: the boot did not reach its end (%s)" % (
                boot.name, "time limit" if result.late else "QEMU ended"))
        for key in ("not_understood", "no_plan", "mount_failed"):
            if key in result.values:
                wrong.append("%s: %s %s" % (boot.name, key, result.values[key]))
        _judge_probe(choice, boot, result, row, cells)
        for index, number in enumerate(_cell_stress(choice, boot, result, cells)):
            stress[index] += number
        for index, number in enumerate(_judge_units(boot, result, "unit_", cells, "tests")):
            tests[index] += number
        preempted = _judge_units(boot, result, "preempt", cells, "preempted")
        if preempted[1]:
            row["preemption"] = "%d/%d" % preempted
        _judge_sabotage(choice, boot, result, row, cells)
        _judge_preempt_sabotage(boot, result, row, cells)
        _judge_musl(choice, boot, result, row, cells)
        # What a fault that was noticed has to say is no news.
        quiet = [name + ":" for name, cell in SABOTAGES.items() if not cells.get(cell)]
        row["log"] += [line for line in result.log if not line.startswith(tuple(quiet))]
        row["consoles"][boot.name] = result.console
    row["stress"] = "%d/%d" % tuple(stress) if stress[1] else None
    row["tests"] = "%d/%d" % tuple(tests) if tests[1] else None
    row["seconds"] = round(sum(result.seconds for result in results), 1)
    row["cells"] = cells
    row["wrong"] = [text for texts in cells.values() for text in texts]
    row["ok"] = not row["wrong"]
    return row


def _judge_probe(choice, boot, result, row, cells):
    asked = programs_of(boot)
    probe = result.program("probe")
    if "probe" in asked:
        wrong = cells.of("class")
        _is(probe.get("status"), "0", "%s, probe" % boot.name, wrong)
        if boot.name == "plain":
            row["feature_size"] = probe.get("feature_size")
            _is(probe.get("class"), choice.expected, "class by the independent probe", wrong)
        else:
            _is(probe.get("killed"), "0", "%s, killed" % boot.name, wrong)
    if "detect" in asked:
        row["class"] = result.program("detect").get("class", "unknown")
        _is(row["class"], choice.expected, "class", cells.of("class"))
    if "same_core" in asked:
        said = result.program("same_core")
        row["same_core"] = {"0": "holds", "1": "broken"}.get(said.get("status"), "not tested")
        _is(row["same_core"], "broken" if choice.expected == "NO_RSEQ" else "holds", "same core",
            cells.of("same core"))
    for name in ("mode", "mode_own"):
        if name not in asked:
            continue
        wrong = cells.of("mode")
        said = result.program(name)
        _is(said.get("status"), "0", "%s, %s" % (boot.name, name), wrong)
        _is(said.get("mode"), plan.EXPECTED_MODE[choice.expected], "%s, %s" % (boot.name, name),
            wrong)
        if row["space"] is None and "page" in said:
            row["space"] = "%dk, %s" % (int(said["page"]) // 1024, said.get("address_bits"))
        if row["mode"] is None and name == "mode":
            row["mode"] = said.get("mode")
            row["reason"] = said.get("reason")
    if "mode_hotadd" in asked:
        wrong = cells.of("mode")
        said = result.program("mode_hotadd")
        _is(said.get("status"), "0", "%s, mode_hotadd" % boot.name, wrong)
        _is(said.get("changes"), "1", "%s, CPUs added" % boot.name, wrong)
        if int(said.get("slabs", 0)) <= int(said.get("slabs_before", 0)):
            wrong.append("%s: %s slabs before, %s after a CPU was added" % (
                boot.name, said.get("slabs_before"), said.get("slabs")))
    if "mode_cid" in asked:
        wrong = cells.of("mode")
        said = result.program("mode_cid")
        _is(said.get("mode"), "v2safe-cid", "%s, mode" % boot.name, wrong)
        if not 1 <= int(said.get("slabs", 0)) <= 4:
            wrong.append("%s: %s slabs for 3 threads" % (boot.name, said.get("slabs")))


def _judge_units(boot, result, prefix, cells, cell):
    """(passed, run) test cases of the programs whose names begin so."""
    all_passed = all_run = 0
    for name in [name for name in programs_of(boot) if name.startswith(prefix)]:
        wrong = cells.of(cell)
        said = result.program(name)
        passed, failed = int(said.get("passed", 0)), int(said.get("failed", 0))
        all_passed += passed
        all_run += passed + failed
        if said.get("status") != "0" or passed == 0:
            wrong.append("%s, %s: exit status %s, %d passed, %d failed" % (
                boot.name, name, said.get("status"), passed, failed))
    return all_passed, all_run


def not_available(choice):
    """The row of a class that the archive does not offer."""
    return {"version": None, "arch": choice.arch, "class": "not available", "why": choice.why,
            "expected": choice.expected, "mode": None, "ok": False, "seconds": 0, "wrong": [],
            "reason": "no suite offers one"}


def skipped(choice, reason):
    """The row of a kernel that was not booted."""
    release = choice.package and catalogue.version_text(choice.package)
    return {"version": release, "arch": choice.arch,
            "class": "skipped", "why": choice.why, "expected": choice.expected, "mode": None,
            "ok": False, "seconds": 0, "reason": " ".join(reason.split())[-150:], "wrong": []}
