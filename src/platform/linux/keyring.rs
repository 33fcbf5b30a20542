//! The kernel's keyrings: root's persistent keyring with the passphrases, and the daemon's process
//! keyring with the volume keys (`docs/spec/engine/encryption.md` §3).
//!
//! The persistent keyring expires when it is not used for days, so each use fetches it and links it
//! into the session keyring. This module knows names and bytes, but not what a key unlocks.

use std::{
    ffi::{CStr, CString},
    io,
};

use nix::libc::{self, c_int, c_long};
use zeroize::Zeroizing;

use crate::platform::{
    Error, Result,
    keyring::{KeyChange, NAME_BYTES_MAX, Secret},
};

const TYPE: &CStr = c"user";
/// Type of keys that only the kernel can read.
const LOGON: &CStr = c"logon";
/// All rights for the possessor of the user's key, none for others.
const PERMISSIONS: c_long = 0x003f_0000;
/// Longest value read back. Keys of this daemon have at most 64 bytes; others are never read.
const VALUE_BYTES_MAX: usize = 32 << 10;
/// Capacity for the serial numbers of a keyring.
const KEYS_MAX: usize = 1 << 16;

/// Capacity for the kernel's description of a key: type (up to 31 bytes), two IDs (11), permissions
/// (8), name, separators and a final NUL.
const DESCRIPTION_BYTES_MAX: usize = NAME_BYTES_MAX + 31 + 2 * 11 + 8 + 4 + 1;

/// Serial number of a key or keyring.
type Serial = c_long;

fn failed(action: &'static str, name: &str) -> Error {
    Error::Io { action, path: format!("the key {name}").into(), source: io::Error::last_os_error() }
}

/// One keyctl(2) operation.
#[allow(unsafe_code)]
fn keyctl(operation: u32, arguments: [c_long; 4]) -> c_long {
    let [a, b, c, d] = arguments;
    // SAFETY: the operations used here read memory only through pointers that the callers below
    // make from live values, and write only to buffers whose length they pass.
    unsafe { libc::syscall(libc::SYS_keyctl, c_long::from(operation), a, b, c, d) }
}

/// Root's persistent keyring, linked into the session keyring.
fn persistent() -> Result<Serial> {
    let session = c_long::from(libc::KEY_SPEC_SESSION_KEYRING);
    match keyctl(libc::KEYCTL_GET_PERSISTENT, [0, session, 0, 0]) {
        serial if serial >= 0 => Ok(serial),
        _ => Err(failed("open the keyring for", "(all)")),
    }
}

fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::Unexpected { what: "the name of a key", text: name.replace('\0', "\\0") })
}

/// Finds a key in a keyring by name.
fn find(ring: Serial, name: &str) -> Result<Option<Serial>> {
    let text = c_name(name)?;
    match keyctl(libc::KEYCTL_SEARCH, [ring, TYPE.as_ptr() as c_long, text.as_ptr() as c_long, 0]) {
        serial if serial >= 0 => Ok(Some(serial)),
        _ => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOKEY | libc::EKEYREVOKED | libc::EKEYEXPIRED) => Ok(None),
            _ => Err(failed("find", name)),
        },
    }
}

/// Reads the payload of a key or keyring.
fn read(serial: Serial, name: &str, room: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; room]);
    let length = keyctl(libc::KEYCTL_READ, [serial, bytes.as_mut_ptr() as c_long, room as c_long, 0]);
    match usize::try_from(length) {
        Ok(length) if length <= room => {
            bytes.truncate(length);
            Ok(bytes)
        }
        Ok(_) => Err(Error::Unexpected { what: "a key of the keyring", text: format!("{name} has {length} bytes") }),
        Err(_) => Err(failed("read", name)),
    }
}

/// Adds a key, or replaces the value of the one with that name.
#[allow(unsafe_code)]
fn add(kind: &CStr, name: &str, value: &[u8], ring: Serial) -> Result<Serial> {
    let text = c_name(name)?;
    // SAFETY: type and name are NUL-terminated, and the value has the given length. All live until
    // the call returns.
    let serial = unsafe {
        libc::syscall(libc::SYS_add_key, kind.as_ptr(), text.as_ptr(), value.as_ptr(), value.len(), ring as c_int)
    };
    if serial < 0 { Err(failed("add", name)) } else { Ok(serial) }
}

/// Restricts a new key to its user. A key that cannot be restricted is removed.
fn protect(serial: Serial, name: &str, ring: Serial) -> Result<()> {
    match keyctl(libc::KEYCTL_SETPERM, [serial, PERMISSIONS, 0, 0]) {
        0.. => Ok(()),
        _ => {
            let error = failed("set the permissions of", name);
            keyctl(libc::KEYCTL_UNLINK, [serial, ring, 0, 0]);
            Err(error)
        }
    }
}

/// Unlinks a key from a keyring that contains it.
fn unlink(serial: Serial, name: &str, ring: Serial) -> Result<bool> {
    match keyctl(libc::KEYCTL_UNLINK, [serial, ring, 0, 0]) {
        0.. => Ok(true),
        _ => Err(failed("remove", name)),
    }
}

/// Sets a key that lasts until the next boot.
pub(super) fn set(name: &str, value: &Secret) -> Result<KeyChange> {
    let ring = persistent()?;
    if let Some(serial) = find(ring, name)? {
        if value.same(&read(serial, name, VALUE_BYTES_MAX)?) {
            return Ok(KeyChange::Same);
        }
        let (pointer, length) = (value.bytes().as_ptr(), value.bytes().len());
        return match keyctl(libc::KEYCTL_UPDATE, [serial, pointer as c_long, length as c_long, 0]) {
            0.. => Ok(KeyChange::Replaced),
            _ => Err(failed("update", name)),
        };
    }
    let serial = add(TYPE, name, value.bytes(), ring)?;
    protect(serial, name, ring)?;
    Ok(KeyChange::Created)
}

/// Removes a key. `false` if there was none.
pub(super) fn unset(name: &str) -> Result<bool> {
    let ring = persistent()?;
    let Some(serial) = find(ring, name)? else { return Ok(false) };
    unlink(serial, name, ring)
}

/// Names of all keys of the daemon's type in the keyring.
pub(super) fn list() -> Result<Vec<String>> {
    let ring = persistent()?;
    let numbers = read(ring, "(all)", KEYS_MAX * size_of::<c_int>())?;
    let serials = numbers
        .chunks_exact(size_of::<c_int>())
        .map(|bytes| c_int::from_ne_bytes(bytes.try_into().expect("chunks have the size of a number")));
    Ok(serials.filter_map(|serial| described(c_long::from(serial))).collect())
}

/// The name of a key of the daemon's type. `None` if the key no longer exists.
fn described(serial: Serial) -> Option<String> {
    let mut text = vec![0_u8; DESCRIPTION_BYTES_MAX];
    let length = keyctl(libc::KEYCTL_DESCRIBE, [serial, text.as_mut_ptr() as c_long, text.len() as c_long, 0]);
    // For a longer description the kernel returns the length and writes nothing.
    let length = usize::try_from(length).ok().filter(|length| *length <= text.len())?;
    text.truncate(length.saturating_sub(1));
    // "type;uid;gid;permissions;name": the name is the rest, whatever it contains.
    let text = String::from_utf8(text).ok()?;
    let mut fields = text.splitn(5, ';');
    (fields.next()? == "user").then(|| fields.nth(3).map(str::to_owned))?
}

/// Reads a key of the persistent keyring.
pub(super) fn key_read(name: &str) -> Result<Option<Secret>> {
    let Some(serial) = find(persistent()?, name)? else { return Ok(None) };
    Ok(Some(Secret::new(read(serial, name, VALUE_BYTES_MAX)?)))
}

/// The process keyring: shared by all threads, and gone when the process ends.
const PROCESS: Serial = libc::KEY_SPEC_PROCESS_KEYRING as Serial;

/// Creates the process keyring. Threads share the keyring of the thread that starts them, so call
/// this before any other is started.
pub(super) fn make_process_keyring() -> Result<()> {
    match keyctl(libc::KEYCTL_GET_KEYRING_ID, [PROCESS, 1, 0, 0]) {
        0.. => Ok(()),
        _ => Err(failed("create the keyring for", "(volume keys)")),
    }
}

/// Stores or replaces a volume key in the process keyring.
pub(super) fn volume_key_set(name: &str, value: &Secret) -> Result<()> {
    let serial = add(TYPE, name, value.bytes(), PROCESS)?;
    protect(serial, name, PROCESS)
}

/// Reads a volume key.
pub(super) fn volume_key_read(name: &str) -> Result<Option<Secret>> {
    let Some(serial) = find(PROCESS, name)? else { return Ok(None) };
    Ok(Some(Secret::new(read(serial, name, VALUE_BYTES_MAX)?)))
}

/// Removes a volume key. `false` if there was none.
pub(super) fn volume_key_unset(name: &str) -> Result<bool> {
    let Some(serial) = find(PROCESS, name)? else { return Ok(false) };
    unlink(serial, name, PROCESS)
}

/// Gives the kernel a volume key that a device-mapper table refers to. No process can read the key
/// back. For a short-lived process, because the key stays in its process keyring.
pub(super) fn lend_to_kernel(name: &str, key: &[u8]) -> Result<()> {
    add(LOGON, name, key, PROCESS).map(drop)
}
