"""A long line between client and server: two network namespaces, and a program that carries packets between them.

TCP and UDP cross the same line: it delays, loses and limits packets without asking whose they are.
"""

import dataclasses
import fcntl
import os
import struct
import subprocess
from pathlib import Path

# From <linux/if_tun.h>.
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000

CLIENT, SERVER = "vsync-bench-client", "vsync-bench-server"
ADDRESSES = {CLIENT: "10.213.0.1", SERVER: "10.213.0.2"}


@dataclasses.dataclass(frozen=True)
class Line:
    """Round trip in milliseconds, shares of packets that are lost and overtaken, megabits a second."""

    rtt: int
    loss: float = 0.0
    reorder: float = 0.0
    mbit: int = 400

    def __str__(self):
        late = f", {self.reorder:.0%} late" if self.reorder else ""
        return f"{self.rtt} ms, {self.loss:.1%} lost{late}"


# How much crosses a line: less where the peer would take minutes.
LINES = [
    (Line(50), 256),
    (Line(100), 256),
    (Line(50, 0.001), 48),
    (Line(100, 0.001), 48),
    (Line(100, 0.01), 16),
    (Line(100, 0.0, 0.02), 48),
]


class Hosts:
    """Two hosts and a line. As a context manager, they exist."""

    def __init__(self, line):
        self.line = line

    def __enter__(self):
        ends = [self.host(name) for name in (CLIENT, SERVER)]
        words = [os.environ["VSYNC_BENCH_LINK"], "--delay-ms", self.line.rtt / 2, "--loss", self.line.loss]
        words += ["--reorder", self.line.reorder, "--mbit", self.line.mbit]
        # `link` writes its counts once a second.
        self.log = open("/run/vsync-bench/link.log", "wb")
        self.process = subprocess.Popen(
            [str(word) for word in words], stdin=ends[0], stdout=ends[1], stderr=self.log
        )
        for end in ends:
            os.close(end)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()
        for name in ADDRESSES:
            ip("netns", "delete", name)

    def host(self, name):
        """A namespace with one interface, whose packets can be had from the file descriptor that is returned."""
        ip("netns", "add", name)
        end = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"wan0", IFF_TUN | IFF_NO_PI))
        ip("link", "set", "wan0", "netns", name)
        inside = lambda *words: ip("-n", name, *words)
        inside("link", "set", "lo", "up")
        inside("link", "set", "wan0", "mtu", "1500", "txqueuelen", "10000")
        inside("address", "add", f"{ADDRESSES[name]}/24", "dev", "wan0")
        inside("link", "set", "wan0", "up")
        return end

    def counts(self):
        """Packets carried, lost and dropped, towards the server and back."""
        lines = Path(self.log.name).read_text().split("\n")
        return lines[-2] if len(lines) > 1 else "-"


def tcp():
    """How TCP sends here: a namespace of one's own may not choose."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def at(name):
    return ("ip", "netns", "exec", name)


def ip(*words):
    subprocess.run(["ip", *words], check=True)
