"""Filesystems mounted where no mount propagates: they grow nevertheless, and the daemon keeps none
of them busy.
"""

import os
import pathlib
import subprocess

import pytest
import system
from stratis_bus import done

GIB = 1 << 30


@pytest.fixture
def pool(stratis, disks):
    path, _ = done(stratis.create_pool("p", disks))
    done(stratis.create_filesystem(path, "f", GIB))
    return stratis.pool("p")


def size_of(place):
    stat = os.statvfs(place)
    return stat.f_blocks * stat.f_frsize


def test_a_filesystem_below_a_private_mount_grows(stratis, pool):
    system.run("mkdir", "-p", "/mnt/parent")
    system.run("mount", "-t", "tmpfs", "--make-private", "tmpfs", "/mnt/parent")
    try:
        system.mount("/dev/stratis/p/f", "/mnt/parent/f")
        before = size_of("/mnt/parent/f")
        system.put("/mnt/parent/f", "much", 600 << 20)
        stratis.wait_until(pool.filesystems["f"].path, "filesystem", "Size", str(2 * GIB))
        while size_of("/mnt/parent/f") < before * 1.9:
            system.settle()
        reply = stratis.stop_pool(pool.uuid)
        assert reply.code != 0 and "/mnt/parent/f" in reply.text, reply
        system.unmount("/mnt/parent/f")
        done(stratis.stop_pool(pool.uuid))
    finally:
        system.run("umount", "-R", "/mnt/parent")


def test_a_filesystem_in_a_container_grows(stratis, pool):
    pathlib.Path("/mnt/inside").mkdir(parents=True, exist_ok=True)
    script = "mount /dev/stratis/p/f /mnt/inside && head -c 600M /dev/urandom >/mnt/inside/much && sync && echo ready && read line; true"
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:  # fmt: skip
        assert shell.stdout.readline() == "ready\n"
        assert "/mnt/inside" not in open("/proc/mounts").read()
        inside = f"/proc/{shell.pid}/root/mnt/inside"
        stratis.wait_until(pool.filesystems["f"].path, "filesystem", "Size", str(2 * GIB))
        # It may have grown during the writes, so its size now means nothing.
        while size_of(inside) < 1.9 * GIB:
            system.settle()
        reply = stratis.stop_pool(pool.uuid)
        assert reply.code != 0 and "/mnt/inside" in reply.text, reply
        shell.stdin.close()
        assert shell.wait() == 0
    done(stratis.stop_pool(pool.uuid))


def test_an_earlier_mount_is_not_kept_busy(stratis, pool):
    system.run("mkdir", "-p", "/mnt/parent")
    system.run("mount", "-t", "tmpfs", "--make-private", "tmpfs", "/mnt/parent")
    try:
        system.mount("/dev/stratis/p/f", "/mnt/parent/f")
        system.stop_daemon()
        system.start_daemon()
        namespace = pathlib.Path(f"/proc/{system.unit('MainPID')}/mountinfo").read_text()
        assert "/mnt/parent" not in namespace
        system.unmount("/mnt/parent/f")
        again = type(stratis)()
        done(again.stop_pool(pool.uuid))
        done(again.start_pool(pool.uuid))
        again.close()
    finally:
        system.run("umount", "-R", "/mnt/parent")
