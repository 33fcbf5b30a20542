"""Pools with Clevis bindings only: nested pins and a TPM. The last binding cannot be removed, and a
destroyed pool leaves no trace of it.
"""

import json

import luks_dump
import pytest
import stratis_client as client
import system
from stratis_bus import done
from tang import Tang
from tpm import Tpm


@pytest.fixture
def tangs(tmp_path):
    servers = [Tang(tmp_path / f"tang{number}", 7510 + number).start() for number in range(2)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def tpm(stratis, tmp_path):
    made = Tpm(tmp_path / "tpm").on()
    yield made
    made.remove()


def fill(stratis):
    """A mounted filesystem with a file; returns the expected contents."""
    done(stratis.create_filesystem(stratis.pool("p").path, "f", 1 << 30))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    return {"first": system.put("/mnt/f", "first", 8 << 20)}


def stop(stratis):
    system.unmount_all()
    done(stratis.stop_pool(stratis.pool("p").uuid))
    assert system.mapped_devices() == []


def start(data):
    client.ok("pool", "start", "--name", "p", "--unlock-method=any")
    system.settle()
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data


def start_refused():
    said = client.refused("pool", "start", "--name", "p", "--unlock-method=any")
    assert system.mapped_devices() == [], "devices were left open"
    return said


def shown(stratis):
    """Pin and configuration of the one Clevis binding."""
    ((_, (pin, config)),) = stratis.get(stratis.pool("p").path, "pool", "ClevisInfos")
    return pin, json.loads(config)


def test_nested_pins(stratis, disks, tangs):
    """sss within sss: either of two servers suffices."""
    first, second = tangs
    inner = {"t": 1, "pins": {"tang": {"url": second.url, "thp": second.thumbprint()}}}
    config = {"t": 1, "pins": {"tang": {"url": first.url}, "sss": inner}, "stratis:tang:trust_url": True}
    done(stratis.create_pool("p", disks[:1], clevis=[("sss", config)]))
    data = fill(stratis)
    outer, inner = ([{"thp": server.thumbprint(), "url": server.url}] for server in tangs)
    assert shown(stratis) == ("sss", {"t": 1, "pins": {"tang": outer, "sss": [{"t": 1, "pins": {"tang": inner}}]}})
    for server in tangs:
        stop(stratis)
        server.stop()
        start(data)
        server.start()
    stop(stratis)
    for server in tangs:
        server.stop()
    said = start_refused()
    assert first.url in said and second.url in said


def test_tpm(stratis, disks, tangs, tpm):
    client.ok("pool", "create", "p", disks[0], "--clevis=tpm2")
    data = fill(stratis)
    node = luks_dump.node_of(stratis.pool("p").uuid)
    assert shown(stratis) == ("tpm2", {})

    def tokens():
        return luks_dump.header(node)["tokens"]

    before = tokens()
    client.refused("pool", "unbind", "clevis", "p")
    assert tokens() == before, "the last binding was removed"
    client.ok("pool", "bind", "nbde", "p", tangs[0].url, "--trust-url")
    client.ok("pool", "unbind", "clevis", "p", "--token-slot=0")
    client.ok("pool", "bind", "tpm2", "p")
    assert sorted(tokens()) == ["0", "1"]
    client.ok("pool", "rebind", "clevis", "p", "--token-slot=0")
    assert any(" tpm2 " in line for line in luks_dump.clevis_list(node))
    client.ok("pool", "unbind", "clevis", "p", "--token-slot=1")
    header = luks_dump.header(node)
    assert list(header["keyslots"]) == header["tokens"]["0"]["keyslots"]
    stop(stratis)
    tpm.off()
    assert "tpm2" in start_refused()
    tpm.on()
    start(data)

    system.unmount_all()
    client.ok("filesystem", "destroy", "p", "f")
    assert luks_dump.is_left_on(disks[0]), "there is no header to wipe"
    client.ok("pool", "destroy", "p")
    assert not luks_dump.is_left_on(disks[0])
    assert system.mapped_devices() == []
