"""stratisd as a D-Bus client sees it: one connection, calls that give (value, code, text), and the tree as plain values.

Revision r9 of the interfaces throughout; the client's own tests cover the others. Knows nothing of what is tested.
"""

import collections

import dbus

NAME = "org.storage.stratis3"
TOP = "/org/storage/stratis3"
REVISION = "r9"
TIMEOUT_SECONDS = 600

Reply = collections.namedtuple("Reply", "value code text")
Pool = collections.namedtuple("Pool", "path uuid name devices filesystems")
Filesystem = collections.namedtuple("Filesystem", "path uuid name size origin devnode")

NO = {"flag": (False, 0), "text": (False, "")}


class Refused(AssertionError):
    """A call that was expected to succeed ended with code 1."""


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


class Stratis:
    """A connection to the daemon."""

    def __init__(self):
        self.bus = dbus.SystemBus(private=True)

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

    def create_pool(self, name, devices):
        return self._method(TOP, "Manager", "CreatePool", "sasa((bu)s)a((bu)ss)(bt)(bs)(bb)",
                            name, dbus.Array(devices, "s"), dbus.Array([], "((bu)s)"), dbus.Array([], "((bu)ss)"),
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
        """Everything is read anew and checked: what pools give their filesystems by themselves has been given then."""
        code, text = self.call(TOP, interface("Manager"), "RefreshState", "")
        assert code == 0, text

    def stop_pool(self, uuid):
        return Reply(*self.call(TOP, interface("Manager"), "StopPool", "ss", uuid, "uuid"))

    def start_pool(self, uuid, remove_cache=False):
        """Without unlocking."""
        arguments = (uuid, "uuid", (False, (False, 0)), (False, 0), remove_cache)
        return Reply(*self.call(TOP, interface("Manager"), "StartPool", "ss(b(bu))(bh)b", *arguments))

    def set_fs_limit(self, pool_path, limit):
        self.bus.call_blocking(NAME, pool_path, dbus.PROPERTIES_IFACE, "Set", "ssv",
                               (interface("pool"), "FsLimit", dbus.UInt64(limit, variant_level=1)))  # fmt: skip

    def rename_pool(self, path, name):
        return self._method(path, "pool", "SetName", "s", name)

    def rename_filesystem(self, path, name):
        return self._method(path, "filesystem", "SetName", "s", name)


def done(reply):
    """The value of a reply that says something was changed; anything else is a failed expectation."""
    if reply.code != 0:
        raise Refused(reply.text)
    changed = reply.value if isinstance(reply.value, bool) else reply.value[0]
    assert changed, f"nothing was changed: {reply}"
    return None if isinstance(reply.value, bool) else reply.value[1]
