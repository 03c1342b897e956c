"""Runs one command and says what it cost, on both sides."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Command:
    """What is run as one step. Several commands in `words` run one after the other."""

    words: list
    env: dict
    cwd: str = "/"
    # Exit codes that are fine.
    fine: tuple = (0,)


@dataclasses.dataclass
class Run:
    """What a step cost. Seconds and bytes."""

    wall: float
    client_cpu: float
    server_cpu: float
    wire: int
    client_peak: int
    server_peak: int
    # Processor time of everything else on the machine meanwhile: a noisy run can be told by it.
    other_cpu: float
    # What of it was not yet on disk: a sync right afterwards took so long.
    sync: float = 0.0
    stored: int = 0
    differences: list = dataclasses.field(default_factory=list)


def run(command, servers):
    """Runs a command whose other side are `servers`, by process id."""
    os.sync()
    output = tempfile.TemporaryFile()
    wire, served, machine = wire_bytes(), sum(map(tree_cpu, servers)), machine_cpu()
    begun = time.monotonic()
    client = subprocess.Popen(
        command.words, env=command.env, cwd=command.cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    )
    peaks = Peaks(client.pid, servers)
    peaks.start()
    _, status, usage = os.wait4(client.pid, 0)
    wall = time.monotonic() - begun
    client.returncode = os.waitstatus_to_exitcode(status)
    peaks.stop()
    settle(servers)
    client_cpu = usage.ru_utime + usage.ru_stime
    server_cpu = sum(map(tree_cpu, servers)) - served
    other_cpu = max(0.0, machine_cpu() - machine - client_cpu - server_cpu)
    measured = Run(
        wall=wall,
        client_cpu=client_cpu,
        server_cpu=server_cpu,
        wire=wire_bytes() - wire,
        client_peak=peaks.client,
        server_peak=peaks.server,
        other_cpu=other_cpu,
    )
    if client.returncode not in command.fine:
        output.seek(0)
        sys.stderr.write(output.read().decode(errors="replace")[-4000:])
        sys.exit(f"exit code {client.returncode} of {' '.join(map(str, command.words))}")
    begun = time.monotonic()
    os.sync()
    measured.sync = time.monotonic() - begun
    return measured


def wire_bytes():
    """What has come in through this network namespace's only interface: both directions of every connection."""
    for line in open("/proc/net/dev"):
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def machine_cpu():
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / TICK


def tree_cpu(pid):
    """Processor time of a process and of all its children that have ended, and of those that live."""
    try:
        stat = open(f"/proc/{pid}/stat").read()
    except OSError:
        return 0.0
    own = sum(int(field) for field in stat[stat.rindex(")") + 2 :].split()[11:15]) / TICK
    return own + sum(map(tree_cpu, children(pid)))


def children(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(child) for child in open(f"/proc/{pid}/task/{task}/children").read().split()]
    except OSError:
        pass
    return found


def settle(servers):
    """Waits until what a server has started for a client has ended, and can be counted."""
    deadline = time.monotonic() + 5
    while any(children(pid) for pid in servers) and time.monotonic() < deadline:
        time.sleep(0.02)


class Peaks(threading.Thread):
    """Looks now and then how much memory the processes of both sides have taken at most."""

    def __init__(self, client, servers):
        super().__init__(daemon=True)
        self.roots = client, servers
        self.client = self.server = 0
        self.ended = threading.Event()

    def run(self):
        client, servers = self.roots
        while not self.ended.wait(0.05):
            self.client = max(self.client, tree_memory(client))
            self.server = max(self.server, sum(map(tree_memory, servers)))

    def stop(self):
        self.ended.set()
        self.join()


def tree_memory(pid):
    try:
        lines = open(f"/proc/{pid}/status").read().splitlines()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
    return own + sum(map(tree_memory, children(pid)))
