#!/usr/bin/env python3
"""Restores a snapshot from the files of a vsync server, without any of vsync's code.

Written from docs/format.md alone, to prove that the page is enough, and for the day on which nothing else is left: it
needs the recovery kit (or the root secret in hexadecimal) and the server's directory. It checks everything that can be
checked and stops at the first thing that is not as it must be. A vsync.pub given with --pub is trusted as it is.

    reader.py --kit kit.txt --store DIR [--pub vsync.pub] [--id HEX] [--volume NAME] [--source NAME] TARGET
"""

import argparse, os, pathlib, re, stat, struct, sys

import blake3, cbor2, pyrage, zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

CHUNK, LEAF, INNER, ROOT = 1, 2, 3, 4
FILE, DIRECTORY, SYMLINK, HARD_LINK, CHARACTER, BLOCK, FIFO, SOCKET = range(8)
NODE_TYPES = {CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK, FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK}
SUITES = {1: ChaCha20Poly1305, 2: AESGCM}
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

MAX_RAW, MAX_REFS, MAX_BLOB, MAX_MANIFEST = 8 << 20, 65536, 11_010_048, 256 << 10
MAX_ENTRY, MAX_DEPTH, MAX_EXTENTS, MAX_PATH, MAX_RECORDS, MAX_WINDOW = 64 << 10, 16, 64, 256 << 10, 65536, 1 << 23


class Refused(Exception):
    """Something is not as docs/format.md says."""


# Whatever foreign bytes can make the libraries say.
REFUSALS = (Refused, InvalidTag, pyrage.DecryptError, zstandard.ZstdError, cbor2.CBORError, struct.error)
REFUSALS += (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError)


def require(condition, words):
    if not condition:
        raise Refused(words)


def hashed(data, key=None):
    return (blake3.blake3(data, key=key) if key else blake3.blake3(data)).digest()


def decoded(data):
    value = cbor2.loads(data)
    require(cbor2.dumps(value) == data, "CBOR that is not in its shortest form, or has an appendix")
    return value


def derived(context, material, length=32):
    return blake3.blake3(material, derive_key_context="vsync.v1 2026-11 " + context).digest(length=length)


def bech32_checksum(part, values):
    check = 1
    for value in [ord(c) >> 5 for c in part] + [0] + [ord(c) & 31 for c in part] + values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return check


def bech32_encode(part, secret):
    bits = int.from_bytes(secret, "big") << 4  # 256 bits in 52 groups of 5
    values = [bits >> 5 * at & 31 for at in reversed(range(52))]
    check = bech32_checksum(part, values + [0] * 6) ^ 1
    return part + "1" + "".join(BECH32[v] for v in values + [check >> 5 * at & 31 for at in reversed(range(6))])


def bech32_decode(part, text):
    require(re.fullmatch(f"{part}1[{BECH32}]{{58}}", text), f"not {part}1 and 58 characters of {BECH32}")
    values = [BECH32.index(c) for c in text[len(part) + 1 :]]
    bits = sum(value << 5 * at for at, value in enumerate(reversed(values[:52])))
    require(bech32_checksum(part, values) == 1 and bits & 15 == 0, "the secret is mistyped")
    return (bits >> 4).to_bytes(32, "big")


def root_secret(text):
    """The root secret from a recovery kit, its secret line, or 64 hexadecimal digits."""
    if re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", text):
        return bytes.fromhex(text.strip())
    lines = [line.strip() for line in text.splitlines()]
    found = [line.split(None, 1)[1] for line in lines if re.match(r"secret\s", line)]
    found += [line for line in lines if line.lower().startswith("vsync1")]
    require(found, "no line `secret vsync1…` in the recovery kit")
    secret = bech32_decode("vsync", "".join(found[0].split()).lower())
    ids = [bytes.fromhex(line.split()[1]) for line in lines if re.match(r"id\s", line)]
    require(not ids or ids[0] == derived("realm id", secret)[:16], "the kit is of another realm than its page")
    return secret


class Epoch:
    """What a reader holds of one key epoch."""

    def __init__(self, root, number):
        self.secret = derived("epoch secret", root + struct.pack("<I", number))
        text = bech32_encode("age-secret-key-", derived("read identity", self.secret)).upper()
        self.identity = pyrage.x25519.Identity.from_str(text)
        self.writer = derived("writer secret", self.secret)
        self.convergence = derived("convergence", self.writer)


def read_registry(data, root):
    """Every key with which each machine signs or ever signed; with a root secret, the file must be signed."""
    if root:
        text, _, hexadecimal = data.rpartition(b"signature ")
        admin = Ed25519PrivateKey.from_private_bytes(derived("admin signing", root)).public_key()
        require(re.fullmatch(rb"[0-9a-f]{128}\n", hexadecimal) and text.endswith(b"\n"), "vsync.pub is not signed")
        signature = bytes.fromhex(hexadecimal.decode())
        require(signs(admin, signature, b"vsync.v1 registry\0" + hashed(text)), "vsync.pub is not signed by the realm")
    keys = {}
    for words in (line.split(b"#")[0].split() for line in data.splitlines()):
        if words and words[0] in (b"machine", b"retired"):
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(words[3].decode()))
            keys.setdefault(words[1].decode(), []).append(key)
    return keys


class Store:
    """A server's directory, without its catalog."""

    def __init__(self, path, realm):
        self.path, self.blobs = pathlib.Path(path), {}
        mark = (self.path / "VERSION").read_text()
        require(mark == f"vsync-store 1\nrealm {realm.hex()}\n", "VERSION is of another realm or format")
        for pack in sorted(self.path.glob("packs/??/*.pack")):
            for cid, place in read_table(pack):
                self.blobs.setdefault(cid, []).append(place)

    def blob(self, cid):
        """The blob, from any pack whose copy has the name."""
        require(cid in self.blobs, f"blob {cid.hex()} is in no pack")
        for pack, offset, length in self.blobs[cid]:
            with open(pack, "rb") as file:
                file.seek(offset - 40)
                record = file.read(40 + length)
            if record[:40] == b"VSR1" + struct.pack("<I", length) + cid and hashed(record[40:]) == cid:
                return record[40:]
        raise Refused(f"blob {cid.hex()} is damaged in every pack that should hold it")

    def manifests(self):
        """The manifests that the log says are snapshots, oldest first."""
        data = (self.path / "log/chain.log").read_bytes()
        require(data[:8] == b"VSLOG001", "not a log")
        at, head, alive = 8, bytes(32), {}
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "little")
            entry, after = data[at + 4 : at + 4 + length], data[at + 4 + length : at + 36 + length]
            if len(after) < 32:
                break  # torn: it was never acknowledged
            head = hashed(b"vsync.v1 log\0" + head + entry)
            require(length <= MAX_ENTRY and head == after, f"the log is damaged at byte {at}")
            variant, fields = decoded(entry)
            require(variant in range(5), "an unknown entry in the log")
            at += 36 + length
            if variant < 3:  # commit, forget, undelete; pins make no snapshot
                alive[fields[0]] = variant != 1
        for name in filter(alive.get, alive):
            manifest = (self.path / "manifests" / f"{name[:16].hex()}.manifest").read_bytes()
            require(hashed(manifest) == name, f"manifest {name.hex()} is damaged")
            yield manifest


def read_table(path):
    data = path.read_bytes()
    require(data[:8] == b"VSPACK01" and data[-8:] == b"VSPKEND1" and len(data) >= 56, f"{path} is not a pack")
    length, = struct.unpack("<Q", data[-48:-40])
    require(length <= min(len(data) - 56, MAX_RECORDS * 48) and length % 48 == 0, f"{path}: length of the table")
    table = data[len(data) - 48 - length : len(data) - 48]
    require(hashed(table) == data[-40:-8] == bytes.fromhex(path.stem), f"{path}: the table is damaged")
    end, rows = 8, []
    for at in range(0, length, 48):
        cid, offset, size, kind, zeros = struct.unpack("<32sQIB3s", table[at : at + 48])
        require(offset == end + 40 and size <= MAX_BLOB and kind in (1, 2, 3, 4) and not any(zeros), f"{path}: a row")
        end = offset + size
        rows.append((cid, (path, offset, size)))
    require(end + length + 48 == len(data), f"{path}: the records do not fill it")
    return rows


def padme(length):
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << exponent - exponent.bit_length()) - 1
    return length + mask & ~mask


class Vault:
    """Opens blobs of one realm and epoch."""

    def __init__(self, realm, epoch, key, fetch):
        self.realm, self.epoch, self.key, self.fetch = realm, epoch, key, fetch
        self.zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)

    def open(self, kind, cid, ck, raw_len):
        """References and plaintext of a blob; every step of "Opening"."""
        blob, name = self.fetch(cid), cid.hex()[:16]
        require(39 <= len(blob) <= MAX_BLOB, f"blob {name}: length")
        require(hashed(blob) == cid, f"blob {name}: other bytes than its name says")
        magic, found, suite, epoch, count = struct.unpack("<4sBBII", blob[:14])
        require(magic == b"VSB1" and suite in SUITES and count <= MAX_REFS, f"blob {name}: header")
        require(found == kind and epoch == self.epoch, f"blob {name}: of another kind or epoch than it must be")
        header, sealed = blob[: 14 + 32 * count], blob[14 + 32 * count :]
        require(len(header) == 14 + 32 * count and len(sealed) >= 25, f"blob {name}: length")
        encoded = SUITES[suite](ck).decrypt(bytes(12), sealed, self.realm + header)
        require(hashed(header + encoded, self.key) == ck, f"blob {name}: its key is not that of its content")
        codec, length, payload_len = struct.unpack("<BII", encoded[:9])
        end = 9 + payload_len
        require(length == raw_len <= MAX_RAW and end <= len(encoded) == padme(end), f"blob {name}: lengths")
        require(not any(encoded[end:]), f"blob {name}: padding")
        payload = encoded[9:end]
        if codec == 1:
            require(zstandard.frame_content_size(payload) in (-1, raw_len), f"blob {name}: length of the frame")
            payload = self.zstd.decompress(payload, max_output_size=max(raw_len, 1), allow_extra_data=False)
        require(codec in (0, 1) and len(payload) == raw_len, f"blob {name}: codec, or length of the plaintext")
        return [header[at : at + 32] for at in range(14, len(header), 32)], payload


class Snapshot:
    """A manifest that is what its source signed."""

    def __init__(self, realm, keys, manifest):
        require(len(manifest) <= MAX_MANIFEST and manifest[:4] == b"VSM1", "not a manifest")
        self.id, (body, rest) = hashed(manifest)[:16], counted(manifest[4:-64])
        self.sealed, rest = counted(rest)
        require(not rest, "a manifest with an appendix")
        self.body_hash, self.body = hashed(body), decoded(body)
        require(self.body[0] == realm, "a manifest of another realm")
        self.volume, self.source, self.epoch = self.body[1], self.body[2], self.body[5]
        message = b"vsync.v1 manifest\0" + hashed(manifest[:-64])
        signed = any(signs(key, manifest[-64:], message) for key in keys.get(self.source, []))
        require(signed, f"snapshot {self.id.hex()}: not signed by {self.source}")


def counted(data):
    length = int.from_bytes(data[:4], "little")
    require(len(data) >= 4 + length, "a manifest that is cut short")
    return data[4 : 4 + length], data[4 + length :]


def signs(key, signature, message):
    try:
        key.verify(signature, message)
        return True
    except InvalidSignature:
        return False


def check_path(path):
    names = path.split(b"/") if path else []
    fine = (0 < len(name) <= 255 and name not in (b".", b"..") and b"\0" not in name for name in names)
    require(len(path) <= MAX_PATH and all(fine), f"path {path!r} cannot be")
    return names


def children(packed, refs):
    require(len(packed) == 52 * len(refs), "children and references differ in number")
    return [(cid, *struct.unpack_from("<32s16sI", packed, 52 * at)) for at, cid in enumerate(refs)]


def records(vault, below, summaries, depth):
    """Records of all leaves below, in order, each with the chunks that it may mean."""
    require(len(below) == len(summaries) and depth <= MAX_DEPTH and (depth > 0 or not below), "counts or depth")
    for (cid, ck, _, raw_len), summary in zip(below, summaries):
        check_path(summary[0])
        refs, payload = vault.open(LEAF if depth == 1 else INNER, cid, ck, raw_len)
        node = decoded(payload)
        if depth == 1:
            chunks = children(node[0], refs)
            yield from ((record, chunks) for record in node[1])
        else:
            yield from records(vault, children(node[0], refs), node[1], depth - 1)


def items(stream):
    """Entries in path order, each with a list of its pieces: a length and, unless it is a hole, a chunk."""
    entry, pieces, last = None, [], []
    for record, chunks in stream:
        if isinstance(record, bytes):
            require(entry and entry[1] == FILE, "content that belongs to no file")
            require(0 < len(record) <= 8 * MAX_EXTENTS and len(record) % 8 == 0, "extents of a wrong length")
            for (value,) in struct.iter_unpack("<Q", record):
                require(value >> 63 or value < len(chunks), "an extent without a chunk")
                pieces.append((value - (1 << 63), None) if value >> 63 else (chunks[value][3], chunks[value]))
                require(pieces[-1][0] > 0, "a piece of no length")
        else:
            if entry:
                yield entry, pieces
            entry, pieces = record + [None] * (12 - len(record)), []
            require(check_path(entry[0]) > last, f"{entry[0]!r} is out of order")
            require(entry[1] in range(8) and entry[2] <= 0o7777 and entry[5][1] < 10**9, f"{entry[0]!r}: malformed")
            last = check_path(entry[0])
    if entry:
        yield entry, pieces


class Target:
    """A directory to restore into, which must be empty. Nothing in it is ever reached through a link."""

    def __init__(self, path, vault):
        self.path, self.vault, self.kinds, self.late = os.fsencode(path), vault, {b"": DIRECTORY}, []
        os.makedirs(self.path, exist_ok=True)
        require(not os.listdir(self.path), f"{path} is not empty")

    def place(self, path):
        return os.path.join(self.path, path)

    def parents(self, path):
        """Every entry lies in a directory; one that could not be read when it was backed up is made."""
        above = path.rpartition(b"/")[0]
        if above not in self.kinds:
            self.parents(above)
            os.mkdir(self.place(above), 0o700)
            self.kinds[above] = DIRECTORY
        require(self.kinds[above] == DIRECTORY, f"{path!r} lies below what is no directory")

    def entry(self, entry, pieces):
        path, kind, target, place = entry[0], entry[1], entry[9], self.place(entry[0])
        self.parents(path)
        if kind == DIRECTORY:
            os.mkdir(place, 0o700)
            self.late.append(entry)
        elif kind == HARD_LINK:
            require(self.kinds.get(target, DIRECTORY) not in (DIRECTORY, HARD_LINK), f"{path!r} links to nothing")
            os.link(self.place(target), place, follow_symlinks=False)
        elif kind == SYMLINK:
            os.symlink(target, place)
        elif kind == FILE:
            self.file(entry, pieces)
        else:
            os.mknod(place, 0o600 | NODE_TYPES[kind], entry[10] or 0)
        self.kinds[path] = kind
        if kind not in (DIRECTORY, HARD_LINK):
            self.metadata(entry)

    def file(self, entry, pieces):
        size = 0
        with open(self.place(entry[0]), "xb") as file:
            for length, chunk in pieces:
                if chunk:
                    file.seek(size)
                    file.write(self.vault.open(CHUNK, chunk[0], chunk[1], length)[1])
                size += length
            file.truncate(size)
        require(entry[8] in (0, size), f"{entry[0]!r}: its pieces are {size} bytes, not {entry[8]}")

    def metadata(self, entry):
        place, (seconds, nanoseconds) = self.place(entry[0]), entry[5]
        os.chown(place, entry[3], entry[4], follow_symlinks=False)
        for name, value in entry[11] or []:
            os.setxattr(place, name, value, follow_symlinks=False)
        if entry[1] != SYMLINK:
            os.chmod(place, entry[2])
        os.utime(place, ns=(seconds * 10**9 + nanoseconds,) * 2, follow_symlinks=False)


def restore(snapshot, epoch, store, path):
    sealed = decoded(pyrage.decrypt(snapshot.sealed, [epoch.identity]))
    require(sealed[0] == snapshot.body_hash, "the sealed part was sealed for another manifest")
    vault = Vault(snapshot.body[0], snapshot.epoch, epoch.convergence, store.blob)
    refs, payload = vault.open(ROOT, snapshot.body[6], sealed[1], sealed[2])
    root = decoded(payload)
    tree, target, entries, size = root[2], Target(path, vault), 0, 0
    for entry, pieces in items(records(vault, children(tree[0], refs), tree[1], tree[2])):
        target.entry(entry, pieces)
        entries, size = entries + 1, size + sum(length for length, _ in pieces)
    # Directories last, the deepest first, and the volume's own at the very end.
    for entry in target.late[::-1] + ([root[1] + [None] * (12 - len(root[1]))] if 1 in root else []):
        target.metadata(entry)
    require((entries, size) == (sealed[3], sealed[4]), "entries or bytes are not as many as the manifest says")
    print(f"restored {snapshot.volume}, {snapshot.id.hex()}: {entries} entries, {size} bytes, {tree[2]} levels of nodes")
    for path, reason in root[3]:
        print(f"not exact: {path!r}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    for option in ("--kit", "--store", "--pub", "--id", "--volume", "--source"):
        parser.add_argument(option, required=option in ("--kit", "--store"))
    args, _ = parser.parse_args(), os.umask(0o077)
    root = root_secret(pathlib.Path(args.kit).read_text())
    realm = derived("realm id", root)[:16]
    store, public = Store(args.store, realm), pathlib.Path(args.pub or f"{args.store}/vsync.pub")
    keys = read_registry(public.read_bytes(), None if args.pub else root)
    found = [Snapshot(realm, keys, manifest) for manifest in store.manifests()]
    found = [s for s in found if args.volume in (None, s.volume) and args.source in (None, s.source)]
    found = [s for s in found if s.id.hex().startswith(args.id or "")]
    require(len({(s.volume, s.source) for s in found}) == 1, "no such snapshot, or of several volumes or sources")
    restore(found[-1], Epoch(root, found[-1].epoch), store, args.target)


if __name__ == "__main__":
    try:
        main()
    except REFUSALS as error:
        sys.exit(f"refused: {error or type(error).__name__}")
