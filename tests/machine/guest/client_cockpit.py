"""Cockpit's storage page in a browser, used as a user would. The test compares the page with the
state of the daemon and records Cockpit's calls: none is answered with a D-Bus error.
"""

import re
import subprocess

import pytest
import stratis_bus
import system
from cockpit_page import StoragePage
from tang import Tang

MIB = 1 << 20
PASSPHRASE, OTHER, WRONG = "correct horse battery", "another staple entirely", "no such passphrase"
RECORD = "/tmp/bus-record"


class Calls:
    """Records the calls to the daemon and its answers, with the bus's own monitor."""

    def __init__(self):
        with open(RECORD, "w") as record:
            self._monitor = subprocess.Popen(["busctl", "monitor", stratis_bus.NAME], stdout=record, stderr=record)

    def end(self):
        """(methods called, errors answered)."""
        self._monitor.terminate()
        self._monitor.wait()
        text = open(RECORD).read()
        calls = re.findall(r"Interface=(org\.storage\S+)  Member=(\S+)", text)
        called = {f"{interface}.{member}" for interface, member in calls}
        return called, re.findall(r"Type=error.*?ErrorName=(\S+).*?ErrorMessage=\"(.*?)\"", text, re.DOTALL)


@pytest.fixture
def page(disks):
    shown = StoragePage()
    yield shown
    assert shown.errors == [], "the page had errors of JavaScript"
    shown.close()


def keys():
    """Descriptions of the keys in the kernel's keyring."""
    return system.run("stratis", "key", "list").split("\n")[1:-1]


def filesystems(stratis, pool):
    return sorted(stratis.pool(pool).filesystems)


def mounts():
    """Where XFS is mounted."""
    return sorted(system.run("findmnt", "-n", "-r", "-t", "xfs", "-o", "TARGET", check=False).split())


def test_main_job_in_the_page(stratis, disks, page):
    calls = Calls()
    page.frame.get_by_label("Create storage device").click()
    page.frame.get_by_role("menuitem", name="Create Stratis pool").click()
    page.fill(name="p")
    page.choose_disk(disks[0])
    page.picture("create-pool")
    page.answer("Create")
    page.row("p").wait_for()
    page.picture("pool-list")
    assert sorted(stratis.pool("p").devices) == [disks[0]]

    # Filesystems: made and mounted, a snapshot, both with their lines in fstab.
    page.open("p")
    page.press(page.card("Stratis filesystems"), "Create new filesystem")
    page.fill(name="home", mount_point="/mnt/home")
    page.picture("create-filesystem")
    page.answer("Create and mount")
    page.row("home").wait_for()
    assert mounts() == ["/mnt/home"]
    written = {"first": system.put("/mnt/home", "first", 8 * MIB)}
    page.menu(page.row("home"), "Snapshot")
    page.fill(name="copy", mount_point="/mnt/copy")
    page.answer("Create snapshot and mount")
    page.row("copy").wait_for()
    assert mounts() == ["/mnt/copy", "/mnt/home"]
    assert system.contents("/mnt/copy") == written
    page.picture("filesystems")
    uuid = stratis.pool("p").uuid
    fstab = open("/etc/fstab").read()
    assert fstab.count(f"x-systemd.requires=stratis-fstab-setup@{uuid}.service") == 2

    # Devices: data and a cache.
    for tier, disk in (("data", disks[1]), ("cache", disks[2])):
        page.press(page.card("Stratis pool"), "Add block devices")
        page.dialog.get_by_label("tier").select_option(tier)
        page.choose_disk(disk)
        page.answer("Add")
    assert sorted(stratis.pool("p").devices) == sorted(disks[:3])
    page.card("Stratis pool").get_by_text("cache", exact=True).wait_for()
    page.picture("devices")

    # Names: the page refuses a name in use, the daemon one with a comma.
    page.press(page.card("Stratis pool"), "edit")
    page.fill(name="renamed")
    page.answer("Rename")
    assert "renamed" in stratis.pools()
    page.press(page.card("Stratis pool"), "edit")
    page.fill(name="a,b")
    assert "," in page.refused("Rename")
    page.picture("pool")

    page.menu(page.row("copy"), "Delete")
    page.answer("Delete")
    page.row("copy").wait_for(state="detached")
    assert filesystems(stratis, "renamed") == ["home"] and mounts() == ["/mnt/home"]
    assert system.contents("/mnt/home") == written
    page.menu(page.card("Stratis pool"), "Delete pool")
    page.picture("delete-pool")
    page.answer("Delete")
    page.frame.get_by_label("Create storage device").wait_for()
    assert stratis.pools() == {} and mounts() == [] and system.mapped_devices() == []
    assert "stratis" not in open("/etc/fstab").read()
    called, errors = calls.end()
    print("CALLS", *sorted(called))
    assert errors == []


def test_a_passphrase_and_a_server(stratis, disks, page, tmp_path):
    calls = Calls()
    tang = Tang(tmp_path / "tang", 7500).start()
    page.frame.get_by_label("Create storage device").click()
    page.frame.get_by_role("menuitem", name="Create Stratis pool").click()
    page.fill(name="secret")
    page.choose_disk(disks[0])
    page.field("encrypt_pass.on").check()
    page.fill(passphrase=PASSPHRASE, passphrase2=PASSPHRASE)
    page.picture("create-encrypted-pool")
    page.answer("Create")
    page.open("secret")
    card = page.card("Encrypted Stratis pool")
    page.press(page.card("Stratis filesystems"), "Create new filesystem")
    page.fill(name="f")
    page.answer("Create only")
    uuid = stratis.pool("secret").uuid
    # The key was in the kernel's keyring for the call only.
    assert keys() == []

    # Stopped: refused with the wrong passphrase, started with the right one.
    def stop():
        system.unmount_all()
        assert stratis.stop_pool(uuid)[1] == 0
        page.card("Stratis pool").get_by_role("button", name="Start").wait_for()

    def start():
        page.press(page.card("Stratis pool"), "Start")

    stop()
    page.picture("stopped")
    start()
    page.fill(passphrase=WRONG)
    print("REFUSED", page.refused("Unlock"))
    assert system.mapped_devices() == []
    start()
    page.fill(passphrase=PASSPHRASE)
    page.answer("Unlock")
    page.row("f").wait_for()

    # Another passphrase, a server beside it, then only the server.
    page.press(card, "Change")
    page.fill(old_passphrase=PASSPHRASE, new_passphrase=OTHER, new_passphrase2=OTHER)
    page.answer("Save")
    page.press(card, "Add keyserver")
    page.fill(tang_url=tang.url, passphrase=OTHER)
    page.dialog.get_by_role("button", name="Save").click()
    page.dialog.get_by_text(tang.thumbprint()).wait_for()
    page.picture("verify-server")
    page.answer("Trust key")
    card.get_by_text(tang.url).wait_for()
    page.press(card, "Remove")
    page.dialog.wait_for()
    page.answer("Remove")
    card.get_by_text("Add passphrase").wait_for()
    page.picture("server-only")

    # The pool then starts without a prompt.
    stop()
    start()
    page.row("f").wait_for()
    page.menu(card, "Delete pool")
    page.answer("Delete")
    page.frame.get_by_label("Create storage device").wait_for()
    assert stratis.pools() == {} and system.mapped_devices() == [] and keys() == []
    tang.stop()
    called, errors = calls.end()
    print("CALLS", *sorted(called))
    assert errors == []
