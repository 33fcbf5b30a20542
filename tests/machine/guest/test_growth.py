"""Space under load: filesystems filled at full speed, pools that reach their low-water mark, full
pools.

Lines that start with FIGURE are for docs/performance.md; no time is asserted.
"""

import errno
import mmap
import os
import pathlib
import socket
import statistics
import threading
import time

import pytest
import system
from stratis_bus import done

MIB = 1 << 20
GIB = 1 << 30
CHUNK = 4 * MIB
THIN_BLOCK = MIB


def fill(path, size_bytes):
    """Writes past the page cache, as fast as the disk accepts it; returns (bytes, seconds)."""
    buffer = mmap.mmap(-1, CHUNK)  # aligned, as O_DIRECT requires
    buffer.write(os.urandom(CHUNK))
    written, begin = 0, time.monotonic()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    try:
        while written < size_bytes:
            written += os.write(file, buffer)
    finally:
        os.close(file)
    return written, time.monotonic() - begin


def free(place):
    stat = os.statvfs(place)
    return stat.f_bfree * stat.f_frsize


def test_a_filesystem_filled_fast_is_never_full(stratis, disks):
    pool, _ = done(stratis.create_pool("p", disks))
    done(stratis.create_filesystem(pool, "f", 2 * GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    fill("/mnt/f/first", free("/mnt/f") - GIB)
    # From here on there is 1 GiB of space, or twice as much if the filesystem was grown already;
    # three times as much is written.
    written, seconds = fill("/mnt/f/second", 6 * GIB)
    print(f"FIGURE filled {written // MIB} MiB from 1 GiB of headroom in {seconds:.1f} s, {written / seconds / MIB:.0f} MiB/s")
    assert os.path.getsize("/mnt/f/second") == written


class Watch(threading.Thread):
    """Records when a device-mapper device has events and when it is resumed, until told to end."""

    def __init__(self, name):
        super().__init__(daemon=True)
        self.name_of_device = name
        self.number = os.path.basename(os.path.realpath(f"/dev/mapper/{name}")) if os.path.exists(
            f"/dev/mapper/{name}") else system.run("dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name).strip()
        self.uevents = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
        self.uevents.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.uevents.bind((0, 1))
        self.events, self.resumed = [], []
        self.ended = False

    def run(self):
        threading.Thread(target=self._resumes, daemon=True).start()
        number = self._event_number()
        while not self.ended:
            system.run("dmsetup", "wait", self.name_of_device, number, check=False)
            self.events.append(time.monotonic())
            number = self._event_number()

    def _event_number(self):
        return system.run("dmsetup", "info", "-c", "--noheadings", "-o", "events", self.name_of_device).strip()

    def _resumes(self):
        while not self.ended:
            fields = self.uevents.recv(1 << 16).split(b"\0")
            if fields[0].startswith(b"change@") and fields[0].endswith(b"/" + self.number.encode()):
                self.resumed.append(time.monotonic())

    def answers(self):
        """Seconds from each event to the next resume."""
        after = [min((there for there in self.resumed if there >= event), default=None) for event in self.events]
        return [there - event for event, there in zip(self.events, after) if there is not None]


def thin_pool():
    (name,) = [name for name in system.mapped_devices() if name.endswith("-thinpool-pool")]
    return name


def data_blocks(name):
    """(used, all) of a thin pool."""
    used, total = system.run("dmsetup", "status", name).split()[5].split("/")
    return int(used), int(total)


def touch_blocks(path, count):
    """Makes a file map `count` thin blocks by small writes; nothing is zeroed, so this is fast."""
    page = mmap.mmap(-1, 4096)
    page.write(os.urandom(4096))
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        os.posix_fallocate(file, 0, count * THIN_BLOCK)
        for block in range(count):
            os.pwrite(file, page, block * THIN_BLOCK)
        os.fsync(file)
    finally:
        os.close(file)


def test_a_pool_at_its_low_water_grows(stratis, disks):
    """Past the low-water mark of 15 GiB and far beyond, without a failed write."""
    pool, _ = done(stratis.create_pool("p", disks))
    done(stratis.create_filesystem(pool, "f", 64 * GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    name = thin_pool()
    _, before = data_blocks(name)
    watch = Watch(name)
    watch.start()
    # Past the end of the former thin pool.
    touch_blocks("/mnt/f/file", before + 2048 - 1024)
    used, after = data_blocks(name)
    watch.ended = True
    assert used <= after and after > before
    answers = [1000 * seconds for seconds in watch.answers()]
    print(f"FIGURE thin pool of {before} blocks grew to {after} while {used} were used; from event to resumed, of"
          f" {len(answers)}: median {statistics.median(answers):.0f} ms, longest {max(answers):.0f} ms")


def write_until_refused(place):
    """Writes synced files of 8 MiB until the kernel refuses; returns their digests and the error."""
    written = {}
    for number in range(10_000):
        try:
            written[f"file{number}"] = system.put(place, f"file{number}", 8 * MIB)
        except OSError as error:
            return written, error
    raise AssertionError("the pool never became full")


def test_a_full_pool_keeps_synced_data(stratis, disks):
    """Without space to allocate, writes fail; with another disk they work again, without a restart."""
    system.run("dmsetup", "create", "small", "--table", f"0 {2 * GIB // 512} linear {disks[0]} 0")
    try:
        pool, _ = done(stratis.create_pool("p", ["/dev/mapper/small"]))
        done(stratis.create_filesystem(pool, "f", 16 * GIB))
        stratis.refresh()
        assert "error_if_no_space" in system.run("dmsetup", "status", thin_pool())
        system.mount("/dev/stratis/p/f", "/mnt/f")
        written, error = write_until_refused("/mnt/f")
        assert error.errno in (errno.ENOSPC, errno.EIO), error
        assert written
        done(stratis.add_data_devices(pool, [disks[1]]))
        assert "out_of_data_space" not in system.run("dmsetup", "status", thin_pool())
        (place := pathlib.Path("/mnt/f", f"file{len(written)}")).exists() and place.unlink()
        written["later"] = system.put("/mnt/f", "later", 64 * MIB)
        system.unmount("/mnt/f")
        system.mount("/dev/stratis/p/f", "/mnt/f")
        assert system.contents("/mnt/f") == written
        print(f"FIGURE full after {len(written) - 1} synced files of 8 MiB ({error.strerror}); all there afterwards")
        system.unmount("/mnt/f")
        for fs in stratis.pool("p").filesystems.values():
            done(stratis.destroy_filesystem(pool, fs.path))
        done(stratis.destroy_pool(pool))
    finally:
        system.unmount_all()
        if "small" in system.mapped_devices() and len(system.mapped_devices()) == 1:
            system.run("dmsetup", "remove", "--retry", "small")
