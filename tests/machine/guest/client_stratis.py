"""The unchanged stratis client in three versions: every subcommand, with its visible result.

The list of subcommands comes from the program, so a subcommand that is forgotten here fails the
test.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import system
from stratis_bus import TIMEOUT_SECONDS
from tang import Tang
from tpm import Tpm

VERSIONS = ["3.7.0", "3.8.2", "3.9.1"]
GIB = 1 << 30
ONE, TWO = "the first passphrase of this test", "the second passphrase of this test"
# Prints every subcommand that the program's parser knows, one per line.
SUBCOMMANDS = """
import argparse
from stratis_cli._parser import _parser
def walk(parser, words):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in {id(p): (n, p) for n, p in reversed(action.choices.items())}.values():
                walk(inner, [*words, name])
            return
    print(*words)
walk(_parser.gen_parser(), [])
"""


class Client:
    """One version of the program, which records what it was asked to do."""

    def __init__(self, version):
        self.version, self.home = version, f"/opt/stratis-{version}"
        listed = subprocess.run([sys.executable, "-c", SUBCOMMANDS], env={"PYTHONPATH": self.home}, stdout=subprocess.PIPE,
                                text=True, check=True).stdout  # fmt: skip
        self.subcommands = {tuple(line.split()) for line in listed.splitlines()}
        self.done = set()

    def _call(self, words, stdin):
        named = max((known for known in self.subcommands if tuple(words[: len(known)]) == known), key=len)
        self.done.add(named)
        return subprocess.run([f"stratis-{self.version}", *words], capture_output=True, text=True, check=False, input=stdin)

    def __call__(self, *words, stdin=None):
        """Runs the program, which must succeed; returns its output. Standard error must be empty,
        except for a warning when the program reads a passphrase from something other than a
        terminal."""
        ended = self._call(words, stdin)
        assert ended.returncode == 0 and (stdin or not ended.stderr), f"stratis {' '.join(words)}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def rewrites(self, *words, until):
        """Runs the program, which must succeed; returns when the view of the pool "e" says that all
        data has been rewritten. The program waits for two minutes, and says then that the daemon goes on.
        """
        ended = self._call(words, None)
        assert ended.returncode == 0 and ended.stderr in ("", "Operation initiated\n"), ended.stderr
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not until(shown := self.pool("e")):
            assert ended.stderr and time.monotonic() < deadline, f"stratis {' '.join(words)}: {shown}"

    def refused(self, *words, stdin=None):
        """Runs the program, which must fail with an error text; returns the text."""
        ended = self._call(words, stdin)
        said = ended.stdout + ended.stderr
        assert ended.returncode != 0, f"stratis {' '.join(words)} succeeded: {said}"
        assert "Traceback" not in said, said
        return said

    def rows(self, *words):
        """A list that the program prints, as rows of words, without its header."""
        return [re.split(r"\s{2,}", line.strip()) for line in self(*words).splitlines()[1:]]

    def pool(self, name):
        """The detailed view of a pool."""
        return self("pool", "list", "--name", name)


def key_file(folder, passphrase):
    path = folder / "key"
    path.write_text(passphrase)
    return str(path)


def growing_disk(disk):
    """A device of 30 GiB, so that not all is given to the thin pool at once; `grow` enlarges it to 40."""
    system.run("dmsetup", "create", "growing", "--table", f"0 {30 * GIB // 512} linear {disk} 0")
    system.settle()
    return os.path.realpath("/dev/mapper/growing")


def grow(disk):
    system.run("dmsetup", "suspend", "growing")
    system.run("dmsetup", "load", "growing", "--table", f"0 {40 * GIB // 512} linear {disk} 0")
    system.run("dmsetup", "resume", "growing")
    system.settle()


def plain_pool(stratis, disks):
    device = growing_disk(disks[0])
    stratis("pool", "create", "p", device)
    ((name, *_),) = stratis.rows("pool", "list")
    assert name == "p"
    uuid = re.search(r"UUID: (\S+)", stratis.pool("p"))[1]
    stratis("pool", "rename", "p", "q")
    assert [row[0] for row in stratis.rows("pool", "list")] == ["q"]
    assert f"UUID: {uuid}" in stratis.pool("q")
    assert "already" in stratis.refused("pool", "create", "q", disks[1])

    # Devices: data, a cache, a device that became larger.
    stratis("pool", "init-cache", "q", disks[1])
    stratis("pool", "add-cache", "q", disks[2])
    listed = {row[1]: row[3] for row in stratis.rows("blockdev", "list", "q")}
    assert listed == {device: "DATA", disks[1]: "CACHE", disks[2]: "CACHE"}
    assert "Cache: Yes" in stratis.pool("q")
    path = stratis("pool", "debug", "get-object-path", "--name", "q").strip()
    assert path.startswith("/org/storage/stratis3/")
    block = stratis.rows("blockdev", "list", "q")[0][-1]
    assert stratis("blockdev", "debug", "get-object-path", "--uuid", block).startswith("/org/storage/stratis3/")
    grow(disks[0])
    assert "Size: 30 GiB" in stratis.pool("q") and "IDS001" in "".join(stratis.rows("pool", "list")[0])
    stratis("pool", "extend-data", "q")
    assert "Size: 40 GiB" in stratis.pool("q")

    # Properties.
    stratis("pool", "set-fs-limit", "q", "120")
    assert "Filesystem Limit: 120" in stratis.pool("q")
    assert "120" in stratis.refused("pool", "set-fs-limit", "q", "100")
    stratis("pool", "overprovision", "q", "no")
    assert "Allows Overprovisioning: No" in stratis.pool("q")
    stratis("pool", "overprovision", "q", "yes")
    assert "Allows Overprovisioning: Yes" in stratis.pool("q")
    for code in ("WS001", "EM001"):
        assert len(stratis("pool", "explain", code)) > 20
    record = json.loads(stratis("pool", "debug", "get-metadata", "--name", "q", "--pretty"))
    assert record["name"] == "q"
    assert json.loads(stratis("pool", "debug", "get-metadata", "--name", "q", "--written"))["name"] == "q"
    return device, uuid


def filesystems(stratis):
    stratis("filesystem", "create", "q", "f", "--size=1GiB")
    system.mount("/dev/stratis/q/f", "/mnt/f")
    first = {"first": system.put("/mnt/f", "first")}
    stratis("filesystem", "snapshot", "q", "f", "s")
    system.put("/mnt/f", "second")
    stratis("filesystem", "rename", "q", "s", "t")
    assert {tuple(row[:2]) for row in stratis.rows("filesystem", "list")} == {("q", "f"), ("q", "t")}
    assert os.path.exists("/dev/stratis/q/t") and not os.path.exists("/dev/stratis/q/s")
    stratis("filesystem", "set-size-limit", "q", "f", "2GiB")
    assert "Size Limit: 2 GiB" in stratis("filesystem", "list", "q", "--name=f")
    stratis("filesystem", "unset-size-limit", "q", "f")
    assert "Size Limit: None" in stratis("filesystem", "list", "q", "--name=f")
    uuid = re.search(r"UUID: (\S+)", stratis("filesystem", "list", "q", "--name=f"))[1]
    assert stratis("filesystem", "debug", "get-object-path", "--uuid", uuid).startswith("/org/storage/stratis3/")
    assert json.loads(stratis("filesystem", "debug", "get-metadata", "q", "--fs-name=f")), "no record"
    assert '"f"' in stratis("filesystem", "debug", "get-metadata", "q", "--written")

    # A revert that is cancelled, and one that happens at the next start.
    stratis("filesystem", "schedule-revert", "q", "t")
    assert "Revert scheduled: Yes" in stratis("filesystem", "list", "q", "--name=t")
    stratis("filesystem", "cancel-revert", "q", "t")
    assert "Revert scheduled: No" in stratis("filesystem", "list", "q", "--name=t")
    stratis("filesystem", "schedule-revert", "q", "t")
    stratis.refused("pool", "stop", "--name=q")
    assert os.path.ismount("/mnt/f")
    system.unmount("/mnt/f")
    stratis("pool", "stop", "--name=q")
    assert stratis.rows("pool", "list") == []
    assert "q" in stratis("pool", "list", "--stopped")
    if stratis.version == "3.9.1":
        stratis("pool", "start", "--name=q", "--remove-cache")
        assert "Cache: No" in stratis.pool("q")
    else:
        stratis("pool", "start", "--name=q")
    assert [row[1] for row in stratis.rows("filesystem", "list")] == ["f"]
    system.settle()
    system.mount("/dev/stratis/q/f", "/mnt/f")
    assert system.contents("/mnt/f") == first
    system.unmount("/mnt/f")


def reports(stratis, device, uuid):
    for kind in ("engine_state_report", "managed_objects_report", "stopped_pools"):
        report = json.loads(stratis("report", kind))
        assert kind == "stopped_pools" or uuid.replace("-", "") in json.dumps(report).replace("-", "")
    assert json.loads(stratis("report"))["pools"][0]["name"] == "q"
    assert stratis("daemon", "version") == "3.9.2\n"
    stratis("debug", "refresh")
    assert [row[0] for row in stratis.rows("pool", "list")] == ["q"]
    stratis("debug", "uevent", device)


def ended(stratis, disks):
    stratis("filesystem", "destroy", "q", "f")
    assert stratis.rows("filesystem", "list") == []
    stratis("pool", "destroy", "q")
    assert stratis.rows("pool", "list") == []
    system.run("dmsetup", "remove", "--retry", "growing")
    assert system.mapped_devices() == []
    for disk in disks:
        assert "TYPE" not in system.signature(disk)


def devices_of_pools():
    return [name for name in system.mapped_devices() if name.startswith("stratis-")]


def encrypted_pool(stratis, disks, folder, tang):
    """Keys, bindings by the subcommands that all versions have, unlock methods."""
    stratis("key", "set", "k1", "--keyfile-path", key_file(folder, ONE))
    stratis("key", "set", "k2", "--capture-key", stdin=f"{ONE}\n{ONE}\n")
    stratis("key", "reset", "k2", "--keyfile-path", key_file(folder, TWO))
    assert {"k1", "k2"} <= {row[0] for row in stratis.rows("key", "list")}
    stratis("pool", "create", "e", disks[0], "--key-desc=k1", "--clevis=tang", f"--tang-url={tang.url}",
            f"--thumbprint={tang.thumbprint()}")  # fmt: skip
    stratis("pool", "add-data", "e", disks[1])
    shown = stratis.pool("e")
    assert "k1" in shown and tang.url in shown
    stratis("pool", "rebind", "clevis", "e")
    stratis("pool", "unbind", "clevis", "e")
    assert tang.url not in stratis.pool("e")
    stratis("pool", "bind", "nbde", "e", tang.url, "--trust-url")
    assert tang.url in stratis.pool("e")
    stratis("pool", "rebind", "keyring", "e", "k2")
    assert "k2" in stratis.pool("e") and "k1" not in stratis.pool("e")
    stratis("pool", "unbind", "keyring", "e")
    stratis("pool", "bind", "keyring", "e", "k1")
    stratis("pool", "unbind", "clevis", "e")
    stratis("pool", "bind", "tpm2", "e")
    assert "tpm2" in stratis.pool("e")
    stratis("pool", "unbind", "clevis", "e")
    assert "tpm2" not in stratis.pool("e")
    stratis.refused("pool", "unbind", "keyring", "e")

    stratis("filesystem", "create", "e", "f")
    stratis("pool", "stop", "--name=e")
    stratis.refused("pool", "start", "--name=e")
    stratis("key", "unset", "k1")
    if stratis.version == "3.7.0":  # which passes no passphrase
        start = ("pool", "start", "--name=e", "--unlock-method=keyring")
        stratis.refused(*start)
        stratis("key", "set", "k1", "--keyfile-path", key_file(folder, TWO))
        stratis.refused(*start)
        stratis("key", "reset", "k1", "--keyfile-path", key_file(folder, ONE))
        assert devices_of_pools() == []
        stratis(*start)
    else:
        start = ("pool", "start", "--name=e", "--unlock-method=any")
        stratis.refused(*start)
        stratis.refused(*start, "--capture-key", stdin=TWO + "\n")
        assert devices_of_pools() == []
        stratis(*start, "--capture-key", stdin=ONE + "\n")
    assert [row[1] for row in stratis.rows("filesystem", "list")] == ["f"]


def newer_subcommands(stratis, folder, tang):
    """`pool encryption`, which only 3.9 has, on the pool "e"."""
    stratis("key", "set", "k1", "--keyfile-path", key_file(folder, ONE))
    told = ("pool", "encryption")
    stratis(*told, "bind", "nbde", "--name=e", "--trust-url", tang.url)
    assert tang.url in stratis.pool("e")
    stratis(*told, "rebind", "clevis", "--name=e")
    stratis(*told, "unbind", "--name=e", "clevis")
    stratis(*told, "bind", "tpm2", "--name=e")
    stratis(*told, "rebind", "keyring", "--name=e", "k2")
    stratis(*told, "unbind", "--name=e", "keyring")
    stratis(*told, "bind", "keyring", "--name=e", "k1")
    stratis.rewrites(*told, "reencrypt", "--name=e", "--in-place",
                     until=lambda shown: "Last Time Reencrypted: Never" not in shown)  # fmt: skip
    stratis.rewrites(*told, "off", "--name=e", "--in-place", until=lambda shown: "Encryption Enabled: No" in shown)
    stratis.rewrites(*told, "on", "--name=e", "--in-place", "--key-desc=k1",
                     until=lambda shown: "Encryption Enabled: Yes" in shown)  # fmt: skip
    stratis("key", "unset", "k1")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_subcommand_of(version, disks, tmp_path):
    stratis = Client(version)
    device, uuid = plain_pool(stratis, disks)
    filesystems(stratis)
    reports(stratis, device, uuid)
    ended(stratis, disks)

    tpm = Tpm(pathlib.Path(tmp_path) / "tpm").on()
    tang = Tang(tmp_path / "tang", 7500).start()
    # All data is rewritten three times, so the devices are small.
    small = [os.path.realpath(device) for device in system.cut(disks[1], 2, 2 * GIB)]
    try:
        encrypted_pool(stratis, small, tmp_path, tang)
        if ("pool", "encryption", "on") in stratis.subcommands:
            newer_subcommands(stratis, tmp_path, tang)
        stratis("filesystem", "destroy", "e", "f")
        stratis("pool", "destroy", "e")
        system.remove_mapped("slice")
    finally:
        tang.stop()
        tpm.remove()
        for key in stratis.rows("key", "list"):
            stratis("key", "unset", key[0])
    assert stratis.subcommands - stratis.done == set()
    print(f"{version}: {len(stratis.done)} subcommands")
