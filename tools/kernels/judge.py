# SPDX-License-Identifier: Apache-2.0
"""Turns what the boots of one kernel said into a row, and says which cells are wrong."""

import json

import catalogue
import plan


def _is(value, expected, what, wrong):
    if value != expected:
        wrong.append("%s: %s, expected %s" % (what, value, expected))


def _cell_stress(boot_name, result, wrong):
    """(passed, run) of the stress runs of one boot."""
    passed = run = 0
    names = sorted({key.split(".")[0] for key in result.values if key.startswith("stress")})
    for name in names:
        said = result.program(name)
        run += 1
        problem = None
        if said.get("status") != "0":
            problem = "exit status %s" % said.get("status", "none")
        elif not _did_something(said.get("json")):
            problem = "did nothing"
        elif ("toggle" in name or "cpuset" in name) and int(said.get("changes", 0)) == 0:
            problem = "the CPUs never changed"
        if problem:
            wrong.append("%s, %s: %s" % (boot_name, name, problem))
        else:
            passed += 1
    return passed, run


def _did_something(text):
    try:
        summary = json.loads(text or "")
    except ValueError:
        return False
    return summary.get("operations", summary.get("allocations", 0)) > 0


def row_of(choice, boots, results):
    """The row of one kernel: a dictionary, keys as in --json."""
    wrong = []
    package = choice.package
    row = {"version": catalogue.release_text(package.release), "package": package.version,
           "suite": package.suite, "arch": choice.arch, "why": choice.why,
           "expected": choice.expected, "class": "unknown", "mode": None, "reason": None,
           "feature_size": None, "stress": None, "preemption": None, "same_core": None,
           "tests": None, "boots": [], "log": [], "consoles": {}}
    stress = [0, 0]
    tests = [0, 0]
    for boot, result in zip(boots, results):
        row["boots"].append({"name": boot.name, "seconds": round(result.seconds, 1),
                             "tries": result.tries, "complete": result.complete})
        if not result.complete:
            wrong.append("%s: the boot did not reach its end (%s)" % (
                boot.name, "time limit" if result.late else "QEMU ended"))
        for key in ("not_understood", "no_plan", "mount_failed"):
            if key in result.values:
                wrong.append("%s: %s %s" % (boot.name, key, result.values[key]))
        _judge_probe(choice, boot, result, row, wrong)
        for index, number in enumerate(_cell_stress(boot.name, result, wrong)):
            stress[index] += number
        _judge_units(boot, result, tests, wrong)
        row["log"] += result.log
        row["consoles"][boot.name] = result.console
    row["stress"] = "%d/%d" % tuple(stress) if stress[1] else None
    row["tests"] = "%d/%d" % tuple(tests) if tests[1] else None
    row["seconds"] = round(sum(result.seconds for result in results), 1)
    row["wrong"] = wrong
    row["ok"] = not wrong
    return row


def _judge_probe(choice, boot, result, row, wrong):
    asked = [line.split()[1] for line in boot.text.split("\n") if line.startswith("run ")]
    probe = result.program("probe")
    if "probe" in asked:
        _is(probe.get("status"), "0", "%s, probe" % boot.name, wrong)
        if boot.name == "plain":
            row["class"] = probe.get("class", "unknown")
            row["feature_size"] = probe.get("feature_size")
            _is(row["class"], choice.expected, "class", wrong)
        else:
            _is(probe.get("killed"), "0", "%s, killed" % boot.name, wrong)
    if "same_core" in asked:
        said = result.program("same_core")
        row["same_core"] = {"0": "holds", "1": "broken"}.get(said.get("status"), "not tested")
        _is(row["same_core"], "broken" if choice.expected == "NO_RSEQ" else "holds", "same core",
            wrong)
    for name in ("mode", "mode_own"):
        if name not in asked:
            continue
        said = result.program(name)
        _is(said.get("status"), "0", "%s, %s" % (boot.name, name), wrong)
        _is(said.get("mode"), plan.EXPECTED_MODE[choice.expected], "%s, %s" % (boot.name, name),
            wrong)
        if boot.name == "plain" and name == "mode":
            row["mode"] = said.get("mode")
            row["reason"] = said.get("reason")
    if "mode_cid" in asked:
        said = result.program("mode_cid")
        _is(said.get("mode"), "v2safe-cid", "%s, mode" % boot.name, wrong)
        if not 1 <= int(said.get("slabs", 0)) <= 4:
            wrong.append("%s: %s slabs for 3 threads" % (boot.name, said.get("slabs")))


def _judge_units(boot, result, tests, wrong):
    names = sorted({key.split(".")[0] for key in result.values if key.startswith("unit_")})
    for name in names:
        said = result.program(name)
        passed, failed = int(said.get("passed", 0)), int(said.get("failed", 0))
        tests[0] += passed
        tests[1] += passed + failed
        if said.get("status") != "0" or passed == 0:
            wrong.append("%s, %s: exit status %s, %d passed, %d failed" % (
                boot.name, name, said.get("status"), passed, failed))


def not_available(choice):
    """The row of a class that the archive does not offer."""
    return {"version": None, "arch": choice.arch, "class": "not available", "why": choice.why,
            "expected": choice.expected, "mode": None, "ok": False, "seconds": 0, "wrong": []}


def skipped(choice, reason):
    """The row of a kernel that could not be downloaded."""
    return {"version": catalogue.release_text(choice.package.release), "arch": choice.arch,
            "class": "skipped", "why": choice.why, "expected": choice.expected, "mode": None,
            "ok": False, "seconds": 0, "reason": reason, "wrong": []}
