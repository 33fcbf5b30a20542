"""Bad input: a clear error, and no change to the tree, to device-mapper, or to any metadata on
disk.
"""

import os

import dbus
import pytest
import system
from stratis_bus import Refused, done

GIB = 1 << 30


class Unchanged:
    """Compares everything that a refused request could have changed."""

    def __init__(self, stratis):
        self.stratis = stratis
        self.before = self._look()

    def _objects(self):
        """The tree without values that change by themselves: usage."""
        return {
            (path, name): {key: value for key, value in properties.items() if key not in ("Used", "TotalPhysicalUsed")}
            for path, interfaces in self.stratis.objects().items()
            for name, properties in interfaces.items()
        }

    def _look(self):
        return {
            "objects": self._objects(),
            "mapped": system.mapped_devices(),
            "disks": {disk: system.digest(disk) for disk in system.DISKS},
            "links": sorted(os.listdir("/dev/stratis")) if os.path.isdir("/dev/stratis") else [],
        }

    def check(self):
        now = self._look()
        for what, before in self.before.items():
            assert now[what] == before, f"{what} changed"


def refuse(stratis, reply_of, *words):
    """The call returns code 1 and a text with these words; nothing changed."""
    unchanged = Unchanged(stratis)
    reply = reply_of()
    assert reply.code == 1, f"not refused: {reply}"
    for word in words:
        assert word.lower() in reply.text.lower(), f"{word!r} is missing in: {reply.text}"
    unchanged.check()
    return reply.text


def settled_pool(stratis, name, devices):
    """The path of a new pool that has already made its automatic allocations."""
    path, _ = done(stratis.create_pool(name, devices))
    stratis.refresh()
    return path


# Each makes a device bad and returns (path, words of the error, how to undo it).


def nonexistent(_):
    return "/dev/no-such-disk", ["no-such-disk"], None


def relative(disk):
    return os.path.relpath(disk, "/"), ["absolute"], None


def not_a_block_device(_):
    return "/dev/null", ["/dev/null"], None


def a_folder(_):
    return "/dev", ["/dev"], None


def a_file(_):
    path = "/tmp/file"
    with open(path, "wb") as file:
        file.truncate(GIB)
    return path, [path], None


def too_small(disk):
    system.run("dmsetup", "create", "small", "--table", f"0 2048 linear {disk} 0")
    system.settle()
    return "/dev/mapper/small", ["1 MiB"], lambda: system.run("dmsetup", "remove", "--retry", "small")


def with_ext4(disk):
    system.run("mkfs.ext4", "-q", "-F", disk)
    system.settle()
    return disk, [disk, "ext4"], None


def with_xfs(disk):
    system.run("mkfs.xfs", "-q", "-f", disk)
    system.settle()
    return disk, [disk, "xfs"], None


def with_swap(disk):
    system.run("mkswap", disk)
    system.settle()
    return disk, [disk, "swap"], None


def with_partitions(disk):
    """A DOS partition table with one Linux partition of 4096 sectors."""
    entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    with open(disk, "r+b", buffering=0) as node:
        node.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        os.fsync(node.fileno())
    system.run("udevadm", "trigger", "--settle", "--action=change", disk)
    return disk, [disk], None


def mounted(disk):
    system.run("mkfs.xfs", "-q", "-f", disk)
    system.settle()
    system.mount(disk, "/mnt/foreign")
    return disk, [disk], lambda: system.unmount("/mnt/foreign")


def read_only(disk):
    system.run("blockdev", "--setro", disk)
    return disk, [disk], lambda: system.run("blockdev", "--setrw", disk)


def under_device_mapper(disk):
    system.run("dmsetup", "create", "above", "--table", f"0 204800 linear {disk} 0")
    system.settle()
    return disk, [disk], lambda: system.run("dmsetup", "remove", "--retry", "above")


BAD_DEVICES = [nonexistent, relative, not_a_block_device, a_folder, a_file, too_small, with_ext4, with_xfs, with_swap,
               with_partitions, mounted, read_only, under_device_mapper]  # fmt: skip


@pytest.mark.parametrize("make_bad", BAD_DEVICES, ids=lambda f: f.__name__)
def test_bad_device(stratis, disks, make_bad):
    """Refused for a new pool, alone and beside a good device, and for an existing pool."""
    path, words, repair = make_bad(disks[2])
    try:
        refuse(stratis, lambda: stratis.create_pool("p", [path]), *words)
        refuse(stratis, lambda: stratis.create_pool("p", [disks[0], path]), *words)
        pool = settled_pool(stratis, "p", [disks[0]])
        refuse(stratis, lambda: stratis.add_data_devices(pool, [path]), *words)
        refuse(stratis, lambda: stratis.add_data_devices(pool, [disks[1], path]), *words)
        # The good device beside the bad one is still free.
        done(stratis.add_data_devices(pool, [disks[1]]))
    finally:
        if repair:
            repair()


def test_device_of_another_pool(stratis, disks):
    settled_pool(stratis, "owner", [disks[0]])
    other = settled_pool(stratis, "other", [disks[1]])
    refuse(stratis, lambda: stratis.create_pool("thief", [disks[0]]), disks[0])
    refuse(stratis, lambda: stratis.create_pool("thief", [disks[2], disks[0]]), disks[0])
    refuse(stratis, lambda: stratis.add_data_devices(other, [disks[0]]), disks[0])


def test_one_device_by_two_names_is_one(stratis, disks):
    os.path.exists("/tmp/alias") or os.symlink(disks[0], "/tmp/alias")
    done(stratis.create_pool("p", [disks[0], "/tmp/alias", disks[0]]))
    assert list(stratis.pool("p").devices) == [disks[0]]


def test_no_device(stratis, disks):
    refuse(stratis, lambda: stratis.create_pool("p", []))


def test_pool_name_taken(stratis, disks):
    settled_pool(stratis, "p", [disks[0]])
    refuse(stratis, lambda: stratis.create_pool("p", [disks[1]]), "p")
    same = stratis.create_pool("p", [disks[0]])
    assert (same.code, same.value[0]) == (0, False), "creating the same pool again must be no error and no change"
    other = settled_pool(stratis, "q", [disks[1]])
    refuse(stratis, lambda: stratis.rename_pool(other, "p"), "p")


BAD_NAMES = ["", ".", "..", "a/b", "/a", "a b", " a", "a ", "a\tb", "a$b", "a'b", 'a"b', "a;b", "a*b", "a\\b", "a~b",
             "a\u0085b", "a\u00a0", "n" * 256]  # fmt: skip


def test_bad_names(stratis, disks):
    for name in BAD_NAMES:
        refuse(stratis, lambda: stratis.create_pool(name, disks))
    pool = settled_pool(stratis, "p", disks)
    ((fs, _),) = done(stratis.create_filesystem(pool, "f", GIB))
    for name in BAD_NAMES:
        refuse(stratis, lambda: stratis.create_filesystem(pool, name, GIB))
        refuse(stratis, lambda: stratis.snapshot(pool, fs, name))
        refuse(stratis, lambda: stratis.rename_filesystem(fs, name))
        refuse(stratis, lambda: stratis.rename_pool(pool, name))


BAD_SIZES = ["abc", "", "-1", "1.5", "1GiB", str(GIB + 1), str(GIB // 2 - 512), "0", str(2**63), str(2**64 - 512), str(2**64),
             str(2**64 + GIB), str(2**73 - 512), str(2**64 * 512), "9" * 60]  # fmt: skip


def test_bad_sizes(stratis, disks):
    pool = settled_pool(stratis, "p", disks)
    for size in BAD_SIZES:
        refuse(stratis, lambda: stratis.create_filesystem(pool, "f", size))


def test_filesystems_that_cannot_be_changed(stratis, disks):
    pool = settled_pool(stratis, "p", disks)
    ((fs, _),) = done(stratis.create_filesystem(pool, "f", GIB))
    done(stratis.create_filesystem(pool, "g", GIB))
    refuse(stratis, lambda: stratis.rename_filesystem(fs, "g"), "g")
    refuse(stratis, lambda: stratis.create_filesystem(pool, "f", 2 * GIB), "f")
    refuse(stratis, lambda: stratis.snapshot(pool, "/org/storage/stratis3/999999", "s"))
    refuse(stratis, lambda: stratis.destroy_pool(pool))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    refuse(stratis, lambda: stratis.destroy_filesystem(pool, fs), "f")
    system.unmount("/mnt/f")
    same = stratis.create_filesystem(pool, "f", GIB)
    assert (same.code, same.value[0]) == (0, False)


def test_the_client_shows_the_daemons_error(disks, stratis):
    """The stratis program shows the daemon's sentence and exits with status 1."""
    import subprocess

    for command in (["pool", "create", "p", "/dev/no-such-disk"], ["pool", "create", "bad name", disks[0]]):
        result = subprocess.run(["stratis", *command], capture_output=True, text=True)
        assert result.returncode == 1, result
        assert "Traceback" not in result.stderr, result.stderr
    assert stratis.pools() == {}


def test_refusals_differ_from_bus_errors(stratis, disks):
    """A call of a member that does not exist is a D-Bus error, not code 1."""
    with pytest.raises(dbus.DBusException):
        stratis.call("/org/storage/stratis3", "org.storage.stratis3.Manager.r9", "NoSuchMethod", "")
    with pytest.raises(Refused):
        done(stratis.create_pool("p", ["relative"]))
