"""The system bus is dbus-broker, as on Fedora: it accepts our policy, the client works, and the end
of the bus ends the daemon only.
"""

import pathlib
import subprocess

import pytest
import stratis_client
import system

MANAGER = ("org.storage.stratis3", "/org/storage/stratis3", "org.storage.stratis3.Manager.r9")


def bus():
    """The unit that is the system bus."""
    return system.run("systemctl", "show", "-P", "Id", "dbus.service").strip()


@pytest.fixture(scope="module", autouse=True)
def broker():
    """Switches to dbus-broker. Runs before anything connects to the other bus."""
    system.stop_daemon()
    system.run("systemctl", "stop", "dbus.socket", "dbus.service")
    pathlib.Path("/etc/systemd/system/dbus.service").symlink_to("/lib/systemd/system/dbus-broker.service")
    system.run("systemctl", "daemon-reload")
    system.run("systemctl", "start", "dbus.socket", "dbus.service")
    assert bus() == "dbus-broker.service"
    system.start_daemon()


def busctl(user, *arguments):
    command = ["runuser", "-u", user, "--", "busctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_client(disks):
    stratis_client.ok("pool", "create", "p", *disks[:2])
    stratis_client.ok("filesystem", "create", "p", "f")
    system.mount("/dev/stratis/p/f", "/mnt/f")
    data = {"first": system.put("/mnt/f", "first")}
    stratis_client.ok("pool", "add-data", "p", disks[2])
    stratis_client.ok("filesystem", "snapshot", "p", "f", "s")
    assert "Execution failed" in stratis_client.refused("filesystem", "create", "p", "f")
    assert {"f", "s"} <= set(stratis_client.ok("filesystem", "list", "p").split())
    assert system.contents("/mnt/f") == data


def test_all_users_may_read_only_root_change(disks):
    for user in ("root", "nobody"):
        looked = busctl(user, "get-property", *MANAGER, "Version")
        assert looked.returncode == 0, looked.stderr
        listed = busctl(user, "call", *MANAGER[:2], "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        assert listed.returncode == 0, listed.stderr
    change = ("call", *MANAGER, "UnsetKey", "s", "nothing")
    assert busctl("root", *change).returncode == 0
    refused = busctl("nobody", *change)
    assert refused.returncode != 0 and "denied" in refused.stderr, refused


def test_pools_survive_the_end_of_the_bus(disks):
    stratis_client.ok("pool", "create", "p", disks[0])
    stratis_client.ok("filesystem", "create", "p", "f")
    system.mount("/dev/stratis/p/f", "/mnt/f")
    mapped, log = system.mapped_devices(), system.Log()
    system.run("systemctl", "restart", "dbus.service")
    log.wait_for("connection to the bus was lost")
    log.close()
    system.start_daemon()
    assert bus() == "dbus-broker.service"
    assert system.mapped_devices() == mapped
    system.put("/mnt/f", "afterwards")
    assert "f" in stratis_client.ok("filesystem", "list", "p").split()
