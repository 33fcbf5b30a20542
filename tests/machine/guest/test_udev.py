"""Behaviour of udev that a daemon cannot rely on: links through every event, ambiguous contents,
names, lost events.
"""

import os
import pathlib
import signal
import socket
import struct
import subprocess
import time

import pytest
import stratis_client as client
import system
from stratis_bus import Stratis, done

SMALL = 512 << 20
RULES = pathlib.Path("/run/udev/rules.d")


def target_of(link):
    """The device-mapper name behind a link, read at once."""
    node = os.path.basename(os.path.realpath(link, strict=True))
    return open(f"/sys/block/{node}/dm/name").read().strip()


def expect_link(stratis, pool_name, fs_name, link=None):
    pool = stratis.pool(pool_name)
    wanted = f"stratis-1-{pool.uuid}-thin-fs-{pool.filesystems[fs_name].uuid}"
    assert target_of(link or f"/dev/stratis/{pool_name}/{fs_name}") == wanted


@pytest.fixture
def pool(stratis, disks):
    path, _ = done(stratis.create_pool("p", disks[:1]))
    done(stratis.create_filesystem(path, "f", SMALL))
    return path


@pytest.fixture
def rule():
    """Adds a rule for the duration of the test."""
    added = set()

    def add(name, text):
        RULES.mkdir(parents=True, exist_ok=True)
        file = RULES / name
        file.write_text(text)
        added.add(file)
        system.run("udevadm", "control", "--reload")

    yield add
    for file in added:
        file.unlink()
    system.run("udevadm", "control", "--reload")


# ---- links ----


@pytest.mark.parametrize("action", ["add", "change", "move", "online", "offline", "bind", "unbind"])
def test_links_survive_events(stratis, pool, action):
    """Every `add` event, such as coldplug sends after the switch from the initrd, used to delete
    the link."""
    # No daemon runs that could ask for it again.
    system.stop_daemon()
    link = os.path.realpath("/dev/stratis/p/f")
    # The kernel sends the other actions for no block device, and device-mapper's own rules do not
    # know them.
    devices = ["--subsystem-match=block"] if action in ("add", "change") else [link]
    system.run("udevadm", "trigger", "--settle", f"--action={action}", *devices)
    assert os.path.realpath("/dev/stratis/p/f") == link
    system.start_daemon()
    expect_link(Stratis(), "p", "f")


def test_links_survive_the_change_from_the_initrd(stratis, pool):
    """systemd then deletes udev's database, except for devices that ask to stay in it."""
    system.stop_daemon()
    system.run("udevadm", "info", "--cleanup-db")
    system.run("udevadm", "trigger", "--settle", "--action=add", "--subsystem-match=block")
    assert target_of("/dev/stratis/p/f")
    system.start_daemon()


def test_a_lost_link_comes_back(stratis, pool):
    """A link used to get no further attention once it had been made."""
    log = system.Log()
    os.unlink("/dev/stratis/p/f")
    log.wait_for("the link /dev/stratis/p/f is missing")
    log.close()
    system.settle()
    expect_link(stratis, "p", "f")


def test_links_do_not_depend_on_contents(stratis, pool):
    """A ZFS label in the data of a filesystem made blkid's probe ambiguous, and the link
    vanished."""
    node = os.path.realpath("/dev/stratis/p/f")
    with open(node, "r+b", buffering=0) as device:
        end = device.seek(0, os.SEEK_END)
        # The last two of four labels: 128 KiB into each there are 128 uberblocks of 1 KiB.
        for label in (end - (512 << 10), end - (256 << 10)):
            for block in range(128):
                device.seek(label + (128 << 10) + (block << 10))
                device.write(struct.pack("<QQ", 0x00BAB10C, 5000))
        os.fsync(device.fileno())
    system.run("udevadm", "trigger", "--settle", "--action=change", node)
    known = system.run("udevadm", "info", "--query=property", node)
    assert "ID_FS_UUID=" not in known, f"the label does not disturb blkid: {known}"
    expect_link(stratis, "p", "f")
    done(stratis.rename_filesystem(stratis.pool("p").filesystems["f"].path, "g"))
    expect_link(stratis, "p", "g")
    system.stop_daemon()
    system.start_daemon()
    expect_link(Stratis(), "p", "g")


def test_old_disk_contents_do_not_disturb_blkid(stratis, disks):
    """mkfs writes parts of its thin-pool blocks; the rest is what the disk held before."""
    step = 1 << 20
    label = bytearray(step)
    for block in range(128):
        struct.pack_into("<QQ", label, (128 << 10) + (block << 10), 0x00BAB10C, 5000)
        struct.pack_into("<QQ", label, (640 << 10) + (block << 10), 0x00BAB10C, 5000)
    done(stratis.create_pool("p", disks[:1]))
    uuid = stratis.pool("p").uuid
    system.stop_daemon()
    # Through the thin pool's data device, which is in use: only the test writes there.
    data = f"/dev/mapper/stratis-1-private-{uuid}-flex-thindata"
    with open(data, "r+b", buffering=0) as device:
        end = device.seek(0, os.SEEK_END)
        for at in range(0, min(end - step, 600 * step), step):
            device.seek(at)
            device.write(label)
        os.fsync(device.fileno())
    system.start_daemon()
    connection = Stratis()
    done(connection.create_filesystem(path_of(connection, "p"), "f", SMALL))
    system.settle()
    known = system.run("blkid", "-p", "/dev/stratis/p/f", check=False)
    assert 'TYPE="xfs"' in known, known


def path_of(stratis, name):
    return stratis.pool(name).path


# ---- names ----


def test_names_with_a_comma_are_refused(stratis, disks):
    refused = stratis.create_pool("a,b", disks[:1])
    assert refused.code == 1 and "','" in refused.text and "udev" in refused.text, refused
    path, _ = done(stratis.create_pool("p", disks[:1]))
    ((fs, _),) = done(stratis.create_filesystem(path, "f", SMALL))
    for refused in (
        stratis.rename_pool(path, "a,b"),
        stratis.create_filesystem(path, "x,y", SMALL),
        stratis.create_filesystem(path, "x\ufdd0y", SMALL),
        stratis.snapshot(path, fs, "x,y"),
        stratis.rename_filesystem(fs, "x,y"),
    ):
        assert refused.code == 1 and "would change in a link" in refused.text, refused
    assert set(stratis.pools()) == {"p"} and set(stratis.pool("p").filesystems) == {"f"}


def test_old_names_with_a_comma_stay_usable(stratis, disks):
    system.stop_daemon()
    environment = {"STRATISD_MACHINE": "1", "MACHINE_DISKS": " ".join(disks), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(["./platform_machine", "old-pool", "a,b", disks[0]], env=environment, check=True)
    log = system.Log()
    system.start_daemon()
    stratis = Stratis()
    ((fs, _),) = done(stratis.create_filesystem(path_of(stratis, "a,b"), "f", SMALL))
    log.wait_for(r"/dev/stratis/a\x2cb/f", "rename the pool")
    log.close()
    link, former = r"/dev/stratis/a\x2cb/f", "/dev/stratis/a_b/f"
    assert stratis.pool("a,b").filesystems["f"].devnode == link
    expect_link(stratis, "a,b", "f", link)
    # The link keeps its name, so entries in fstab keep working.
    expect_link(stratis, "a,b", "f", former)
    system.mount(former, "/mnt/f")
    system.unmount("/mnt/f")
    ((reported,),) = [pool["filesystems"] for pool in stratis.report()["pools"]]
    assert reported["link"] == link
    # The link belongs to the pool with that name.
    path, _ = done(stratis.create_pool("a_b", disks[1:2]))
    ((other, _),) = done(stratis.create_filesystem(path, "f", SMALL))
    for _ in range(2):
        expect_link(stratis, "a_b", "f")
        expect_link(stratis, "a,b", "f", link)
        system.run("udevadm", "trigger", "--settle", "--action=add", "--subsystem-match=block")
    system.stop_daemon()
    system.start_daemon()
    stratis = Stratis()
    expect_link(stratis, "a_b", "f")
    expect_link(stratis, "a,b", "f", link)
    # After a rename it is like any other pool.
    done(stratis.rename_pool(path_of(stratis, "a,b"), "c"))
    expect_link(stratis, "c", "f")
    assert not os.path.lexists(link)


def keeps(c):
    """The code points that src/engine/name.rs expects udev to keep; of ASCII, those allowed in a
    name."""
    if ord(c) < 0x80:
        return c.isalnum() or c in "#+-.:=@_"
    return not (0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE)


def in_links(rule, values):
    """What udev makes of each value as part of a link."""
    file = pathlib.Path("/run/codepoints")
    file.write_bytes(b"".join(f"T{i}={value}\n".encode() for i, value in enumerate(values)))
    lines = [f'ENV{{T{i}}}=="?*", SYMLINK+="t/{i}/$env{{T{i}}}"\n' for i in range(len(values))]
    text = f'SUBSYSTEM!="mem", GOTO="t_end"\nKERNEL!="null", GOTO="t_end"\nIMPORT{{file}}="{file}"\n'
    rule("99-codepoints.rules", text + "".join(lines) + 'LABEL="t_end"\n')
    system.run("udevadm", "trigger", "--settle", "--action=change", "/dev/null")
    found = system.run("udevadm", "info", "--query=symlink", "/dev/null").strip("\n").split(" ")
    links = dict(link.removeprefix("t/").split("/", 1) for link in found if link.startswith("t/"))
    return [links.get(str(i)) for i in range(len(values))]


def test_every_code_point_is_kept_or_refused(rule):
    """Asks udev itself about all of Unicode."""
    ascii_ones = [chr(code) for code in range(0x21, 0x7F) if chr(code) != "/"]
    made = dict(zip(ascii_ones, in_links(rule, [f"a{c}b" for c in ascii_ones])))
    changed = {c for c, link in made.items() if link != f"a{c}b"}
    assert {c for c in ascii_ones if not keeps(c)} == changed, made

    def valid(code):
        # UTF-8 has no surrogates, and names have no control characters.
        return not 0xD800 <= code <= 0xDFFF and not 0x80 <= code <= 0x9F

    kept = [chr(code) for code in range(0x80, 0x110000) if valid(code) and keeps(chr(code))]
    # Five components of 40 characters per link.
    parts = ["=".join(kept[at : at + 40]) for at in range(0, len(kept), 40)]
    values = ["a" + "b/a".join(parts[at : at + 5]) + "b" for at in range(0, len(parts), 5)]
    for at in range(0, len(values), 60):
        batch = values[at : at + 60]
        assert in_links(rule, batch) == batch
    assert sum(len(part.split("=")) for part in parts) == 0x110000 - 0x80 - 0x800 - 0x20 - 66
    refused = [chr(code) for code in range(0x80, 0x110000) if valid(code) and not keeps(chr(code))]
    assert len(refused) == 66
    for value, link in zip(refused, in_links(rule, [f"a{c}b" for c in refused])):
        assert link != f"a{value}b", f"udev keeps U+{ord(value):04X}, but the daemon refuses it"


# ---- workers that are killed or stopped ----


def kill_workers(rule, pattern):
    """From now on the worker that processes a change of such a device is killed, and udev never
    reports completion."""
    rule("94-kill.rules", f'ACTION=="change", ENV{{DM_COOKIE}}=="?*", ATTR{{dm/name}}=="{pattern}",'
         ' PROGRAM="/bin/sh -c \'kill -9 $$PPID\'"\n')  # fmt: skip


def cookies():
    """The semaphores that wait for udev."""
    rows = [line.split() for line in open("/proc/sysvipc/sem")][1:]
    return [row for row in rows if (int(row[0]) >> 16) & 0xFFFF == 0x0D4D]


def test_a_killed_worker_blocks_nothing(stratis, pool, rule):
    """The pool used to wait for it for ever, and every request for the pool with it."""
    log = system.Log()
    kill_workers(rule, "stratis-1-*-thin-fs-*")
    done(stratis.create_filesystem(pool, "g", SMALL))
    assert "(1 events unanswered so far)" in log.wait_for("udev did not process the resume of")
    assert stratis.report()["udev_events_unanswered"] == 1
    log.close()
    expect_link(stratis, "p", "g")
    system.mount("/dev/stratis/p/g", "/mnt/g")
    system.unmount("/mnt/g")
    assert cookies() == []


def test_a_killed_worker_blocks_no_encrypted_pool(stratis, disks, rule):
    """libcryptsetup waits without a deadline."""
    client.set_key("k1", "xylophone-first-secret")
    log = system.Log()
    kill_workers(rule, "stratis-1-*-crypt")
    path, _ = done(stratis.create_pool("p", disks[:1], keys=["k1"]))
    log.wait_for("udev did not answer LUKS child process")
    log.close()
    done(stratis.create_filesystem(path, "f", SMALL))
    expect_link(stratis, "p", "f")
    assert cookies() == []
    client.unset_keys()


def test_a_stopped_udev_blocks_nothing(stratis, pool):
    """The links come when udev continues."""
    udevd = int(system.run("systemctl", "show", "-P", "MainPID", "systemd-udevd.service"))
    os.kill(udevd, signal.SIGSTOP)
    try:
        done(stratis.create_filesystem(pool, "g", SMALL))
    finally:
        os.kill(udevd, signal.SIGCONT)
    system.settle()
    expect_link(stratis, "p", "g")
    assert cookies() == []


# ---- messages ----


def murmur2(data):
    """libudev's hash of a subsystem in the header of an event, for the filter in the kernel."""
    factor, mask = 0x5BD1E995, 0xFFFFFFFF
    value, rest = len(data), data
    while len(rest) >= 4:
        word = int.from_bytes(rest[:4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        value = value * factor & mask ^ word
        rest = rest[4:]
    if rest:
        value = (value ^ int.from_bytes(rest, "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return value ^ value >> 15


def test_lost_messages_make_the_daemon_reread_devices(stratis, disks):
    """Events that did not fit into the daemon's socket used to be logged and forgotten: the pool
    never came up."""
    done(stratis.create_pool("p", disks[:1]))
    uuid = stratis.pool("p").uuid
    system.stop_daemon()
    system.remove_mapped("stratis-")
    with open(disks[0], "rb") as device:
        held = device.read(2 << 20)
    system.erase(disks[0])
    system.start_daemon()
    log = system.Log()
    daemon = int(system.unit("MainPID"))
    os.kill(daemon, signal.SIGSTOP)
    sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
    sender.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)  # SO_SNDBUFFORCE
    body = b"ACTION=change\0DEVPATH=/devices/x\0SUBSYSTEM=block\0PAD=" + bytes(150 << 10)
    head = b"libudev\0" + struct.pack(">I", 0xFEEDCAFE) + struct.pack("<III", 40, 40, len(body))
    message = head + struct.pack(">IIII", murmur2(b"block"), 0, 0, 0) + body
    for _ in range(2 * (128 << 20) // len(message)):
        try:
            sender.sendto(message, (0, 2))
        except OSError:  # a listener whose buffer is full
            pass
    with open(disks[0], "r+b", buffering=0) as device:
        device.write(held)
        os.fsync(device.fileno())
    system.settle()
    os.kill(daemon, signal.SIGCONT)
    log.wait_for("events of block devices were lost")
    log.close()
    # The object exists when the rescan is over; no signal tells that.
    deadline = time.monotonic() + 300
    stratis = Stratis()
    while "p" not in stratis.pools():
        assert time.monotonic() < deadline, "the pool did not come up in time"
    assert stratis.pool("p").uuid == uuid
