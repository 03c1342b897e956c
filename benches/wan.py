"""Measures vsync and rsync over long lines. Started by `benches/run --wan`, which sets everything up.

For every line: one incompressible file backed up into an empty store, and restored into an empty directory.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path

from lab import compare, data, disk, measure, report, tools, wan


def arguments():
    parser = argparse.ArgumentParser(prog="benches/run --wan", description="Measures vsync over long lines.")
    parser.add_argument("--peers", default="rsync", help="rsync, or nothing")
    parser.add_argument("--only", help="lines whose description contains this, such as '100 ms'")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--mib", type=int, help="size of the file, instead of one that fits the line")
    parser.add_argument("--suite", default="aes-256-gcm", help="cipher of vsync's realm")
    parser.add_argument("--output", type=Path, default=Path("benches/results"))
    return parser.parse_args()


def main():
    options = arguments()
    target = Path(os.environ["VSYNC_BENCH_TARGET"]).resolve()
    lab = Lab(options, target)
    rows = []
    for line, mib in wan.LINES:
        if options.only and options.only not in str(line):
            continue
        for name in ["vsync", *filter(None, options.peers.split(","))]:
            rows += [lab.measure(line, options.mib or mib, name) for _ in range(options.runs)]
    table = render(rows)
    print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    base = options.output / time.strftime("wan-%Y%m%d-%H%M%S")
    base.with_suffix(".txt").write_text(table)
    base.with_suffix(".json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    if any(row.differences for row in rows):
        sys.exit("not restored exactly")


@dataclasses.dataclass
class Row:
    """Megabytes of file in a second, both ways."""

    line: str
    tool: str
    mib: int
    backup: float
    restore: float
    # Packets carried, lost and dropped, towards the server and back.
    packets: str
    differences: int


class Lab:
    def __init__(self, options, target):
        self.options = options
        self.scratch = target / "bench-data/scratch"
        self.programs = target / "bench-tools"
        self.source = disk.Mount("source", self.scratch)
        self.store = disk.Mount("store", self.scratch)
        self.target = disk.Mount("target", self.scratch)

    def measure(self, line, mib, name):
        for mount in (self.source, self.store, self.target):
            mount.format()
        data.noise(self.source.path, mib)
        disk.warm(self.source.path)
        place = tools.Place(
            self.programs,
            self.store.path,
            self.source.path,
            self.options.suite,
            wan.ADDRESSES[wan.SERVER],
            wan.at(wan.SERVER),
            wan.at(wan.CLIENT),
        )
        with wan.Hosts(line) as hosts, tools.TOOLS[name](place) as tool:
            backup = measure.run(tool.backup(), tool.servers())
            restore = measure.run(tool.restore(self.target.path), tool.servers())
            differences = compare.trees(self.source.path, self.target.path)
            packets = hosts.counts()
        for mount in (self.source, self.store, self.target):
            mount.unmount()
        rate = lambda run: mib * 1.048576 / run.wall
        row = Row(str(line), name, mib, rate(backup), rate(restore), packets, len(differences))
        print(f"   {row.line:24} {name:6} {row.backup:6.2f} {row.restore:6.2f} MB/s  {packets}", flush=True)
        return row


def render(rows):
    lines = [f"{report.machine()}, TCP with {wan.tcp()}\nMB/s of a file that nothing compresses, over a line of 400 Mbit/s, 50 MB/s\n"]
    titles = ["line", "tool", "MiB", "backup", "restore"]
    lines.append("{:26}  {:6} {:>5} {:>8} {:>8}".format(*titles))
    groups = {}
    for row in rows:
        groups.setdefault((row.line, row.tool), []).append(row)
    for (line, tool), runs in groups.items():
        middle = lambda field: statistics.median(getattr(run, field) for run in runs)
        lines.append(f"{line:26}  {tool:6} {runs[0].mib:5} {middle('backup'):8.2f} {middle('restore'):8.2f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
