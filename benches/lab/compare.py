"""Whether two trees are the same: names, kinds, modes, owners, times, link targets, contents."""

import os
import stat


def trees(source, target):
    """The differences, the first 100 of them."""
    differences = []
    compare_directory(str(source), str(target), "", differences)
    return differences[:100]


def compare_directory(source, target, below, differences):
    theirs = {entry.name: entry for entry in os.scandir(os.path.join(target, below))}
    for entry in os.scandir(os.path.join(source, below)):
        path = os.path.join(below, entry.name)
        other = theirs.pop(entry.name, None)
        if other is None:
            differences.append(f"{path} is missing")
            continue
        difference = compare_entry(entry, other)
        if difference:
            differences.append(f"{path} has another {difference}")
        elif entry.is_dir(follow_symlinks=False):
            compare_directory(source, target, path, differences)
    differences.extend(f"{os.path.join(below, name)} should not be there" for name in theirs)


def compare_entry(entry, other):
    ours, theirs = entry.stat(follow_symlinks=False), other.stat(follow_symlinks=False)
    if ours.st_mode != theirs.st_mode:
        return "mode"
    if (ours.st_uid, ours.st_gid) != (theirs.st_uid, theirs.st_gid):
        return "owner"
    if ours.st_mtime_ns != theirs.st_mtime_ns:
        return "time"
    if stat.S_ISLNK(ours.st_mode) and os.readlink(entry.path) != os.readlink(other.path):
        return "target"
    if stat.S_ISREG(ours.st_mode):
        if ours.st_size != theirs.st_size:
            return "size"
        if not same_content(entry.path, other.path):
            return "content"
    return None


def same_content(one, other):
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        while True:
            block = first.read(1 << 20)
            if block != second.read(1 << 20):
                return False
            if not block:
                return True
