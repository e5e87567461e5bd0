# SPDX-License-Identifier: Apache-2.0
"""Results as one HTML page that needs nothing else: plots, and the numbers as tables."""

import re

import plots
import stats
import table
from plots import esc

# One hue each that keeps its contrast on white and on near black; the subject comes first.
COLOURS_LIGHT = ["#c2185b", "#6b7280", "#1f6fb2", "#2e8b57", "#b8720a", "#7a4fc4", "#0d8a8a",
                 "#8d5a3b"]
COLOURS_DARK = ["#ff6f9f", "#a3abb8", "#6db3f2", "#63c98f", "#f0b14d", "#b596f5", "#4fd0d0",
                "#d3a07c"]

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1a1d21; --dim: #5b6470; --grid: #dfe3e8;
  --good: #17703f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --fg: #e6e9ec; --dim: #a0a8b2;
  --grid: #30363c; --good: #6fd59c; --bad: #ff8a80; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.45 system-ui, sans-serif;
  max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.2em; border-bottom: 1px solid var(--grid); }
.plots { display: flex; flex-wrap: wrap; gap: 14px 26px; margin-bottom: 16px; }
svg { max-width: 100%; height: auto; }
svg .h { font: 600 13px system-ui, sans-serif; fill: var(--fg); }
svg .t { font: 12px system-ui, sans-serif; fill: var(--fg); }
svg .v { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg .g { stroke: var(--grid); fill: none; } svg .w { stroke: var(--fg); fill: none; opacity: .75; }
svg .l { fill: none; stroke-width: 2; }
.legend { position: sticky; top: 0; background: var(--bg); padding: .5em 0; z-index: 1; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } th, td { padding: .2em .7em; border-bottom: 1px solid var(--grid);
  text-align: right; white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
.good { color: var(--good); } .bad { color: var(--bad); } .note { color: var(--dim); }
details { margin: .8em 0; } summary { cursor: pointer; }
"""

# What a row's last part counts: (pattern, name of the axis, logarithmic).
AXES = [
    (re.compile(r"(.+)/(\d+)t$"), "threads", True),
    (re.compile(r"(.+)/([\d.]+)s$"), "seconds", False),
    (re.compile(r"(heap)-MiB/(\d+)$"), "live MiB", True),
    (re.compile(r"(spans)/(\d+)$"), "live spans", True),
]


def axis_of(row):
    """(series, x, axis name, logarithmic) of a row that is a point of a curve, else None."""
    for pattern, name, log_x in AXES:
        match = pattern.fullmatch(row)
        if match:
            return match.group(1), float(match.group(2)), name, log_x
    return None


def colour_rules(count):
    rules = []
    for colours, before, after in ((COLOURS_LIGHT, "", ""),
                                   (COLOURS_DARK, "@media (prefers-color-scheme: dark) { ", " }")):
        body = "".join(".c%d { fill: %s; background: %s; } .s%d { stroke: %s; }\n" %
                       (i, c, c, i, c)
                       for i, c in ((i, colours[i % len(colours)]) for i in range(count)))
        rules.append(before + body + after)
    return "\n".join(rules)


def curves(rows, order, unit, divisor):
    """Line plots of those rows of one table that are points over a number; and which rows."""
    groups, rows_of = {}, {}
    for row, cells in rows.items():
        axis = axis_of(row)
        if axis is None:
            continue
        series, x, name, log_x = axis
        group = groups.setdefault((series, name, log_x), {})
        rows_of.setdefault((series, name, log_x), []).append(row)
        for allocator, record in cells.items():
            group.setdefault(allocator, []).append((x, record))
    drawn, used = [], set()
    for key, group in groups.items():
        if max(len(points) for points in group.values()) < 3:
            continue  # two bars tell more than a line between two points
        series, name, log_x = key
        drawn.append(plots.lines(series, group, order, name, unit, divisor, log_x))
        used.update(rows_of[key])
    return drawn, used


def html_table(key, rows, order, subject, divisor, unit):
    present = [n for n in order if any(n in cells for cells in rows.values())]
    compare = subject in present
    head = ["row"] + ["%s" % n for n in present]
    head += ["%s/best" % subject, "%s/glibc" % subject] if compare else []
    out = ["<div class=\"wide\"><table><thead><tr>%s</tr></thead><tbody>" %
           "".join("<th>%s</th>" % esc(h) for h in head)]
    for row, cells in rows.items():
        line = ["<td>%s</td>" % esc(row)]
        line += ["<td>%s</td>" % (esc(table.cell(cells[n], divisor)) if n in cells else "–")
                 for n in present]
        if compare:
            for value in stats.ratios(cells, subject):
                cls = {table.GREEN: ' class="good"', table.RED: ' class="bad"'}.get(
                    table.ratio_colour(value), "")
                line.append("<td%s>%s</td>" % (cls, table.quotient(value)))
        out.append("<tr>%s</tr>" % "".join(line))
    if "glibc" in present and len(present) > 1 and len(rows) > 1 and stats.has_mean(key[0]):
        means = [table.quotient(stats.against_glibc(rows, n)) for n in present]
        if compare:
            means += [table.quotient(stats.against_best(rows, subject)),
                      table.quotient(stats.against_glibc(rows, subject))]
        out.append("<tr><th>geometric mean / glibc</th>%s</tr>" %
                   "".join("<th>%s</th>" % m for m in means))
    return "".join(out) + "</tbody></table></div>"


def section(key, rows, order, subject):
    suite, metric, unit = key
    divisor, unit = table.byte_scale(
        unit, [r["median"] for cells in rows.values() for r in cells.values()])
    out = ["<h3>%s <span class=\"note\">[%s]</span></h3>" % (esc(metric), esc(unit))]
    if table.is_shown(suite, metric, ""):
        drawn, used = curves(rows, order, unit, divisor)
        singles = [plots.bars(row, cells, order, divisor) for row, cells in rows.items()
                   if row not in used]
        out += ['<div class="plots">%s</div>' % "\n".join(part)
                for part in (drawn, singles) if part]
    out.append("<details><summary>Numbers: median (min–max)</summary>%s</details>" %
               html_table(key, rows, order, subject, divisor, unit))
    return "\n".join(out)


def render(records, names, subject, facts):
    """The page. `names` are the allocators, `facts` pairs that tell what was measured where."""
    order = [n for n in names if n == subject] + [n for n in names if n != subject]
    # The subject's colour stays its own even where it is absent.
    shift = 0 if subject in order else 1
    palette = ([""] * shift) + order
    out = ["<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8"/>',
           '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
           "<title>pcmalloc benchmark</title>",
           "<style>%s%s</style></head><body>" % (STYLE, colour_rules(len(palette))),
           "<h1>pcmalloc benchmark</h1>",
           '<p class="note">Less is better everywhere. Bars and points are medians; whiskers reach '
           "from the smallest to the largest run. Each bar plot has its own scale.</p>",
           "<table>%s</table>" % "".join("<tr><td>%s</td><td>%s</td></tr>" % (esc(k), esc(v))
                                         for k, v in facts),
           '<p class="legend">%s</p>' % "".join(
               '<span><i class="c%d"></i>%s</span>' % (palette.index(n), esc(n)) for n in order)]
    suite = None
    for key, rows in stats.tables(records).items():
        if key[0] != suite:
            suite = key[0]
            out.append("<h2>%s</h2>" % esc(suite))
        out.append(section(key, rows, palette, subject))
    return "\n".join(out) + "\n</body></html>\n"
