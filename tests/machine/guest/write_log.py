"""The log of dm-log-writes: every write and flush of a device, in order; and disks as a power cut
would leave them.

Layout of the log device (kernel documentation, device-mapper/log-writes): sector 0 has the magic,
version, number of entries and sector size. Each entry is one sector (sector, length, flags, length
of a mark's text) followed by the data of a write. A write is logged after its completion, so writes
completed before a flush come before the flush.

Knows nothing of what was written.
"""

import collections
import struct

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

# `data_at` is the offset of the written bytes on the log device; `mark` the text of a mark.
Entry = collections.namedtuple("Entry", "offset length flags data_at mark")


def read(path):
    """All entries of a log device that is closed."""
    entries = []
    with open(path, "rb") as log:
        magic, version, count, sector = struct.unpack("<QQQI", log.read(28))
        assert (magic, version) == (MAGIC, 1), "not a log of dm-log-writes"
        at = sector
        for _ in range(count):
            log.seek(at)
            head = log.read(sector)
            start, sectors, flags, text_length = struct.unpack_from("<QQQQ", head)
            mark = head[32 : 32 + text_length].split(b"\0")[0].decode() if flags & MARK else None
            at += sector
            length = 0 if flags & (DISCARD | MARK) else sectors * sector
            entries.append(Entry(start * sector, length, flags, at, mark))
            at += length
    return entries


def copy(entry, log, disk, length=None):
    """Repeats a write on `disk`, completely or its first bytes only."""
    log.seek(entry.data_at)
    disk.seek(entry.offset)
    disk.write(log.read(entry.length if length is None else length))


def is_flush(entry):
    return bool(entry.flags & FLUSH)


def fate(entry, random, sector=512):
    """How much of an unflushed write survives: all, nothing, or its first sectors. A forced (FUA)
    write is durable when it completes."""
    if entry.flags & FUA:
        return entry.length
    draw = random.random()
    if draw < 0.45:
        return entry.length
    if draw < 0.9 or entry.length <= sector:
        return 0
    return random.randrange(1, entry.length // sector) * sector
