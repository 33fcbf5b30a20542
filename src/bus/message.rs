//! Messages of the `dbus` crate: made from bodies that the daemon marshals, decoded into the
//! daemon's own values.
//!
//! A message is a new header followed by a body that is already bytes. libdbus parses the message
//! before it is sent: an invalid message would make the bus end the connection. A list is not
//! parsed, since that takes longer than the rest of sending it; its entries have already been
//! parsed, as signals. An answer that shares bytes is not parsed either: these are texts and
//! constants of the daemon's own. Decoding trusts nothing: types must match the wanted signature,
//! and the memory that one message can make the daemon allocate is limited. This module does not
//! know what the values mean.

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
    answer::{Answer, error_name, readable},
    caller::Caller,
    names::MESSAGE_MAX_VARIABLE,
    object_entry::ObjectEntry,
    send_queue::MessagePart,
    wire::{Body, Descriptor, Marshaller, SharedBytes, Types, Value},
};

/// Longest array that the D-Bus specification allows. A message may be twice as long.
pub const ARRAY_BYTES_MAX: usize = 64 << 20;

/// The most values that the arguments of one call may contain, including nested ones. The largest
/// useful call names some thousands of devices or filesystems.
const VALUES_MAX: usize = 100_000;

/// The arguments of a message do not match the member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadArguments {
    #[error("argument {position} is missing; give one of type `{wanted}`")]
    Missing { position: usize, wanted: &'static str },
    #[error("argument {position} is of type `{found}`; give it as `{wanted}`, the signature that introspection shows")]
    Type { position: usize, found: String, wanted: &'static str },
    #[error("the arguments contain more than {VALUES_MAX} values; split the call")]
    TooMany,
    #[error("the value is of type `{found}`; put one of type `{wanted}`, which introspection shows, into the variant")]
    Variant { found: String, wanted: &'static str },
    #[error("argument {position} is of type `{found}`, not a variant; put the value into one")]
    NotAVariant { position: usize, found: String },
    #[error("the interface name is empty; give the full name of an interface")]
    NoInterface,
    #[error("cannot read the arguments because of a bug in the daemon; report it")]
    Row,
}

/// The message cannot be sent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NotAMessage {
    #[error("libdbus refused to send a message ({what}): {text}")]
    Refused { what: String, text: String },
    #[error(
        "cannot send {what}: it has {bytes} bytes, and the bus accepts at most {limit}; raise `max_message_size` of \
         the bus and set {MESSAGE_MAX_VARIABLE}"
    )]
    TooLong { what: String, bytes: usize, limit: usize },
}

/// Type and destination of a message.
#[derive(Debug, Clone, Copy)]
pub enum Envelope<'a> {
    /// The answer to a call.
    Return(&'a Caller),
    /// A D-Bus error as the answer to a call.
    Error(&'a Caller, &'a str),
    /// A signal to all listeners.
    Signal {
        /// Path of the object that sends it.
        path: &'a str,
        /// Interface of the signal.
        interface: &'a str,
        /// Name of the signal.
        member: &'a str,
    },
    /// A call to the bus itself.
    ToBus {
        /// Serial number, which the answer names. From [`next_serial`].
        serial: u32,
        /// Interface of the method.
        interface: &'a str,
        /// The method.
        member: &'a str,
    },
}

/// The bus itself: its name and the name of its first interface.
pub const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// A serial number for an outgoing message. The daemon counts on its own, apart from libdbus's
/// small numbers.
pub fn next_serial() -> u32 {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    SERIAL.fetch_add(1, Ordering::Relaxed) | 1 << 31
}

/// The header of a message whose body has `body_bytes` bytes. It ends at a multiple of 8, where the
/// body begins, and has room for `room` bytes of the body.
fn header(envelope: Envelope<'_>, signature: &str, body_bytes: usize, room: usize) -> Marshaller {
    const NO_REPLY_EXPECTED: u8 = 1;

    let (kind, flags, serial) = match envelope {
        Envelope::ToBus { serial, .. } => (1, 0, serial),
        Envelope::Return(_) => (2, NO_REPLY_EXPECTED, next_serial()),
        Envelope::Error(..) => (3, NO_REPLY_EXPECTED, next_serial()),
        Envelope::Signal { .. } => (4, NO_REPLY_EXPECTED, next_serial()),
    };
    let mut m = Marshaller::after(Vec::with_capacity(256 + room));
    for byte in [b'l', kind, flags, 1] {
        m.byte(byte);
    }
    m.u32(body_bytes as u32);
    m.u32(serial);
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
            Envelope::ToBus { interface, member, .. } => {
                field(1, "o", &|m| m.str(BUS_PATH));
                field(2, "s", &|m| m.str(interface));
                field(3, "s", &|m| m.str(member));
                field(6, "s", &|m| m.str(BUS));
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

/// A message that is ready to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Its bytes.
    pub parts: Vec<MessagePart>,
    /// The caller that gets the message as its answer. `None` for signals, which all listeners get.
    pub to: Option<Caller>,
}

impl Outgoing {
    /// The message if it has at most `limit` bytes. A longer answer is replaced by an error that
    /// reports this.
    ///
    /// # Errors
    /// [`NotAMessage::TooLong`] if no caller waits for the message, or if not even the error fits.
    pub fn within(self, limit: usize) -> Result<Outgoing, NotAMessage> {
        let bytes = self.bytes();
        if bytes <= limit {
            return Ok(self);
        }
        let error = match &self.to {
            Some(caller) => answer(caller, &Answer::Error(error_name::LIMITS_EXCEEDED, too_long(bytes, limit)))?,
            None => return Err(NotAMessage::TooLong { what: self.name(), bytes, limit }),
        };
        match error.bytes() {
            fits if fits <= limit => Ok(error),
            bytes => Err(NotAMessage::TooLong { what: error.name(), bytes, limit }),
        }
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes().len()).sum()
    }

    /// Type and name of the message, for the log. Decoded from its own bytes, since it is almost
    /// never needed.
    fn name(&self) -> String {
        if let Some(caller) = &self.to {
            return format!("an answer to {}", caller.name);
        }
        let message = self.parts.first().and_then(|part| Message::demarshal(part.bytes()).ok());
        let member = message.as_ref().and_then(Message::member);
        let path = message.as_ref().and_then(Message::path);
        match member.zip(path) {
            Some((member, path)) => format!("the message {member} of {path}"),
            None => "a message".to_owned(),
        }
    }
}

/// The error text for a caller whose answer is longer than the bus allows. The call may have
/// changed something.
fn too_long(bytes: usize, limit: usize) -> String {
    format!(
        "the call succeeded, but its answer has {bytes} bytes, and the bus accepts at most {limit}; ask for less, or \
         raise `max_message_size` of the bus and set {MESSAGE_MAX_VARIABLE}"
    )
}

/// Makes a message of a marshalled body.
///
/// # Errors
/// When libdbus does not accept the message: either the daemon has a fault, or the message is too
/// long.
pub fn message(envelope: Envelope<'_>, signature: &str, body: &[u8]) -> Result<Outgoing, NotAMessage> {
    let mut m = header(envelope, signature, body.len(), body.len());
    m.marshalled(body);
    let bytes = m.finish();
    Message::demarshal(&bytes).map_err(|error| NotAMessage::Refused {
        what: match envelope {
            Envelope::Return(caller) => format!("a reply to {}", caller.name),
            Envelope::Error(caller, name) => format!("the error {name} to {}", caller.name),
            Envelope::Signal { path, interface, member } => format!("the signal {interface}.{member} of {path}"),
            Envelope::ToBus { interface, member, .. } => format!("the call {interface}.{member}"),
        },
        text: error.message().unwrap_or("not enough memory").to_owned(),
    })?;
    let to = match envelope {
        Envelope::Return(caller) | Envelope::Error(caller, _) => Some(caller.clone()),
        Envelope::Signal { .. } | Envelope::ToBus { .. } => None,
    };
    Ok(Outgoing { parts: vec![MessagePart::Bytes(bytes)], to })
}

/// Signature of a list of objects.
const LIST_SIGNATURE: &str = "a{oa{sa{sv}}}";
/// Offset of the first entry in the body of a list. The length precedes it.
const LIST_START: usize = 8;

/// Bytes of the body of a list.
pub fn list_bytes<'a>(entries: impl Iterator<Item = &'a Arc<ObjectEntry>>) -> usize {
    entries.fold(LIST_START, |bytes, entry| bytes.next_multiple_of(8) + entry.added().len())
}

/// Makes the list of objects, which must not be longer than [`ARRAY_BYTES_MAX`].
pub fn list(caller: &Caller, entries: Vec<Arc<ObjectEntry>>) -> Outgoing {
    let body_bytes = list_bytes(entries.iter());
    let mut m = header(Envelope::Return(caller), LIST_SIGNATURE, body_bytes, LIST_START);
    m.u32((body_bytes - LIST_START) as u32);
    m.align(8);
    let last = entries.len().saturating_sub(1);
    let part = |(number, entry)| if number == last { MessagePart::LastEntry(entry) } else { MessagePart::Entry(entry) };
    let parts = entries.into_iter().enumerate().map(part);
    let parts = std::iter::once(MessagePart::Bytes(m.finish())).chain(parts).collect();
    Outgoing { parts, to: Some(caller.clone()) }
}

/// Makes an answer that shares bytes with others. Like a list, it is not parsed.
fn sharing(caller: &Caller, body: &Body) -> Result<Outgoing, NotAMessage> {
    let body_bytes = body.length();
    if body_bytes > ARRAY_BYTES_MAX {
        return answer(caller, &Answer::Error(error_name::LIMITS_EXCEEDED, too_long(body_bytes, ARRAY_BYTES_MAX)));
    }
    let mut parts = Vec::with_capacity(2 * body.shared.len() + 2);
    parts.push(MessagePart::Bytes(header(Envelope::Return(caller), &body.signature, body_bytes, 0).finish()));
    let mut from = 0;
    for SharedBytes { at, bytes } in &body.shared {
        parts.push(MessagePart::Bytes(body.bytes[from..*at].to_vec()));
        parts.push(MessagePart::Shared(Arc::clone(bytes)));
        from = *at;
    }
    parts.push(MessagePart::Bytes(body.bytes[from..].to_vec()));
    Ok(Outgoing { parts, to: Some(caller.clone()) })
}

/// Makes the message of an answer.
///
/// # Errors
/// As [`message`].
pub fn answer(caller: &Caller, answer: &Answer) -> Result<Outgoing, NotAMessage> {
    match answer {
        Answer::Return(body) if body.shared.is_empty() => {
            message(Envelope::Return(caller), &body.signature, &body.bytes)
        }
        Answer::Return(body) => sharing(caller, body),
        Answer::Error(name, text) => {
            let body = Body::of(&[Value::Str(readable(text.clone()))]);
            message(Envelope::Error(caller, name), &body.signature, &body.bytes)
        }
    }
}

/// Decodes the arguments of a message, which must begin with the wanted types. Surplus arguments
/// are ignored, as clients of the existing daemon may rely on that.
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

/// Decodes the third argument of a `Properties.Set` call: a variant that must contain a value of
/// type `wanted`.
///
/// # Errors
/// When the variant contains another type, when the argument is not a variant, or when it is
/// missing.
pub fn set_argument(message: &Message, wanted: &'static str) -> Result<Value, BadArguments> {
    let mut iter = message.iter_init();
    iter.next();
    iter.next();
    const POSITION: usize = 3;
    let Some(mut inner) = iter.recurse(ArgType::Variant) else {
        return Err(match iter.arg_type() {
            ArgType::Invalid => BadArguments::Missing { position: POSITION, wanted: "v" },
            _ => BadArguments::NotAVariant { position: POSITION, found: iter.signature().to_string() },
        });
    };
    let found = inner.signature();
    if &*found != wanted {
        return Err(BadArguments::Variant { found: found.to_string(), wanted });
    }
    value(&mut inner, wanted, &mut { VALUES_MAX })
}

/// The value at the iterator. The caller has compared its type with `signature`. A value that does
/// not match anyway is a [`BadArguments::Row`].
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
        // Only `Set` takes a variant, and it knows the type that it wants. Only tests decode the
        // daemon's own messages.
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

/// A copy of the descriptor at the iterator. If the message contains no descriptor of that number,
/// libdbus gives -1, which must not become a `File`.
fn descriptor(iter: &mut Iter<'_>) -> Result<Option<Descriptor>, BadArguments> {
    let look = iter.get::<dbus::arg::OwnedFd>().ok_or(BadArguments::Row)?;
    if look.as_raw_fd() < 0 {
        return Ok(None);
    }
    let file = iter.get::<File>().ok_or(BadArguments::Row)?;
    Ok(Some(Descriptor(Arc::new(file.into()))))
}
