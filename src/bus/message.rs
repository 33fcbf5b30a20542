//! Messages of the `dbus` crate: made from our own marshalled bodies, read into our own values.
//!
//! A message is a fresh header before a body that is already bytes, handed to `Message::demarshal`. libdbus checks
//! and copies it once; it is the way in that costs least, since the crate's append interface makes several calls into
//! libdbus for every single value. Decoding trusts nothing: types must be those of the signature wanted, and what one
//! message may make us allocate is limited.
//! Knows nothing of what the values mean.

use std::{
    fs::File,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use dbus::{
    Message,
    arg::{ArgType, Get, Iter},
};

use crate::bus::{
    job::Caller,
    outcome::{Answer, readable},
    wire::{Body, Descriptor, Marshaller, Types, Value},
};

/// Longest array that the D-Bus specification allows; a message may be twice as long.
pub const ARRAY_BYTES_MAX: usize = 64 << 20;

/// Values that the arguments of one call may contain, nested ones included. The largest call that makes sense names
/// some thousands of devices or filesystems.
const VALUES_MAX: usize = 100_000;

/// The arguments of a message are not those that the member takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadArguments {
    #[error("argument {position} is missing; one of type `{wanted}` is wanted")]
    Missing { position: usize, wanted: &'static str },
    #[error("argument {position} is of type `{found}`, not `{wanted}`")]
    Type { position: usize, found: String, wanted: &'static str },
    #[error("the arguments contain more than {VALUES_MAX} values")]
    TooMany,
    #[error("the value is of type `{found}`, not `{wanted}`")]
    Variant { found: String, wanted: &'static str },
    #[error("the interface name is empty; give the full name of an interface")]
    NoInterface,
    #[error("the arguments cannot be understood; this is a fault of the daemon, please report it")]
    Row,
}

/// A message could not be made; libdbus refuses it.
#[derive(Debug, thiserror::Error)]
#[error("libdbus refused a message that was to be sent ({what}): {text}")]
pub struct NotAMessage {
    what: String,
    text: String,
}

/// What a message is and where it goes.
#[derive(Debug, Clone, Copy)]
pub enum Envelope<'a> {
    /// The answer to a call.
    Return(&'a Caller),
    /// A D-Bus error as the answer to a call.
    Error(&'a Caller, &'a str),
    /// A signal to everybody who listens.
    Signal {
        /// Object that it comes from.
        path: &'a str,
        /// Its interface.
        interface: &'a str,
        /// Its name.
        member: &'a str,
    },
}

/// Header of a message of which the body has `body_bytes`; ends at a multiple of 8, where the body begins.
fn header(envelope: Envelope<'_>, signature: &str, body_bytes: usize) -> Marshaller {
    /// Our own count, apart from libdbus's small one; bus and clients only see it in the logs of a monitor, since
    /// nothing that is sent here has an answer.
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    const NO_REPLY_EXPECTED: u8 = 1;

    let kind = match envelope {
        Envelope::Return(_) => 2,
        Envelope::Error(..) => 3,
        Envelope::Signal { .. } => 4,
    };
    let mut m = Marshaller::after(Vec::with_capacity(256 + body_bytes));
    for byte in [b'l', kind, NO_REPLY_EXPECTED, 1] {
        m.byte(byte);
    }
    m.u32(body_bytes as u32);
    m.u32(SERIAL.fetch_add(1, Ordering::Relaxed) | 1 << 31);
    m.array("(yv)", |m| {
        let mut field = |code: u8, signature: &str, write: &dyn Fn(&mut Marshaller)| {
            m.align(8);
            m.byte(code);
            m.signature(signature);
            write(m);
        };
        match envelope {
            Envelope::Return(caller) | Envelope::Error(caller, _) => {
                field(5, "u", &|m| m.u32(caller.serial));
                field(6, "s", &|m| m.str(&caller.name));
            }
            Envelope::Signal { path, interface, member } => {
                field(1, "o", &|m| m.str(path));
                field(2, "s", &|m| m.str(interface));
                field(3, "s", &|m| m.str(member));
            }
        }
        if let Envelope::Error(_, name) = envelope {
            field(4, "s", &|m| m.str(name));
        }
        if !signature.is_empty() {
            field(8, "g", &|m| m.signature(signature));
        }
    });
    m.align(8);
    m
}

/// A message that is ready to be sent, and its length.
#[derive(Debug)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// Header and body.
    pub bytes: usize,
}

/// Makes a message of a marshalled body.
///
/// # Errors
/// When libdbus does not accept it, which means a fault here or a message that is too long.
pub fn message(envelope: Envelope<'_>, signature: &str, body: &[u8]) -> Result<Outgoing, NotAMessage> {
    message_in_place(envelope, signature, body.len(), |m| m.marshalled(body))
}

/// The same for a body that `write` makes in place, where it is too large to be copied for nothing. `body_bytes` must
/// be its exact length.
///
/// # Errors
/// As [`message`]; also when the length is not that.
pub fn message_in_place(
    envelope: Envelope<'_>,
    signature: &str,
    body_bytes: usize,
    write: impl FnOnce(&mut Marshaller),
) -> Result<Outgoing, NotAMessage> {
    let mut m = header(envelope, signature, body_bytes);
    write(&mut m);
    let bytes = m.finish();
    let message = Message::demarshal(&bytes).map_err(|error| NotAMessage {
        what: match envelope {
            Envelope::Return(caller) => format!("a reply to {}", caller.name),
            Envelope::Error(caller, name) => format!("the error {name} to {}", caller.name),
            Envelope::Signal { path, interface, member } => format!("the signal {interface}.{member} of {path}"),
        },
        text: error.message().unwrap_or("not enough memory").to_owned(),
    })?;
    Ok(Outgoing { message, bytes: bytes.len() })
}

/// Makes the message of an answer.
///
/// # Errors
/// As [`message`].
pub fn answer(caller: &Caller, answer: &Answer) -> Result<Outgoing, NotAMessage> {
    match answer {
        Answer::Return(body) => message(Envelope::Return(caller), &body.signature, &body.bytes),
        Answer::Error(name, text) => {
            let body = Body::of(&[Value::Str(readable(text.clone()))]);
            message(Envelope::Error(caller, name), &body.signature, &body.bytes)
        }
    }
}

/// Reads the arguments of a message, which must begin with those of the types wanted; surplus ones are ignored, as
/// clients of the existing daemon may rely on.
///
/// # Errors
/// The first argument that is missing or of another type.
pub fn arguments(
    message: &Message,
    wanted: impl IntoIterator<Item = &'static str>,
) -> Result<Vec<Value>, BadArguments> {
    let mut iter = message.iter_init();
    let mut values_left = VALUES_MAX;
    let mut values = Vec::new();
    for wanted in wanted {
        let position = values.len() + 1;
        if iter.arg_type() == ArgType::Invalid {
            return Err(BadArguments::Missing { position, wanted });
        }
        let found = iter.signature();
        if &*found != wanted {
            return Err(BadArguments::Type { position, found: found.to_string(), wanted });
        }
        values.push(value(&mut iter, wanted, &mut values_left)?);
        iter.next();
    }
    Ok(values)
}

/// Reads the third argument of a `Properties.Set` call, a variant that must contain a value of type `wanted`.
///
/// # Errors
/// When it contains another, or is not there.
pub fn set_argument(message: &Message, wanted: &'static str) -> Result<Value, BadArguments> {
    let mut iter = message.iter_init();
    iter.next();
    iter.next();
    let Some(mut inner) = iter.recurse(ArgType::Variant) else {
        return Err(BadArguments::Missing { position: 3, wanted: "v" });
    };
    let found = inner.signature();
    if &*found != wanted {
        return Err(BadArguments::Variant { found: found.to_string(), wanted });
    }
    value(&mut inner, wanted, &mut { VALUES_MAX })
}

/// The value at the iterator. Its type has been compared with `signature` before; what does not fit all the same is
/// [`BadArguments::Row`].
fn value(iter: &mut Iter<'_>, signature: &'static str, values_left: &mut usize) -> Result<Value, BadArguments> {
    fn basic<'a, T: Get<'a>>(iter: &mut Iter<'a>) -> Result<T, BadArguments> {
        iter.get::<T>().ok_or(BadArguments::Row)
    }
    *values_left = values_left.checked_sub(1).ok_or(BadArguments::TooMany)?;
    Ok(match signature.as_bytes().first() {
        Some(b'y') => Value::Byte(basic(iter)?),
        Some(b'b') => Value::Bool(basic(iter)?),
        Some(b'q') => Value::U16(basic(iter)?),
        Some(b'u') => Value::U32(basic(iter)?),
        Some(b't') => Value::U64(basic(iter)?),
        Some(b's') => Value::Str(basic::<&str>(iter)?.to_owned()),
        Some(b'o') => Value::Path(basic::<dbus::Path<'_>>(iter)?.to_string()),
        Some(b'h') => Value::Descriptor(descriptor(iter)?),
        // No member but `Set` takes a variant, and that one knows the type it wants; only tests read what we sent.
        #[cfg(test)]
        Some(b'v') => {
            let mut inner = iter.recurse(ArgType::Variant).ok_or(BadArguments::Row)?;
            let found: &'static str = inner.signature().to_string().leak();
            Value::variant(value(&mut inner, found, values_left)?)
        }
        Some(b'a') => {
            let element = &signature[1..];
            let mut inner = iter.recurse(ArgType::Array).ok_or(BadArguments::Row)?;
            if element.starts_with('{') {
                let mut types = Types(&element[1..element.len() - 1]);
                let (Some(key), Some(of)) = (types.next(), types.next()) else { return Err(BadArguments::Row) };
                let mut entries = Vec::new();
                while let Some(mut entry) = inner.recurse(ArgType::DictEntry) {
                    let k = value(&mut entry, key, values_left)?;
                    entry.next();
                    entries.push((k, value(&mut entry, of, values_left)?));
                    inner.next();
                }
                Value::Dict(element, entries)
            } else {
                let mut values = Vec::new();
                while inner.arg_type() != ArgType::Invalid {
                    values.push(value(&mut inner, element, values_left)?);
                    inner.next();
                }
                Value::Array(element, values)
            }
        }
        Some(b'(') => {
            let mut inner = iter.recurse(ArgType::Struct).ok_or(BadArguments::Row)?;
            let mut fields = Vec::new();
            for field in Types(&signature[1..signature.len() - 1]) {
                fields.push(value(&mut inner, field, values_left)?);
                inner.next();
            }
            Value::Struct(fields)
        }
        _ => return Err(BadArguments::Row),
    })
}

/// The descriptor at the iterator, a copy of our own. The number in the message may name none: then libdbus gives -1,
/// which must not become a `File`.
fn descriptor(iter: &mut Iter<'_>) -> Result<Option<Descriptor>, BadArguments> {
    let look = iter.get::<dbus::arg::OwnedFd>().ok_or(BadArguments::Row)?;
    if look.as_raw_fd() < 0 {
        return Ok(None);
    }
    let file = iter.get::<File>().ok_or(BadArguments::Row)?;
    Ok(Some(Descriptor(Arc::new(file.into()))))
}
