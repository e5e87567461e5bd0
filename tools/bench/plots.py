# SPDX-License-Identifier: Apache-2.0
"""SVG of results: bars with the range of the runs, and lines over a number.

Colours are CSS classes (c0, c1, ...), so that the page decides them for light and dark.
"""

import html
import math

import table


def esc(text):
    return html.escape(str(text), quote=True)


def text(x, y, content, cls="t", anchor="start"):
    return '<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>' % (
        x, y, cls, anchor, esc(content))


def bars(title, cells, order, divisor):
    """One row of a table: a bar for each allocator, its label, its median and range."""
    names = [n for n in order if n in cells]
    width, label, step, top = 330, 112, 19, 24
    room = width - label - 62
    largest = max((cells[n]["max"] for n in names), default=0) or 1
    height = top + step * len(names) + 4
    out = ['<svg viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">' %
           (width, height, width, height, esc(title)), text(0, 14, title, "h")]
    for i, name in enumerate(names):
        cell, y = cells[name], top + step * i
        length = room * cell["median"] / largest
        low, high = (label + room * cell[k] / largest for k in ("min", "max"))
        out.append(text(label - 6, y + 11, name, "t", "end"))
        out.append('<rect x="%d" y="%d" width="%.1f" height="13" class="c%d"><title>%s</title>'
                   "</rect>" % (label, y, max(length, 0.5), order.index(name),
                      esc("%s %s: %s" % (title, name, table.cell(cell, divisor)))))
        if high > low:
            out.append('<path d="M%.1f %.1fH%.1fM%.1f %dv7M%.1f %dv7" class="w"/>' %
                       (low, y + 6.5, high, low, y + 3, high, y + 3))
        out.append(text(max(label + length, high) + 5, y + 11,
                        table.number(cell["median"] / divisor), "v"))
    return "".join(out) + "</svg>"


def ticks(top):
    """Round values from 0 to at least `top`, three to six of them."""
    if top <= 0:
        return [0, 1]
    step = 10 ** math.floor(math.log10(top))
    for factor in (0.2, 0.5, 1, 2):
        if top / (step * factor) <= 5:
            step *= factor
            break
    return [i * step for i in range(int(math.ceil(top / step - 1e-9)) + 1)]


def lines(title, series, order, x_name, y_name, divisor, log_x):
    """`series` is {allocator: [(x, record)]}, drawn over x with a whisker from min to max."""
    width, height, left, right, top, bottom = 500, 260, 52, 22, 28, 40
    xs = sorted({x for points in series.values() for x, _ in points})
    place = (lambda x: math.log2(x)) if log_x else (lambda x: x)
    x_low, x_high = place(xs[0]), place(xs[-1])
    marks = ticks(max(r["max"] for points in series.values() for _, r in points) / divisor)

    def px(x):
        share = (place(x) - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return left + share * (width - left - right)

    def py(value):
        return height - bottom - value / divisor / marks[-1] * (height - top - bottom)

    out = ['<svg viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">' %
           (width, height, width, height, esc(title)), text(0, 14, title, "h")]
    for mark in marks:
        y = py(mark * divisor)
        out.append('<path d="M%d %.1fH%d" class="g"/>' % (left, y, width - right))
        out.append(text(left - 5, y + 4, "%g" % mark, "v", "end"))
    shown_at = -100
    for x in xs:
        if px(x) - shown_at < 26:
            continue
        shown_at = px(x)
        out.append(text(px(x), height - bottom + 15, "%g" % x, "v", "middle"))
    out.append(text((left + width - right) / 2, height - 6,
                    "%s; vertical: %s" % (x_name, y_name), "v", "middle"))
    for name in order:
        points = sorted(series.get(name, []), key=lambda p: p[0])
        if not points:
            continue
        colour = order.index(name)
        path = "L".join("%.1f %.1f" % (px(x), py(r["median"])) for x, r in points)
        out.append('<path d="M%s" class="l s%d"/>' % (path, colour))
        for x, r in points:
            out.append('<path d="M%.1f %.1fV%.1f" class="w"/>' %
                       (px(x), py(r["min"]), py(r["max"])))
            out.append('<circle cx="%.1f" cy="%.1f" r="3.2" class="c%d"><title>%s</title>'
                       "</circle>" %
                       (px(x), py(r["median"]), colour,
                        esc("%s at %g: %s" % (name, x, table.cell(r, divisor)))))
    return "".join(out) + "</svg>"
