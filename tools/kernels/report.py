# SPDX-License-Identifier: Apache-2.0
"""The table, the summary line and the exit status."""

from xml.etree import ElementTree

COLUMNS = (
    ("arch", "arch"), ("version", "kernel"), ("why", "why"), ("class", "class"),
    ("expected", "expected"), ("mode", "mode"), ("space", "page, bits"), ("stress", "stress"),
    ("stress_seconds", "s each"), ("sabotage", "sabotage"), ("preemption", "preempted"),
    ("preempt_sabotage", "preempt sabotage"), ("musl", "musl"), ("same_core", "same core"),
    ("tests", "tests"), ("seconds", "seconds"), ("ok", "ok"), ("reason", "reason"),
)
# What is told apart from "wrong": the kernel was never booted.
UNBOOTED = ("not available", "skipped")


def cell(row, key):
    value = row.get(key)
    if key == "ok":
        return "-" if row["class"] in UNBOOTED else ("yes" if value else "NO")
    if value is None:
        return "-"
    if key == "seconds":
        return "%.0f" % value
    return str(value)


def table(rows):
    """The rows as aligned text; the last column is as wide as it is."""
    cells = [[title for _, title in COLUMNS]]
    cells += [[cell(row, key) for key, _ in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS) - 1)] + [0]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip()
                     for line in cells)


def markdown(rows):
    """The same for docs/kernels.md."""
    lines = ["| " + " | ".join(title for _, title in COLUMNS) + " |",
             "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row, key) for key, _ in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def junit(rows):
    """The cells as test cases, for tools/test_summary.py."""
    suite = ElementTree.Element("testsuite", name="kernels")
    for row in rows:
        where = " ".join(str(row[key]) for key in ("arch", "version", "expected") if row[key])
        if row["class"] in UNBOOTED:
            case = ElementTree.SubElement(suite, "testcase", classname=where, name="boot", time="0")
            ElementTree.SubElement(case, "skipped", message="%s: %s" % (row["class"],
                                                                        row["reason"]))
            continue
        for number, (name, wrong) in enumerate(row["cells"].items()):
            # The boots are not divided among the cells.
            case = ElementTree.SubElement(suite, "testcase", classname=where, name=name,
                                          time=str(0 if number else row["seconds"]))
            if wrong:
                ElementTree.SubElement(case, "failure", message="; ".join(wrong))
    return ElementTree.tostring(suite, encoding="unicode") + "\n"


def counts(rows):
    return {"right": sum(row["ok"] for row in rows),
            "wrong": sum(not row["ok"] and row["class"] not in UNBOOTED for row in rows),
            "skipped": sum(row["class"] == "skipped" for row in rows),
            "not available": sum(row["class"] == "not available" for row in rows)}


def summary(rows, seconds):
    numbers = counts(rows)
    return "%d right, %d wrong, %d skipped, %d not available; %.0f s" % (
        numbers["right"], numbers["wrong"], numbers["skipped"], numbers["not available"], seconds)


def exit_status(rows):
    """0 only if something was booted and nothing was wrong."""
    numbers = counts(rows)
    return 1 if numbers["wrong"] or not numbers["right"] else 0
