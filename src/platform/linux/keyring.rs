//! The kernel's keyrings: the persistent one of root, where passphrases are kept, and the daemon's own, where volume keys
//! are (`docs/spec/engine/encryption.md` §3).
//!
//! The persistent keyring is fetched and linked into the session keyring before each use, because it expires when it is not used for
//! days. Knows names and bytes; nothing of what a key opens.

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
/// Of keys that only the kernel can read.
const LOGON: &CStr = c"logon";
/// Everything for the user, nothing for anybody else.
const PERMISSIONS: c_long = 0x003f_0000;
/// Longest value read back; ours have at most 64 bytes, others' are not looked at.
const VALUE_BYTES_MAX: usize = 32 << 10;
/// Room for the numbers of keys in the keyring.
const KEYS_MAX: usize = 1 << 16;

/// Room for what the kernel says of a key: a type of 31 bytes at most, two numbers of 11, permissions of 8, the name, what
/// separates them, and a NUL at the end.
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
    // SAFETY: the operations used here read memory only through pointers that the callers below make from live values, and
    // write only to buffers whose length they pass.
    unsafe { libc::syscall(libc::SYS_keyctl, c_long::from(operation), a, b, c, d) }
}

/// Root's persistent keyring, linked into the session.
fn persistent() -> Result<Serial> {
    let session = c_long::from(libc::KEY_SPEC_SESSION_KEYRING);
    match keyctl(libc::KEYCTL_GET_PERSISTENT, [0, session, 0, 0]) {
        serial if serial >= 0 => Ok(serial),
        _ => Err(failed("open the keyring for", "(all)")),
    }
}

fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::Unexpected { what: "the name of the key", text: name.replace('\0', "\\0") })
}

/// A key of the keyring by name.
fn find(ring: Serial, name: &str) -> Result<Option<Serial>> {
    let text = c_name(name)?;
    match keyctl(libc::KEYCTL_SEARCH, [ring, TYPE.as_ptr() as c_long, text.as_ptr() as c_long, 0]) {
        serial if serial >= 0 => Ok(Some(serial)),
        _ => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOKEY | libc::EKEYREVOKED | libc::EKEYEXPIRED) => Ok(None),
            _ => Err(failed("look for", name)),
        },
    }
}

/// What a key or keyring holds.
fn read(serial: Serial, name: &str, room: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; room]);
    let length = keyctl(libc::KEYCTL_READ, [serial, bytes.as_mut_ptr() as c_long, room as c_long, 0]);
    match usize::try_from(length) {
        Ok(length) if length <= room => {
            bytes.truncate(length);
            Ok(bytes)
        }
        Ok(_) => Err(Error::Unexpected { what: "a value of the keyring", text: format!("{name} has {length} bytes") }),
        Err(_) => Err(failed("read", name)),
    }
}

/// Adds a key, or gives the one of that name another value.
#[allow(unsafe_code)]
fn add(kind: &CStr, name: &str, value: &[u8], ring: Serial) -> Result<Serial> {
    let text = c_name(name)?;
    // SAFETY: type and name are strings that end with NUL, and the value is as long as is said; all live until the call
    // returns.
    let serial = unsafe {
        libc::syscall(libc::SYS_add_key, kind.as_ptr(), text.as_ptr(), value.as_ptr(), value.len(), ring as c_int)
    };
    if serial < 0 { Err(failed("add", name)) } else { Ok(serial) }
}

/// Takes a new key's rights away from all but the user; one that cannot be protected does not stay.
fn protect(serial: Serial, name: &str, ring: Serial) -> Result<()> {
    match keyctl(libc::KEYCTL_SETPERM, [serial, PERMISSIONS, 0, 0]) {
        0.. => Ok(()),
        _ => {
            let error = failed("protect", name);
            keyctl(libc::KEYCTL_UNLINK, [serial, ring, 0, 0]);
            Err(error)
        }
    }
}

/// Takes a key out of a keyring, which says that it was there.
fn unlink(serial: Serial, name: &str, ring: Serial) -> Result<bool> {
    match keyctl(libc::KEYCTL_UNLINK, [serial, ring, 0, 0]) {
        0.. => Ok(true),
        _ => Err(failed("remove", name)),
    }
}

/// Sets a key, durable until the next boot.
pub(super) fn set(name: &str, value: &Secret) -> Result<KeyChange> {
    let ring = persistent()?;
    if let Some(serial) = find(ring, name)? {
        if value.same(&read(serial, name, VALUE_BYTES_MAX)?) {
            return Ok(KeyChange::Same);
        }
        let (pointer, length) = (value.bytes().as_ptr(), value.bytes().len());
        return match keyctl(libc::KEYCTL_UPDATE, [serial, pointer as c_long, length as c_long, 0]) {
            0.. => Ok(KeyChange::Replaced),
            _ => Err(failed("change", name)),
        };
    }
    let serial = add(TYPE, name, value.bytes(), ring)?;
    protect(serial, name, ring)?;
    Ok(KeyChange::Created)
}

/// Removes a key. `false`: there was none.
pub(super) fn unset(name: &str) -> Result<bool> {
    let ring = persistent()?;
    let Some(serial) = find(ring, name)? else { return Ok(false) };
    unlink(serial, name, ring)
}

/// Names of all keys of our type in the keyring.
pub(super) fn list() -> Result<Vec<String>> {
    let ring = persistent()?;
    let numbers = read(ring, "(all)", KEYS_MAX * size_of::<c_int>())?;
    let serials = numbers
        .chunks_exact(size_of::<c_int>())
        .map(|bytes| c_int::from_ne_bytes(bytes.try_into().expect("chunks have the size of a number")));
    Ok(serials.filter_map(|serial| described(c_long::from(serial))).collect())
}

/// The name of a key of our type. One that went away meanwhile has none.
fn described(serial: Serial) -> Option<String> {
    let mut text = vec![0_u8; DESCRIPTION_BYTES_MAX];
    let length = keyctl(libc::KEYCTL_DESCRIBE, [serial, text.as_mut_ptr() as c_long, text.len() as c_long, 0]);
    // Of a longer one the kernel would have told the length and written nothing.
    let length = usize::try_from(length).ok().filter(|length| *length <= text.len())?;
    text.truncate(length.saturating_sub(1));
    // "type;uid;gid;permissions;name": the name is the rest, whatever it holds.
    let text = String::from_utf8(text).ok()?;
    let mut fields = text.splitn(5, ';');
    (fields.next()? == "user").then(|| fields.nth(3).map(str::to_owned))?
}

/// A key of the keyring.
pub(super) fn key_read(name: &str) -> Result<Option<Secret>> {
    let Some(serial) = find(persistent()?, name)? else { return Ok(None) };
    Ok(Some(Secret::new(read(serial, name, VALUE_BYTES_MAX)?)))
}

/// The daemon's own keyring, shared by its threads, gone with it.
const PROCESS: Serial = libc::KEY_SPEC_PROCESS_KEYRING as Serial;

/// Makes the process keyring. A thread has that of the thread which started it, so this comes before there are others.
pub(super) fn make_process_keyring() -> Result<()> {
    match keyctl(libc::KEYCTL_GET_KEYRING_ID, [PROCESS, 1, 0, 0]) {
        0.. => Ok(()),
        _ => Err(failed("make the keyring for", "(volume keys)")),
    }
}

/// Keeps a volume key in the process keyring, in place of one of that name.
pub(super) fn volume_key_set(name: &str, value: &Secret) -> Result<()> {
    let serial = add(TYPE, name, value.bytes(), PROCESS)?;
    protect(serial, name, PROCESS)
}

/// A volume key.
pub(super) fn volume_key_read(name: &str) -> Result<Option<Secret>> {
    let Some(serial) = find(PROCESS, name)? else { return Ok(None) };
    Ok(Some(Secret::new(read(serial, name, VALUE_BYTES_MAX)?)))
}

/// Removes a volume key. `false`: there was none.
pub(super) fn volume_key_unset(name: &str) -> Result<bool> {
    let Some(serial) = find(PROCESS, name)? else { return Ok(false) };
    unlink(serial, name, PROCESS)
}

/// Gives the kernel a volume key that a device-mapper table names; nobody can read it back. For a short-lived process:
/// it lies in the process keyring.
pub(super) fn lend_to_kernel(name: &str, key: &[u8]) -> Result<()> {
    add(LOGON, name, key, PROCESS).map(drop)
}
