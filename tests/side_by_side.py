"""Runs test binaries side by side: many of them wait more than they work, for clocks, patience and flushes.

    python3 tests/side_by_side.py [JOBS]       so many that work at once, or else one less than there are processors, and
                                               one that mostly waits

Builds all tests of the workspace, runs their binaries and then the examples in the documentation. Each binary's output
is printed whole when it has ended. Fails if one of them did, after all have run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import namedtuple

# These wait most of their time: one of them runs at any time, beside those that work.
PATIENT = "containers schedule watching upkeep alerting alerts comfort".split()

# Of the others these take longest, and begin first, so that no core is idle in the end. Who is missing here costs time
# and nothing else.
LONGEST = """
    memory vsync_server crashes quiesce torture independent_reader wire damage power_cuts decoders
""".split()

# These run with nobody beside them: they measure what others disturb (the page cache), are patient for seconds only, or
# have volumes whose names are given.
ALONE = ["good_neighbour", "malicious_server", "bad_input", "network", "montagu", "runbook"]

Binary = namedtuple("Binary", "name source path directory")
Running = namedtuple("Running", "binary process output")

CARGO = ["cargo", "test", "--locked", "--workspace"]


def build():
    """Builds all tests; returns the binaries that cargo says it has built."""
    words = ["--no-run", "--message-format=json-render-diagnostics"]
    messages = subprocess.run(CARGO + words, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if messages.returncode != 0:
        sys.exit(messages.returncode)
    found = []
    for line in messages.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") != "compiler-artifact" or not message["profile"]["test"] or not message["executable"]:
            continue
        target, directory = message["target"], os.path.dirname(message["manifest_path"])
        source = os.path.relpath(target["src_path"])
        found.append(Binary(target["name"].replace("-", "_"), source, message["executable"], directory))
    return found


def start(binary):
    output = tempfile.TemporaryFile()
    # As cargo does: in the directory of the package.
    environment = dict(os.environ, CARGO_MANIFEST_DIR=binary.directory)
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([binary.path], cwd=binary.directory, env=environment, **streams)
    return Running(binary, process, output)


def report(ended):
    """Prints what a binary said; tells whether it failed."""
    code = ended.process.returncode
    print(f"     Running {ended.binary.source} ({os.path.relpath(ended.binary.path)})", flush=True)
    ended.output.seek(0)
    while part := ended.output.read(1 << 16):
        sys.stdout.buffer.write(part)
    if code != 0:
        print(f"error: {ended.binary.source} failed with {'signal' if code < 0 else 'exit status'} {abs(code)}")
    sys.stdout.flush()
    return code != 0


def run(*lanes):
    """Runs all binaries of all lanes, of each as many at once as stands before them; returns those that failed."""
    waiting, running, failed = [list(binaries) for _, binaries in lanes], [[] for _ in lanes], []
    while any(waiting) or any(running):
        for number, (jobs, _) in enumerate(lanes):
            while waiting[number] and len(running[number]) < jobs:
                running[number].append(start(waiting[number].pop(0)))
            ended = [one for one in running[number] if one.process.poll() is not None]
            running[number] = [one for one in running[number] if one not in ended]
            failed += [one.binary for one in ended if report(one)]
        time.sleep(0.1)
    return failed


def of(binaries, names):
    """The binaries of these names, in this order."""
    return [one for name in names for one in binaries if one.name == name]


def main():
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else max(os.cpu_count() - 1, 1)
    binaries = build()
    named = PATIENT + LONGEST + ALONE
    others = of(binaries, LONGEST) + [one for one in binaries if one.name not in named]
    failed = run((1, of(binaries, PATIENT)), (jobs, others)) + run((1, of(binaries, ALONE)))
    examples = subprocess.run(CARGO + ["--doc", "--no-fail-fast"], check=False)
    if failed:
        names = ", ".join(one.source for one in failed)
        print(f"error: {len(failed)} of {len(binaries)} test binaries failed: {names}")
    sys.exit(101 if failed else examples.returncode)


main()
