#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a `bazel test` did, case by case, from its build events and the test.xml files they name.

A target that did not build, timed out or died counts as one failed case at least. The last line is
"N passed, N failed", with ", N skipped" where there are any.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree

LOG_TAIL_LINES = 60


@dataclasses.dataclass
class Target:
    """One row: a test target, or a target that could not be built."""
    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    status: str = "PASSED"
    problems: list = dataclasses.field(default_factory=list)
    logs: list = dataclasses.field(default_factory=list)

    def fail(self, problem):
        self.failed += 1
        self.problems.append(problem)

    def read_cases(self, path):
        """Adds the cases of one test.xml; returns the seconds they took."""
        seconds = 0.0
        for case in ElementTree.parse(path).iter("testcase"):
            seconds += float(case.get("time") or 0)
            bad = next((child for child in case if child.tag in ("failure", "error")), None)
            name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
            if bad is not None:
                message = (bad.get("message") or bad.text or "").strip().split("\n", 1)[0]
                self.fail(f"{name}: {message}")
            elif case.find("skipped") is not None or case.get("status") == "notrun":
                self.skipped += 1
            else:
                self.passed += 1
        return seconds


def path_of(uri):
    return pathlib.Path(urllib.parse.unquote(urllib.parse.urlparse(uri).path))


def read_events(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def targets_of(events):
    """Label -> Target, in the order of the labels."""
    targets = {}

    def target(label):
        return targets.setdefault(label, Target(label))

    attempts = {}  # the last attempt of each shard and run is the one that counts
    for event in events:
        identity = event.get("id", {})
        aborted = event.get("aborted")
        for kind in ("targetCompleted", "configuredLabel", "unconfiguredLabel", "pattern"):
            if kind not in identity:
                continue
            label = identity[kind].get("label") or " ".join(identity[kind].get("pattern", []))
            if aborted and aborted.get("reason") == "SKIPPED":
                target(label).skipped = 1
            elif aborted or (kind == "targetCompleted"
                             and not event.get("completed", {}).get("success")):
                if not target(label).failed:
                    why = (aborted or {}).get("description") or "does not build"
                    target(label).fail(why.strip())
                    target(label).status = "NOT BUILT"
        if "testResult" in identity and "testResult" in event:
            key = identity["testResult"]
            place = (key["label"], key.get("run", 1), key.get("shard", 1))
            previous = attempts.get(place)
            if previous is None or previous[0] <= key.get("attempt", 1):
                attempts[place] = (key.get("attempt", 1), event["testResult"])

    for (label, _, _), (_, result) in attempts.items():
        row = target(label)
        outputs = {o["name"]: path_of(o["uri"]) for o in result.get("testActionOutput", [])
                   if "uri" in o}
        status = result.get("status", "NO_STATUS")
        row.seconds += float(result.get("testAttemptDurationMillis", 0)) / 1000
        failed_before = row.failed
        try:
            row.read_cases(outputs["test.xml"])
        except (KeyError, OSError, ElementTree.ParseError) as error:
            if status == "PASSED":
                row.fail(f"passed, but its test.xml cannot be read: {error!r}")
        if status != "PASSED":
            row.status = status
            row.logs.append(outputs.get("test.log"))
            if row.failed == failed_before:
                row.fail(f"ended with {status}")
    return targets


def targets_from(path, bazel_status):
    """The same from a file. One that cannot be read, or does not explain the status, is
    a failed target."""
    try:
        targets = targets_of(read_events(path))
    except (OSError, ValueError) as error:
        targets = {"bazel": Target("bazel", status="FAILED")}
        targets["bazel"].fail(f"no events: {error}")
    if bazel_status != 0 and not any(row.failed for row in targets.values()):
        # Say, a BUILD file that does not load, or nothing to test.
        row = targets.setdefault("bazel", Target("bazel", status="FAILED"))
        row.fail(f"bazel ended with status {bazel_status}; its messages are above")
    return targets


def add_extra(targets, name, directory):
    """A check that is no Bazel target and left test.xml and test.log behind as one does."""
    row = targets.setdefault(name, Target(name))
    try:
        row.seconds = row.read_cases(directory / "test.xml")
    except (OSError, ElementTree.ParseError) as error:
        row.fail(f"left no result: {error}")
    if row.failed:
        row.status = "FAILED"
        row.logs.append(directory / "test.log")


def print_table(rows, out):
    width = max([len("target")] + [len(row.name) for row in rows])
    out.write(f"{'target':<{width}}  passed  failed  skipped  seconds\n")
    for row in rows:
        note = "" if row.status == "PASSED" else f"  {row.status}"
        out.write(f"{row.name:<{width}}  {row.passed:6}  {row.failed:6}  {row.skipped:7}"
                  f"  {row.seconds:7.1f}{note}\n")
    out.write("\n")


def print_failures(rows, out):
    for row in rows:
        if not row.failed:
            continue
        out.write(f"FAILED {row.name}\n")
        for problem in row.problems:
            out.write(f"  {problem}\n")
        for log in filter(None, row.logs):
            out.write(f"  last lines of {log}\n")
            try:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                lines = [str(error)]
            for line in lines[-LOG_TAIL_LINES:]:
                out.write(f"  | {line}\n")
        out.write("\n")


def main(arguments, out):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("events", help="file written by --build_event_json_file")
    parser.add_argument("--bazel_status", type=int, default=0, help="exit status of bazel test")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME:DIRECTORY",
                        help="further result: a directory with test.xml and test.log")
    parser.add_argument("--also", action="append", default=[], metavar="NAME:STATUS:EVENTS",
                        help="another run; its targets have (NAME) behind them")
    flags = parser.parse_args(arguments)

    targets = targets_from(flags.events, flags.bazel_status)
    for also in flags.also:
        name, status, events = also.split(":", 2)
        for row in targets_from(events, int(status)).values():
            row.name += f" ({name})"
            targets[row.name] = row
    for extra in flags.extra:
        name, _, directory = extra.partition(":")
        add_extra(targets, name, pathlib.Path(directory))

    # Targets that are not tests, and built, are no rows.
    rows = [targets[name] for name in sorted(targets)
            if targets[name].passed or targets[name].failed or targets[name].skipped]
    passed, failed, skipped = (sum(getattr(row, field) for row in rows)
                               for field in ("passed", "failed", "skipped"))
    print_table(rows, out)
    print_failures(rows, out)
    out.write(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")
              + "\n")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
