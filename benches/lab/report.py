"""Results: as JSON, as a table, as a chart."""

import dataclasses
import html
import json
import os
import platform
import statistics
import time

from . import measure

FIELDS = [field.name for field in dataclasses.fields(measure.Run) if field.name != "differences"]

COLUMNS = [
    ("wall s", lambda cell: f"{cell.median('wall'):.2f}"),
    ("ratio", lambda cell: f"{cell.ratio:.2f}" if cell.ratio else "-"),
    ("sync s", lambda cell: f"{cell.median('sync'):.2f}"),
    ("durable", lambda cell: f"{cell.durable:.2f}" if cell.durable else "-"),
    ("cpu client", lambda cell: f"{cell.median('client_cpu'):.2f}"),
    ("cpu server", lambda cell: f"{cell.median('server_cpu'):.2f}"),
    ("wire MB", lambda cell: f"{cell.median('wire') / 1e6:.1f}"),
    ("stored MB", lambda cell: f"{cell.median('stored') / 1e6:.1f}"),
    ("MiB client", lambda cell: f"{cell.median('client_peak') / 2**20:.0f}"),
    ("MiB server", lambda cell: f"{cell.median('server_peak') / 2**20:.0f}"),
    ("others' cpu", lambda cell: f"{cell.median('other_cpu'):.1f}"),
    ("runs", lambda cell: str(len(cell.runs))),
    ("exact", lambda cell: "no" if cell.inexact else "yes" if cell.compared else ""),
]

COLOURS = ["#1f6f54", "#8a9199", "#a9afb5", "#6c7a89", "#b8a88a", "#93a8b0", "#b09aa8"]


class Cell:
    """All runs of one tool at one piece of work."""

    def __init__(self, data, work, tool):
        self.data, self.work, self.tool = data, work, tool
        self.runs = []
        # Wall time over that of the fastest peer.
        self.ratio = None
        # The same, with the time that it took until all of it was on disk.
        self.durable = None

    def add(self, run):
        self.runs.append(run)
        busy = f", {run.other_cpu:.1f} s of cpu by others" if run.other_cpu > run.wall / 2 else ""
        print(f"   {self.data} {self.work:9} {self.tool:8} {run.wall:7.2f} s{busy}", flush=True)

    def median(self, field):
        return statistics.median(getattr(run, field) for run in self.runs)

    def until_on_disk(self):
        return self.median("wall") + self.median("sync")

    @property
    def compared(self):
        return self.work in ("restore", "over", "refresh")

    @property
    def inexact(self):
        return any(run.differences for run in self.runs)

    def to_json(self):
        medians = {field: self.median(field) for field in FIELDS}
        runs = [dataclasses.asdict(run) for run in self.runs]
        names = {"data": self.data, "work": self.work, "tool": self.tool}
        return names | {"median": medians, "ratio": self.ratio, "durable": self.durable, "runs": runs}


class Results:
    """All cells of one run of the benchmark."""

    def __init__(self, options, versions):
        self.options, self.versions = options, versions
        self.cells = {}
        self.name = time.strftime("%Y%m%d-%H%M%S")
        options.output.mkdir(parents=True, exist_ok=True)

    def cell(self, data, work, tool):
        return self.cells.setdefault((data, work, tool), Cell(data, work, tool))

    def groups(self):
        """The cells that compete, by data and work, with their ratios."""
        groups = {}
        for cell in self.cells.values():
            if cell.runs:
                groups.setdefault((cell.data, cell.work), []).append(cell)
        for cells in groups.values():
            peers = [cell for cell in cells if cell.tool != "vsync"]
            if not peers:
                continue
            for cell in cells:
                cell.ratio = cell.median("wall") / min(peer.median("wall") for peer in peers)
                cell.durable = cell.until_on_disk() / min(peer.until_on_disk() for peer in peers)
        return groups

    @property
    def inexact(self):
        """vsync's own failures; a peer that restores inexactly is a line in the table."""
        return {f"{cell.data} {cell.work}" for cell in self.cells.values() if cell.tool == "vsync" and cell.inexact}

    def save(self):
        """Writes all three files; after every tool, so that an interrupted run leaves what it has."""
        groups = self.groups()
        cells = [cell.to_json() for group in groups.values() for cell in group]
        about = {"machine": machine(), "tools": self.versions, "quick": self.options.quick}
        base = self.options.output / self.name
        base.with_suffix(".json").write_text(json.dumps(about | {"cells": cells}, indent=1) + "\n")
        base.with_suffix(".txt").write_text(self.table())
        base.with_suffix(".svg").write_text(chart(groups, self.options.tools))

    def table(self):
        tools = ", ".join(f"{tool} {version}" for tool, version in self.versions.items())
        rows = [["data", "work", "tool", *(title for title, _ in COLUMNS)]]
        for (data, work), cells in self.groups().items():
            rows += [[data, work, cell.tool, *(show(cell) for _, show in COLUMNS)] for cell in cells]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [f"{machine()}\n{tools}\nratio: to the fastest peer; durable: the same, each with the sync that it left undone\n"]
        last = rows[0][:2]
        for row in rows:
            if row[:2] != last:
                lines.append("")
                last = row[:2]
            left = [row[column].ljust(widths[column]) for column in range(3)]
            right = [row[column].rjust(widths[column]) for column in range(3, len(row))]
            lines.append("  ".join(left + right).rstrip())
        return "\n".join(lines) + "\n"


def machine():
    lines = open("/proc/cpuinfo").read().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} × {model}, {memory >> 30} GiB, Linux {platform.release()}"


def chart(groups, tools):
    """Bars of wall time; in each group the slowest is as long as there is room."""
    bar, gap, left, room = 14, 22, 150, 460
    parts, y = [], 10
    for (data, work), cells in groups.items():
        longest = max(cell.median("wall") for cell in cells)
        middle = y + bar * len(cells) / 2 + 4
        parts.append(f'<text x="8" y="{middle:.0f}" font-weight="bold">{data} {html.escape(work)}</text>')
        for cell in cells:
            wall = cell.median("wall")
            colour = COLOURS[tools.index(cell.tool) % len(COLOURS)]
            length = max(1, room * wall / longest)
            parts.append(f'<text x="{left - 6}" y="{y + bar - 3}" text-anchor="end">{cell.tool}</text>')
            parts.append(f'<rect x="{left}" y="{y + 1}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 5:.0f}" y="{y + bar - 3}">{wall:.2f} s</text>')
            y += bar
        y += gap
    size = f'width="{left + room + 70}" height="{y}" viewBox="0 0 {left + room + 70} {y}"'
    style = 'font-family="sans-serif" font-size="11" fill="#222"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{background}\n' + "\n".join(parts) + "\n</svg>\n"
