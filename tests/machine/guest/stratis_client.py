"""The stratis client: one call of the program, and keys by it. A call takes Python a second."""

import pathlib
import subprocess

PROGRAM = "stratis-3.8.2"
# Outside the places that are searched for secrets.
KEY_FILES = pathlib.Path("/root/keys")
_keys = set()


def call(*arguments, stdin=None):
    """Runs the program; returns it with any exit status."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False, input=stdin)


def ok(*arguments, stdin=None):
    """Runs the program, which must succeed; returns its output."""
    ended = call(*arguments, stdin=stdin)
    assert ended.returncode == 0, f"{PROGRAM} {' '.join(arguments)}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def refused(*arguments, stdin=None):
    """Runs the program, which must fail; returns its message."""
    ended = call(*arguments, stdin=stdin)
    assert ended.returncode != 0, f"{PROGRAM} {' '.join(arguments)} succeeded: {ended.stdout}"
    return ended.stdout + ended.stderr


def key_file(name, passphrase):
    """A file that contains just the passphrase."""
    KEY_FILES.mkdir(mode=0o700, exist_ok=True)
    path = KEY_FILES / name
    path.write_text(passphrase)
    return str(path)


def set_key(name, passphrase):
    """Sets or changes a key in the kernel's keyring with the client."""
    verb = "reset" if name in _keys else "set"
    ok("key", verb, name, f"--keyfile-path={key_file(name, passphrase)}")
    _keys.add(name)


def unset_keys():
    """Removes all keys that this test run has set; after a boot there are none."""
    while _keys:
        ok("key", "unset", _keys.pop())
