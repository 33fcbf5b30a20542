"""The bus, udevd, or both are restarted while filesystems are written to: the daemon comes back,
and every pool is watched.
"""

import os
import signal
import subprocess

import pytest
import stratis_bus
import system
from stratis_bus import done

GIB = 1 << 30
MIB = 1 << 20


def kill_bus():
    """Ends them like a crash; not every distribution permits a restart by systemctl."""
    os.kill(int(system.run("systemctl", "show", "-P", "MainPID", "dbus.service")), signal.SIGKILL)
    system.run("systemctl", "start", "dbus.service")


def restart_udev():
    system.run("systemctl", "restart", "systemd-udevd.service")


def kill_both():
    udev = subprocess.Popen(["systemctl", "restart", "systemd-udevd.service"])
    kill_bus()
    # systemctl itself may have lost the bus.
    udev.wait()
    system.run("systemctl", "start", "systemd-udevd.service")


@pytest.fixture
def busy(disks):
    """Two pools, each with a filesystem that is written to. No connection is open, because the end
    of the bus may end its clients."""
    writers, stratis = {}, stratis_bus.Stratis()
    for name, of in (("p", disks[:2]), ("q", disks[2:])):
        pool, _ = done(stratis.create_pool(name, of))
        done(stratis.create_filesystem(pool, "f", GIB))
        system.mount(f"/dev/stratis/{name}/f", f"/mnt/{name}")
        writers[f"/mnt/{name}"] = system.Writer(f"/mnt/{name}")
    stratis.close()
    return writers


def is_watched(stratis, name):
    """Without any request: a filesystem grows as it fills, and new ones get links."""
    pool = stratis.pool(name)
    used = os.statvfs(f"/mnt/{name}")
    more = 600 * MIB - (used.f_blocks - used.f_bfree) * used.f_frsize
    system.put(f"/mnt/{name}", "much", max(more, MIB))
    stratis.wait_until(pool.filesystems["f"].path, "filesystem", "Size", str(2 * GIB))
    done(stratis.create_filesystem(pool.path, "new", GIB))
    system.mount(f"/dev/stratis/{name}/new", f"/mnt/{name}-new")


@pytest.mark.parametrize(
    "restart, ends", [(kill_bus, True), (restart_udev, False), (kill_both, True)], ids=["bus", "udevd", "both"]
)
def test_after_a_restart_every_pool_is_watched(busy, restart, ends):
    mapped, pid = system.mapped_devices(), system.unit("MainPID")
    log = system.Log()
    restart()
    if ends:
        log.wait_for("is served")
    log.close()
    assert (system.unit("MainPID") != pid) == ends
    assert system.mapped_devices() == mapped, "devices were taken down"
    again = stratis_bus.Stratis()
    assert set(again.pools()) == {"p", "q"}
    for name in ("p", "q"):
        is_watched(again, name)
    for place, writer in busy.items():
        written, found = writer.end(), system.contents(place)
        assert {name: found[name] for name in written} == written
    again.close()


def test_many_restarts_are_survived(busy):
    """More often than systemd's default limit for restarts of a unit."""
    for _ in range(8):
        log = system.Log()
        kill_bus()
        log.wait_for("is served")
        log.close()
    again = stratis_bus.Stratis()
    for name in ("p", "q"):
        is_watched(again, name)
    for writer in busy.values():
        writer.end()
    again.close()
