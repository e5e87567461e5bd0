# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown tables: medians, the least of a row in bold."""

import stats
import table


def _line(cells):
    return "| " + " | ".join(cells) + " |\n"


def _one_table(key, rows, allocators, subject):
    suite, metric, unit = key
    present = [a for a in allocators if any(a in cells for cells in rows.values())]
    divisor, unit = table.byte_scale(
        unit, [r["median"] for cells in rows.values() for r in cells.values()])
    compare = subject in present
    head = ["row"] + present + (["best peer", "to best", "to glibc"] if compare else [])
    out = "### %s: %s, %s\n\n" % (suite, metric, unit)
    out += _line(head) + _line(["---"] + ["---:"] * (len(head) - 1))
    for row, cells in rows.items():
        lowest = min(r["median"] for r in cells.values())
        line = [row]
        for name in present:
            text = table.number(cells[name]["median"] / divisor) if name in cells else "–"
            line.append("**%s**" % text
                        if name in cells and cells[name]["median"] == lowest else text)
        if compare:
            peer = stats.best_peer(cells, subject)
            line += [peer["allocator"] if peer else "–"]
            line += [table.quotient(q) for q in stats.ratios(cells, subject)]
        out += _line(line)
    if compare and "glibc" in present and len(rows) > 1 and stats.has_mean(suite):
        means = [table.quotient(stats.against_glibc(rows, name)) for name in present]
        out += _line(["geometric mean / glibc"] + means +
                     ["", table.quotient(stats.against_best(rows, subject)),
                      table.quotient(stats.against_glibc(rows, subject))])
    return out + "\n"


def render(records, allocators, subject, facts, metrics=""):
    """The machine, then a table a suite and metric; which ones, as table.py decides."""
    out = "".join("- %s: %s\n" % fact for fact in facts) + "\n"
    for key, rows in stats.tables(records).items():
        if table.is_shown(key[0], key[1], metrics):
            out += _one_table(key, rows, allocators, subject)
    return out
