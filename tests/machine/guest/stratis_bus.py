"""stratisd as a D-Bus client sees it: one connection, calls that return (value, code, text), and
the tree as plain values.

Uses revision r9 of the interfaces; the client's own tests cover the others. Knows nothing of what
is tested.
"""

import collections
import json
import time

import dbus

NAME = "org.storage.stratis3"
TOP = "/org/storage/stratis3"
REVISION = "r9"
TIMEOUT_SECONDS = 600

Reply = collections.namedtuple("Reply", "value code text")
Pool = collections.namedtuple("Pool", "path uuid name devices filesystems")
Filesystem = collections.namedtuple("Filesystem", "path uuid name size origin devnode")

NO = {"flag": (False, 0), "text": (False, "")}
# What a report says about a pool that is about to run.
BEING_SET_UP = "it is being set up"
# Any token slot, both as an unlock method and as the slot for a new binding.
ANY_SLOT = (False, dbus.UInt32(0))


class Refused(AssertionError):
    """A call that was expected to succeed returned code 1."""


def interface(kind):
    return f"{NAME}.{kind}.{REVISION}"


def _plain(value):
    """Python's own types instead of dbus-python's."""
    if isinstance(value, dbus.Boolean):
        return bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _bindings(keys, clevis):
    """The two lists of bindings that requests take."""
    return (dbus.Array([(ANY_SLOT, key) for key in keys], "((bu)s)"),
            dbus.Array([(ANY_SLOT, pin, json.dumps(config)) for pin, config in clevis], "((bu)ss)"))  # fmt: skip


class Stratis:
    """A connection to the daemon."""

    def __init__(self, all_pools=True):
        """The daemon owns its name after ten seconds at the latest, even while pools are being set up. `all_pools`:
        waits for those, too."""
        self.bus = dbus.SystemBus(private=True)
        if all_pools:
            self.wait_for_pools()

    def close(self):
        self.bus.close()

    def call(self, path, interface_name, method, signature, *arguments):
        """The reply as plain values."""
        return _plain(
            self.bus.call_blocking(NAME, path, interface_name, method, signature, arguments, timeout=TIMEOUT_SECONDS)
        )

    def _method(self, path, kind, method, signature, *arguments):
        return Reply(*self.call(path, interface(kind), method, signature, *arguments))

    # ---- the tree ----

    def objects(self):
        return self.call(TOP, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "")

    def pools(self):
        """Pools by name, with their devices (node → UUID) and filesystems by name."""
        objects = self.objects()
        found = {}
        for path, interfaces in objects.items():
            pool = interfaces.get(interface("pool"))
            if pool:
                found[path] = Pool(path, pool["Uuid"], pool["Name"], {}, {})
        for path, interfaces in objects.items():
            device = interfaces.get(interface("blockdev"))
            if device:
                found[device["Pool"]].devices[device["Devnode"]] = device["Uuid"]
            fs = interfaces.get(interface("filesystem"))
            if fs:
                origin = fs["Origin"][1] if fs["Origin"][0] else None
                entry = Filesystem(path, fs["Uuid"], fs["Name"], int(fs["Size"]), origin, fs["Devnode"])
                found[fs["Pool"]].filesystems[entry.name] = entry
        return {pool.name: pool for pool in found.values()}

    def pool(self, name):
        return self.pools()[name]

    # ---- methods ----

    def create_pool(self, name, devices, keys=(), clevis=()):
        """`keys`: descriptions; `clevis`: pairs of pin and configuration. Each binding takes a free
        token slot."""
        return self._method(TOP, "Manager", "CreatePool", "sasa((bu)s)a((bu)ss)(bt)(bs)(bb)",
                            name, dbus.Array(devices, "s"), *_bindings(keys, clevis),
                            (False, dbus.UInt64(0)), (False, ""), (False, False))  # fmt: skip

    def destroy_pool(self, path):
        return self._method(TOP, "Manager", "DestroyPool", "o", path)

    def create_filesystem(self, pool_path, name, size_bytes=None):
        size = (False, "") if size_bytes is None else (True, str(size_bytes))
        specs = dbus.Array([(name, size, (False, ""))], "(s(bs)(bs))")
        return self._method(pool_path, "pool", "CreateFilesystems", "a(s(bs)(bs))", specs)

    def destroy_filesystem(self, pool_path, *paths):
        return self._method(pool_path, "pool", "DestroyFilesystems", "ao", dbus.Array(paths, "o"))

    def snapshot(self, pool_path, origin_path, name):
        return self._method(pool_path, "pool", "SnapshotFilesystem", "os", origin_path, name)

    def add_data_devices(self, pool_path, devices):
        return self._method(pool_path, "pool", "AddDataDevs", "as", dbus.Array(devices, "s"))

    def refresh(self):
        """Makes the daemon reread and check everything, so that pending growth is complete on
        return."""
        code, text = self.call(TOP, interface("Manager"), "RefreshState", "")
        assert code == 0, text

    def stop_pool(self, uuid):
        return Reply(*self.call(TOP, interface("Manager"), "StopPool", "ss", uuid, "uuid"))

    def start_pool(self, uuid, remove_cache=False, slot=None):
        """`slot`: the token slot to unlock with, or ANY_SLOT; None if the pool is not encrypted."""
        unlock = (False, ANY_SLOT) if slot is None else (True, slot)
        arguments = (uuid, "uuid", unlock, (False, 0), remove_cache)
        return Reply(*self.call(TOP, interface("Manager"), "StartPool", "ss(b(bu))(bh)b", *arguments))

    def bind_clevis(self, pool_path, pin, config):
        return self._method(pool_path, "pool", "BindClevis", "ss(bu)", pin, json.dumps(config), ANY_SLOT)

    def encrypt_pool(self, pool_path, keys=(), clevis=()):
        return self._method(pool_path, "pool", "EncryptPool", "a((bu)s)a((bu)ss)", *_bindings(keys, clevis))

    def reencrypt_pool(self, pool_path):
        return self._method(pool_path, "pool", "ReencryptPool", "")

    def decrypt_pool(self, pool_path):
        return self._method(pool_path, "pool", "DecryptPool", "")

    def get(self, path, kind, name):
        """One property."""
        return self.call(path, dbus.PROPERTIES_IFACE, "Get", "ss", interface(kind), name)

    def stopped_pools(self):
        """Stopped pools as the daemon reports them, by UUID."""
        return self.get(TOP, "Manager", "StoppedPools")

    def wait_until(self, path, kind, name, value):
        """Polls a property for which the daemon sends no signal."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (found := self.get(path, kind, name)) != value:
            assert time.monotonic() < deadline, f"{name} is still {found}"

    def wait_for_pools(self):
        """Waits until no pool is being set up. A signal announces the end of a set-up only if the pool then runs."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while BEING_SET_UP in (report := json.dumps(self.report())):
            assert time.monotonic() < deadline, f"pools are still being set up: {report}"

    def report(self):
        """The engine state report."""
        text, code, what = self.call(TOP, interface("Manager"), "EngineStateReport", "")
        assert code == 0, what
        return json.loads(text)

    def pool_metadata(self, name):
        """The recorded metadata of a running pool."""
        text, code, what = self.call(self.pool(name).path, interface("pool"), "Metadata", "b", True)
        assert code == 0, what
        return json.loads(text)

    def set_fs_limit(self, pool_path, limit):
        self.bus.call_blocking(NAME, pool_path, dbus.PROPERTIES_IFACE, "Set", "ssv",
                               (interface("pool"), "FsLimit", dbus.UInt64(limit, variant_level=1)))  # fmt: skip

    def rename_pool(self, path, name):
        return self._method(path, "pool", "SetName", "s", name)

    def rename_filesystem(self, path, name):
        return self._method(path, "filesystem", "SetName", "s", name)


def done(reply):
    """The value of a reply that reports a change; anything else fails the test."""
    if reply.code != 0:
        raise Refused(reply.text)
    changed = reply.value if isinstance(reply.value, bool) else reply.value[0]
    assert changed, f"nothing was changed: {reply}"
    return None if isinstance(reply.value, bool) else reply.value[1]
