//! The kernel's persistent keyring of root, where passphrases are kept (`spec/engine/encryption.md` §3).
//!
//! The keyring is fetched and linked into the session keyring before each use, because it expires when it is not used for
//! days. Knows names and bytes; nothing of what a key opens.

use std::{ffi::CString, io};

use nix::libc::{self, c_int, c_long};
use zeroize::Zeroizing;

use crate::platform::{
    Error, Result,
    keyring::{KeyChange, Secret},
};

const TYPE: &std::ffi::CStr = c"user";
/// Everything for the user, nothing for anybody else.
const PERMISSIONS: c_long = 0x003f_0000;
/// Longest value read back; ours have at most 64 bytes, others' are not looked at.
const VALUE_BYTES_MAX: usize = 32 << 10;
/// Room for the numbers of keys in the keyring.
const KEYS_MAX: usize = 1 << 16;

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

/// Sets a key, durable until the next boot.
#[allow(unsafe_code)]
pub(super) fn set(name: &str, value: &Secret) -> Result<KeyChange> {
    let ring = persistent()?;
    let (pointer, length) = (value.bytes().as_ptr(), value.bytes().len());
    if let Some(serial) = find(ring, name)? {
        if value.same(&read(serial, name, VALUE_BYTES_MAX)?) {
            return Ok(KeyChange::Same);
        }
        return match keyctl(libc::KEYCTL_UPDATE, [serial, pointer as c_long, length as c_long, 0]) {
            0.. => Ok(KeyChange::Replaced),
            _ => Err(failed("change", name)),
        };
    }
    let text = c_name(name)?;
    // SAFETY: type and name are strings that end with NUL, and the value has `length` bytes; all live until the call returns.
    let serial =
        unsafe { libc::syscall(libc::SYS_add_key, TYPE.as_ptr(), text.as_ptr(), pointer, length, ring as c_int) };
    if serial < 0 {
        return Err(failed("add", name));
    }
    match keyctl(libc::KEYCTL_SETPERM, [serial, PERMISSIONS, 0, 0]) {
        0.. => Ok(KeyChange::Created),
        _ => {
            let error = failed("protect", name);
            keyctl(libc::KEYCTL_UNLINK, [serial, ring, 0, 0]);
            Err(error)
        }
    }
}

/// Removes a key. `false`: there was none.
pub(super) fn unset(name: &str) -> Result<bool> {
    let ring = persistent()?;
    let Some(serial) = find(ring, name)? else { return Ok(false) };
    match keyctl(libc::KEYCTL_UNLINK, [serial, ring, 0, 0]) {
        0.. => Ok(true),
        _ => Err(failed("remove", name)),
    }
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
    let mut text = vec![0_u8; 4096];
    let length = keyctl(libc::KEYCTL_DESCRIBE, [serial, text.as_mut_ptr() as c_long, text.len() as c_long, 0]);
    text.truncate(usize::try_from(length).ok()?.saturating_sub(1));
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

pub(super) fn volume_key_set(name: &str, _value: &Secret) -> Result<()> {
    Err(Error::Missing(format!("the process keyring ({name}) is not there yet")))
}

pub(super) fn volume_key_read(_name: &str) -> Result<Option<Secret>> {
    Ok(None)
}

pub(super) fn volume_key_unset(_name: &str) -> Result<bool> {
    Ok(false)
}
