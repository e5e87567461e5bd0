# SPDX-License-Identifier: Apache-2.0
"""Results as aligned text."""

import stats

GREEN, RED, BOLD, PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[0m"

# What the terminal shows unless --metrics asks for more; JSON and HTML always hold everything.
PRIMARY = {
    "micro": ("cycles_per_op", "instructions_per_op"),
    "scale": ("ns_per_op", "cycles_per_op", "peak_rss_bytes", "rss_bytes"),
    "linearity": ("cpu_ns_per_op",),
    "programs": ("cpu_seconds", "max_rss_bytes", "page_faults", "instructions"),
}


def is_shown(suite, metric, metrics):
    if metrics == "all":
        return True
    if metrics:
        return metric in metrics.split(",")
    return metric in PRIMARY.get(suite, (metric,))


def number(value):
    """Three significant digits, no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return "%d" % round(value)
    if abs(value) >= 10:
        return "%.1f" % value
    if abs(value) >= 0.095:
        return "%.2f" % value
    return "%.3g" % value


def byte_scale(unit, values):
    """(divisor, unit's name) that keeps a table of bytes readable: four digits are,
    0.00546 is not."""
    largest = max(values, default=0)
    if unit == "B" and largest >= 4 * 2**20:
        return 2**20, "MiB"
    if unit == "B" and largest >= 2**10:
        return 2**10, "KiB"
    return 1, unit


def cell(record, divisor):
    median, low, high = (number(record[k] / divisor) for k in ("median", "min", "max"))
    return median if low == high else "%s (%s–%s)" % (median, low, high)


def quotient(value):
    return "–" if value is None else "%.2f" % value


def paint(text, colour, on):
    return colour + text + PLAIN if on and colour else text


def ratio_colour(value):
    if value is None or 0.97 <= value <= 1.03:
        return ""
    return GREEN if value < 1 else RED


def aligned(lines, colours, on):
    """Pads columns (first to the left, others to the right), then paints."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = []
    for line, paints in zip(lines, colours):
        padded = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        ]
        out.append("  ".join(paint(t, c, on) for t, c in zip(padded, paints)).rstrip())
    return "\n".join(out)


def one_table(key, rows, allocators, subject, failed, colour):
    suite, metric, unit = key
    present = [a for a in allocators
               if any(a in cells or (suite, row, a) in failed for row, cells in rows.items())]
    largest = [r["median"] for cells in rows.values() for r in cells.values()]
    divisor, unit = byte_scale(unit, largest)
    head = ["row"] + present
    compare = subject in present
    if compare:
        head += ["best peer", "%s/best" % subject, "%s/glibc" % subject]
    lines, colours = [head], [[BOLD] * len(head)]
    for row, cells in rows.items():
        line, paints = [row], [""]
        lowest = min(r["median"] for r in cells.values())
        for name in present:
            if name in cells:
                line.append(cell(cells[name], divisor))
                paints.append(GREEN if cells[name]["median"] == lowest else "")
            else:
                line.append("failed" if (suite, row, name) in failed else "–")
                paints.append(RED)
        if compare:
            peer = stats.best_peer(cells, subject)
            to_best, to_glibc = stats.ratios(cells, subject)
            line += [peer["allocator"] if peer else "–", quotient(to_best), quotient(to_glibc)]
            paints += ["", ratio_colour(to_best), ratio_colour(to_glibc)]
        lines.append(line)
        colours.append(paints)
    if "glibc" in present and len(present) > 1 and len(rows) > 1 and stats.has_mean(suite):
        means = [stats.against_glibc(rows, name) for name in present]
        line = ["geometric mean / glibc"] + [quotient(m) for m in means]
        if compare:
            line += ["", quotient(stats.against_best(rows, subject)),
                     quotient(stats.against_glibc(rows, subject))]
        lines.append(line)
        colours.append([BOLD] * len(line))
    title = "%s: %s [%s], median (min–max), less is better" % (suite, metric, unit)
    return paint(title, BOLD, colour) + "\n" + aligned(lines, colours, colour)


def render(records, allocators, subject, failed=(), colour=False, metrics=""):
    """All tables. `failed` holds (suite, row, allocator) of runs that did not end well."""
    parts = [
        one_table(key, rows, allocators, subject, failed, colour)
        for key, rows in stats.tables(records).items()
        if is_shown(key[0], key[1], metrics)
    ]
    return "\n\n".join(parts) + "\n"
