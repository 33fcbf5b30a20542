"""Encrypted pools by the client, with real tang servers: made, bound, stopped, unlocked by every means, wrong key first.

What is in the headers is read by cryptsetup and Clevis, so that it is not only this daemon that understands it.
"""

import json
import threading

import luks_dump
import pytest
import stratis_client as client
import system
from stratis_bus import ANY_SLOT, Stratis, done
from tang import Tang
from tpm import Tpm

GIB = 1 << 30
FIRST, SECOND, THIRD = "the first passphrase", "the second passphrase", "the third passphrase"


@pytest.fixture
def tangs(tmp_path):
    servers = [Tang(tmp_path / f"tang{number}", 7500 + number).start() for number in range(2)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def tpm(stratis, tmp_path):
    made = Tpm(tmp_path / "tpm").on()
    yield made
    made.remove()


@pytest.fixture
def keys(stratis):
    """The first key is there; none is when the test has ended."""
    client.unset_keys()
    client.set_key("k1", FIRST)
    yield
    client.unset_keys()


def fill(pool="p"):
    """A filesystem with something on it, mounted; gives what."""
    client.ok("filesystem", "create", pool, "f", "--size=1GiB")
    system.settle()
    system.mount(f"/dev/stratis/{pool}/f", "/mnt/f")
    return {"first": system.put("/mnt/f", "first", 8 << 20)}


def stop(name="p"):
    system.unmount_all()
    client.ok("pool", "stop", "--name", name)
    assert system.mapped_devices() == []


def check(data, name="p"):
    """The pool is there, and so is what was written."""
    system.settle()
    system.mount(f"/dev/stratis/{name}/f", "/mnt/f")
    assert system.contents("/mnt/f") == data


def start_refused(*arguments, stdin=None):
    """What the client said; the pool is as closed as it was."""
    said = client.refused("pool", "start", "--name", "p", *arguments, stdin=stdin)
    assert system.mapped_devices() == [], "all is closed again"
    assert "p" in client.ok("pool", "list", "--stopped"), "it can be started later"
    return said


def tokens(stratis):
    return luks_dump.header(luks_dump.node_of(stratis.pool("p").uuid))["tokens"]


def keyring_token(description, keyslot):
    return {"type": "luks2-keyring", "keyslots": [keyslot], "key_description": f"stratis-1-key-{description}"}


def test_bindings_come_and_go(stratis, disks, tangs, keys):
    first, second = tangs
    client.ok("pool", "create", "p", *disks[:2], "--key-desc=k1", "--clevis=tang", f"--tang-url={first.url}",
              f"--thumbprint={first.thumbprint()}")  # fmt: skip
    pool = stratis.pool("p")
    node = luks_dump.node_of(pool.uuid)
    data = fill()

    header = luks_dump.header(node)
    assert header["config"] == {"json_size": str((64 << 10) - 4096), "keyslots_size": str(16352 << 10)}
    (segment,) = header["segments"].values()
    assert (segment["type"], segment["offset"], segment["encryption"]) == ("crypt", str(34816 * 512), "aes-xts-plain64")
    assert all(keyslot["key_size"] == 64 for keyslot in header["keyslots"].values())
    assert header["tokens"]["0"] == keyring_token("k1", "0")
    clevis = header["tokens"]["1"]
    assert (set(clevis), clevis["type"], clevis["keyslots"]) == ({"type", "keyslots", "jwe"}, "clevis", ["1"])
    assert set(clevis["jwe"]) == {"protected", "iv", "ciphertext", "tag"}
    assert luks_dump.thumbprint(clevis["jwe"]) == first.thumbprint()
    assert luks_dump.opens(node, FIRST.encode(), 0) and not luks_dump.opens(node, SECOND.encode(), 0)
    assert luks_dump.clevis_list(node) == [f"1: tang '{json.dumps({'url': first.url}, separators=(',', ':'))}'"]
    luks_dump.clevis_passphrase(node, 1)

    shown = client.ok("pool", "list", "--name", "p")
    for words in ("Encryption Enabled: Yes", "Free Token Slots Remaining: 13", "Key Description: k1",
                  "Clevis Pin: tang", first.thumbprint(), first.url):  # fmt: skip
        assert words in shown
    assert stratis.get(pool.path, "pool", "VolumeKeyLoaded") is True

    # A key that is not there, and a server that is somebody else.
    assert "absent" in client.refused("pool", "bind", "keyring", "p", "absent")
    before = header["tokens"]
    client.refused("pool", "bind", "nbde", "p", second.url, f"--thumbprint={first.thumbprint()}")
    assert tokens(stratis) == before

    client.set_key("k2", SECOND)
    client.ok("pool", "bind", "keyring", "p", "k2")
    client.ok("pool", "bind", "nbde", "p", second.url, "--trust-url")
    now = tokens(stratis)
    assert sorted(now) == ["0", "1", "2", "3"]
    assert now["2"] == keyring_token("k2", now["2"]["keyslots"][0])
    assert luks_dump.thumbprint(now["3"]["jwe"]) == second.thumbprint()
    assert luks_dump.opens(node, SECOND.encode(), 2)
    luks_dump.clevis_passphrase(node, 3)
    assert "Free Token Slots Remaining: 11" in client.ok("pool", "list", "--name", "p")

    client.set_key("k3", THIRD)
    client.ok("pool", "rebind", "keyring", "p", "k3", "--token-slot=2")
    client.ok("pool", "rebind", "clevis", "p", "--token-slot=3")
    after = tokens(stratis)
    assert after["2"]["key_description"] == "stratis-1-key-k3"
    assert after["3"]["jwe"] != now["3"]["jwe"] and luks_dump.thumbprint(after["3"]["jwe"]) == second.thumbprint()
    assert luks_dump.opens(node, THIRD.encode(), 2) and not luks_dump.opens(node, SECOND.encode(), 2)
    luks_dump.clevis_passphrase(node, 3)

    for kind, slot in (("keyring", 0), ("clevis", 1), ("keyring", 2)):
        client.ok("pool", "unbind", kind, "p", f"--token-slot={slot}")
    left = luks_dump.header(node)
    assert list(left["tokens"]) == ["3"] and list(left["keyslots"]) == left["tokens"]["3"]["keyslots"]
    client.refused("pool", "unbind", "clevis", "p")
    assert tokens(stratis) == left["tokens"], "the last one stays"

    data["during"] = system.put("/mnt/f", "during", 8 << 20)
    stop()
    client.ok("pool", "start", "--name", "p", "--unlock-method=any")
    check(data)


def test_unlocked_by_every_means(stratis, disks, tangs, keys):
    server = tangs[0]
    client.ok("pool", "create", "p", *disks[:2], "--key-desc=k1", "--clevis=tang", f"--tang-url={server.url}",
              "--trust-url")  # fmt: skip
    uuid = stratis.pool("p").uuid
    data = fill()
    stop()
    right, wrong = client.key_file("right", FIRST), client.key_file("wrong", SECOND)

    assert "encrypted" in start_refused()
    assert "passphrase does not open" in start_refused(f"--keyfile-path={wrong}")
    assert "passphrase does not open" in start_refused("--token-slot=0", f"--keyfile-path={wrong}")
    client.ok("pool", "start", "--name", "p", f"--keyfile-path={right}")
    check(data)
    stop()
    start_refused("--capture-key", stdin=SECOND + "\n")
    client.ok("pool", "start", "--uuid", uuid, "--capture-key", stdin=FIRST + "\n")
    check(data)
    stop()

    # By the keyring: no key, another key, the key.
    client.unset_keys()
    assert "k1" in start_refused("--token-slot=0")
    client.set_key("k1", SECOND)
    start_refused("--token-slot=0")
    client.set_key("k1", FIRST)
    client.ok("pool", "start", "--name", "p", "--token-slot=0")
    check(data)
    stop()

    # By Clevis: no server, then the server.
    server.stop()
    assert server.url in start_refused("--token-slot=1")
    assert "9" in start_refused("--token-slot=9")
    # By any: with the key alone, with nothing, with the server alone.
    client.ok("pool", "start", "--name", "p", "--unlock-method=any")
    check(data)
    stop()
    client.unset_keys()
    said = start_refused("--unlock-method=any")
    assert server.url in said and "k1" in said
    server.start()
    client.ok("pool", "start", "--name", "p", "--token-slot=1")
    check(data)
    stop()
    client.ok("pool", "start", "--name", "p", "--unlock-method=any")
    check(data)

    # A pool that is gone leaves nothing of its keys behind.
    system.unmount_all()
    client.ok("filesystem", "destroy", "p", "f")
    assert any(luks_dump.is_left_on(disk) for disk in disks[:2]), "there is a header to be wiped"
    client.ok("pool", "destroy", "p")
    assert not any(luks_dump.is_left_on(disk) for disk in disks)
    assert system.mapped_devices() == []


def test_a_silent_server_holds_nobody_up(stratis, disks, tangs):
    server = tangs[0]
    config = {"url": server.url, "stratis:tang:trust_url": True}
    done(stratis.create_pool("p", [disks[0]], clevis=[("tang", config)]))
    data = fill()
    other, _ = done(stratis.create_pool("other", [disks[1]], clevis=[("tang", config)]))
    uuid = stratis.pool("p").uuid
    system.unmount_all()
    done(stratis.stop_pool(uuid))

    server.stop()
    server.start(silent=True)
    replies = []
    second = Stratis()
    start = threading.Thread(target=lambda: replies.append(second.start_pool(uuid, slot=ANY_SLOT)))
    start.start()
    assert server.asked.wait(60)
    # Another pool, and what there is to see, know nothing of it.
    ((filesystem, _),) = done(stratis.create_filesystem(other, "g", GIB))
    assert set(stratis.pool("other").filesystems) == {"g"}
    done(stratis.destroy_filesystem(other, filesystem))
    assert start.is_alive(), "it still waits for the server"
    start.join()
    (reply,) = replies
    assert reply.code == 1 and server.url in reply.text, reply
    server.stop()
    server.start()
    done(stratis.start_pool(uuid, slot=ANY_SLOT))
    check(data)


def test_nested_pins(stratis, disks, tangs):
    """sss, and one more within it: any one of two servers does."""
    first, second = tangs
    inner = {"t": 1, "pins": {"tang": {"url": second.url, "thp": second.thumbprint()}}}
    config = {"t": 1, "pins": {"tang": {"url": first.url}, "sss": inner}, "stratis:tang:trust_url": True}
    done(stratis.create_pool("p", disks[:2], clevis=[("sss", config)]))
    data = fill()
    ((_, (pin, shown)),) = stratis.get(stratis.pool("p").path, "pool", "ClevisInfos")
    outer, inner = ([{"thp": server.thumbprint(), "url": server.url}] for server in tangs)
    assert (pin, json.loads(shown)) == ("sss", {"t": 1, "pins": {"tang": outer, "sss": [{"t": 1, "pins": {"tang": inner}}]}})
    for server in tangs:
        stop()
        server.stop()
        client.ok("pool", "start", "--name", "p", "--unlock-method=any")
        check(data)
        server.start()
    stop()
    for server in tangs:
        server.stop()
    said = start_refused("--unlock-method=any")
    assert first.url in said and second.url in said


def test_tpm(stratis, disks, tangs, tpm):
    client.ok("pool", "create", "p", *disks[:2], "--clevis=tpm2")
    data = fill()
    node = luks_dump.node_of(stratis.pool("p").uuid)
    ((_, (pin, config)),) = stratis.get(stratis.pool("p").path, "pool", "ClevisInfos")
    assert (pin, config) == ("tpm2", "{}")
    client.ok("pool", "bind", "nbde", "p", tangs[0].url, "--trust-url")
    client.ok("pool", "unbind", "clevis", "p", "--token-slot=0")
    client.ok("pool", "bind", "tpm2", "p")
    assert sorted(tokens(stratis)) == ["0", "1"]
    client.ok("pool", "rebind", "clevis", "p", "--token-slot=0")
    assert any(" tpm2 " in line for line in luks_dump.clevis_list(node))
    client.ok("pool", "unbind", "clevis", "p", "--token-slot=1")
    stop()
    tpm.off()
    assert "tpm2" in start_refused("--unlock-method=any")
    tpm.on()
    client.ok("pool", "start", "--name", "p", "--unlock-method=any")
    check(data)


def test_an_adopted_pool_gets_its_volume_key_again(stratis, disks, tangs, keys):
    server = tangs[0]
    config = {"url": server.url, "stratis:tang:trust_url": True}
    done(stratis.create_pool("p", disks[:1], keys=["k1"], clevis=[("tang", config)]))
    data = fill()
    before = tokens(stratis)

    # Nothing that opens it: it serves its data, and cannot grow.
    client.unset_keys()
    server.stop()
    log = system.Log()
    system.kill_daemon()
    system.start_daemon()
    log.wait_for("cannot grow", "volume key")
    stratis = Stratis()
    pool = stratis.pool("p")
    assert stratis.get(pool.path, "pool", "VolumeKeyLoaded") is False
    assert tokens(stratis) == before
    assert system.contents("/mnt/f") == data
    assert "WC001" in client.ok("pool", "list")
    # A key that opens it is all that it takes.
    client.set_key("k1", FIRST)
    stratis.wait_until(pool.path, "pool", "VolumeKeyLoaded", True)
    crypt = f"/dev/mapper/stratis-1-private-{pool.uuid}-crypt"
    small = int(system.run("blockdev", "--getsize64", crypt))
    client.ok("pool", "add-data", "p", *disks[1:])
    stratis.refresh()
    data["more"] = system.put("/mnt/f", "more", 600 << 20)
    assert int(system.run("blockdev", "--getsize64", crypt)) > small
    stop()
    client.ok("pool", "start", "--name", "p", "--unlock-method=any")
    check(data)
    log.close()
