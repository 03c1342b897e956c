"""Measures vsync beside its peers. Started by `benches/run`, which sets everything up; read that first.

One cycle, for one tool and one set of data, each on file systems of its own:

    first       back up version 1
    unchanged   back it up again
    changed     back up version 2, the same files changed in place
    restore     restore version 2 into an empty directory
    over        restore version 2 over version 1, which the tool has never seen
    refresh     restore version 2 over version 1, which the tool restored before
    few         like changed, but from version 1 to version 3: few and scattered changes (A only)

What was restored is compared with the source every time.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from lab import compare, data, disk, measure, report, tools

WORKS = ["first", "unchanged", "changed", "few", "restore", "over", "refresh"]

# These need version 2 in the store.
OF_THE_CHANGED = {"restore", "over", "refresh"}

# A run that is shorter than this says little by itself.
SHORT = 5.0


def arguments():
    parser = argparse.ArgumentParser(prog="benches/run", description="Measures vsync beside its peers.")
    parser.add_argument("--quick", action="store_true", help="small data, one run: ten minutes")
    parser.add_argument("--only", default="A,B,C", metavar="A,B,C", help="data: A PostgreSQL, B small files, C random")
    parser.add_argument("--work", default=",".join(WORKS), metavar="WORK,…", help="some of " + ", ".join(WORKS))
    parser.add_argument("--peers", metavar="PEER,…", help="some of " + ", ".join(tools.PEERS))
    parser.add_argument("--all-peers", action="store_true", help="also those that are built from source for long")
    parser.add_argument("--tool", metavar="TOOL", help="this one alone")
    parser.add_argument("--runs", type=int, help="runs of everything [default: 3 where one is short, else 1]")
    parser.add_argument("--suite", default="aes-256-gcm", help="cipher of vsync's realm")
    parser.add_argument("--output", type=Path, default=Path("benches/results"), help="where the results go")
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only.split(",")
    options.work = options.work.split(",")
    if unknown := set(options.only) - {"A", "B", "C"} | set(options.work) - set(WORKS):
        parser.error("what is " + ", ".join(sorted(unknown)) + "?")
    peers = options.peers.split(",") if options.peers else tools.usual_peers(options.all_peers)
    options.tools = [options.tool] if options.tool else ["vsync", *peers]
    if unknown := set(options.tools) - set(tools.TOOLS):
        parser.error("no such tool: " + ", ".join(sorted(unknown)))
    return options


def main():
    options = arguments()
    if options.plan:
        print(f"list={shlex.quote(','.join(options.tools))} data={shlex.quote(','.join(options.only))}")
        return
    target = Path(os.environ["VSYNC_BENCH_TARGET"]).resolve()
    bench = Bench(options, target)
    results = report.Results(options, {name: tools.version(name, bench.place) for name in options.tools})
    for letter in options.only:
        versions = data.make(letter, target / "bench-data", options.quick)
        for name in options.tools:
            bench.measure(name, letter, versions, results)
            results.save()
    print(results.table())
    if results.inexact:
        sys.exit("not restored exactly: " + ", ".join(sorted(results.inexact)))


class Bench:
    """Runs cycles."""

    def __init__(self, options, target):
        self.options = options
        self.source = disk.Mount("source")
        self.store = disk.Mount("store", target / "bench-data/scratch")
        self.target = disk.Mount("target", target / "bench-data/scratch")
        self.kept = disk.Mount("kept", target / "bench-data/scratch")
        self.place = tools.Place(target / "bench-tools", self.store.path, self.source.path, options.suite)

    def measure(self, name, letter, versions, results):
        self.cell = lambda work: results.cell(letter, work, name)
        work = self.options.work
        if {"first", "unchanged", "changed", *OF_THE_CHANGED} & set(work):
            self.repeat("changed", lambda again: self.cycle(name, versions, "changed", versions[1], again))
        if "few" in work and len(versions) > 2:
            self.repeat("few", lambda again: self.cycle(name, versions, "few", versions[2], True))

    def repeat(self, work, cycle):
        """One cycle; then backups only, until there are enough of them."""
        cycle(False)
        cells = [self.cell(each) for each in ("first", work) if each in self.options.work]
        while any(self.wants_more(cell) for cell in cells):
            cycle(True)

    def wants_more(self, cell):
        if self.options.runs:
            return len(cell.runs) < self.options.runs
        return not self.options.quick and len(cell.runs) < 3 and cell.runs and cell.median("wall") < SHORT

    def cycle(self, name, versions, change, changed, backups_only):
        work = self.options.work
        refresh = "refresh" in work and change == "changed" and not backups_only
        self.store.format()
        self.source.mount(versions[0], read_only=True)
        tool = tools.TOOLS[name](self.place)
        with tool:
            self.step(tool, "first", tool.backup())
            self.again("unchanged", not backups_only, lambda: self.step(tool, "unchanged", tool.backup()))
            if refresh:
                self.kept.format()
                measure.run(tool.restore(self.kept.path), tool.servers())
            if {change, *OF_THE_CHANGED} & set(work):
                self.source.mount(changed, read_only=True)
                self.step(tool, change, tool.backup())
            if refresh:
                self.restore(tool, "refresh", self.kept)
                self.kept.unmount()
            self.again("restore", not backups_only, lambda: self.restore(tool, "restore", self.empty()))
            self.again("over", not backups_only, lambda: self.restore(tool, "over", self.copy(versions[0])))
        self.store.unmount()

    def again(self, work, wanted, step):
        """A step that can be repeated by itself."""
        if not wanted or work not in self.options.work:
            return
        step()
        while self.wants_more(self.cell(work)):
            step()

    def step(self, tool, work, command):
        before = disk.used(self.store.path)
        run = measure.run(command, tool.servers())
        run.stored = disk.used(self.store.path) - before
        if work in self.options.work:
            self.cell(work).add(run)
        return run

    def empty(self):
        self.target.format()
        return self.target

    def copy(self, version):
        self.target.copy(version)
        return self.target

    def restore(self, tool, work, target):
        run = self.step(tool, work, tool.restore(target.path))
        run.stored = 0
        run.differences = compare.trees(self.source.path, target.path)
        for difference in run.differences[:5]:
            print(f"    {difference}", file=sys.stderr)
        if target is self.target:
            target.unmount()


if __name__ == "__main__":
    main()
