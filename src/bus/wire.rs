//! Values on the wire: the daemon's own type for them, and the marshaller that turns them into
//! bytes.
//!
//! Little-endian, by the rules of the D-Bus specification ("Message Format"). Bodies are made here
//! and become messages in [`message`](super::message), so that the expensive part (an object's
//! entry in GetManagedObjects) can be kept as bytes. This is possible since padding in D-Bus
//! depends only on the position modulo 8: bytes marshalled at a multiple of 8 fit at any other.
//! This module knows nothing of objects, interfaces or the connection.

use std::{os::fd::OwnedFd, sync::Arc};

/// A value of a D-Bus type. Containers that may be empty carry the signature of their elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Bool(bool),
    /// `q`
    U16(u16),
    /// `u`
    U32(u32),
    /// `t`
    U64(u64),
    /// `s`
    Str(String),
    /// `o`. Always a valid path, since the tree assigns the paths that the daemon sends.
    Path(String),
    /// `h`. Only ever received. `None` if the message contains no descriptor of that number.
    Descriptor(Option<Descriptor>),
    /// `a…`: signature of the elements, elements.
    Array(&'static str, Vec<Value>),
    /// `a{…}`: signature of an entry with its braces, entries.
    Dict(&'static str, Vec<(Value, Value)>),
    /// `a…`, whose elements are marshalled already: signature of an element, and the elements as
    /// they stand at a multiple of 8. Only ever sent.
    Elements(&'static str, Arc<[u8]>),
    /// `(…)`
    Struct(Vec<Value>),
    /// `v`
    Variant(Box<Value>),
}

/// A descriptor that came with a message. Dropping the last copy closes it.
#[derive(Debug, Clone)]
pub struct Descriptor(pub Arc<OwnedFd>);

impl PartialEq for Descriptor {
    fn eq(&self, other: &Descriptor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Value {
    /// A text.
    pub fn str(text: impl Into<String>) -> Value {
        Value::Str(text.into())
    }

    /// An optional text in the interfaces' form: `(bs)`, with an empty filler.
    pub fn optional_str(text: Option<String>) -> Value {
        Value::Struct(vec![Value::Bool(text.is_some()), Value::Str(text.unwrap_or_default())])
    }

    /// A value in a variant.
    pub fn variant(value: Value) -> Value {
        Value::Variant(Box::new(value))
    }

    /// Calls `leaf` for every value in this one that contains no others.
    pub fn leaves(&self, leaf: &mut dyn FnMut(&Value)) {
        match self {
            Value::Array(_, items) | Value::Struct(items) => items.iter().for_each(|item| item.leaves(leaf)),
            Value::Dict(_, entries) => entries.iter().for_each(|(key, value)| {
                key.leaves(leaf);
                value.leaves(leaf);
            }),
            Value::Variant(inner) => inner.leaves(leaf),
            _ => leaf(self),
        }
    }

    /// The type.
    pub fn signature(&self) -> String {
        let mut text = String::new();
        self.push_signature(&mut text);
        text
    }

    fn push_signature(&self, text: &mut String) {
        match self {
            Value::Byte(_) => text.push('y'),
            Value::Bool(_) => text.push('b'),
            Value::U16(_) => text.push('q'),
            Value::U32(_) => text.push('u'),
            Value::U64(_) => text.push('t'),
            Value::Str(_) => text.push('s'),
            Value::Path(_) => text.push('o'),
            Value::Descriptor(_) => text.push('h'),
            Value::Array(element, _) | Value::Dict(element, _) | Value::Elements(element, _) => {
                text.push('a');
                text.push_str(element);
            }
            Value::Struct(fields) => {
                text.push('(');
                fields.iter().for_each(|field| field.push_signature(text));
                text.push(')');
            }
            Value::Variant(_) => text.push('v'),
        }
    }

    /// The filler of a type where there is no value: false, zero, empty text, the path `/`, an
    /// empty array. `signature` is one complete type.
    pub fn filler(signature: &'static str) -> Value {
        match signature.as_bytes().first() {
            Some(b'y') => Value::Byte(0),
            Some(b'b') => Value::Bool(false),
            Some(b'q') => Value::U16(0),
            Some(b'u') => Value::U32(0),
            Some(b't') => Value::U64(0),
            Some(b'o') => Value::Path("/".into()),
            Some(b'h') => Value::Descriptor(None),
            Some(b'a') if signature[1..].starts_with('{') => Value::Dict(&signature[1..], Vec::new()),
            Some(b'a') => Value::Array(&signature[1..], Vec::new()),
            Some(b'(') => Value::Struct(Types(&signature[1..signature.len() - 1]).map(Value::filler).collect()),
            Some(b'v') => Value::variant(Value::str("")),
            _ => Value::str(""),
        }
    }
}

/// The complete types of a signature, in order. Only for signatures that are constants of this
/// program: the iterator assumes that brackets match.
#[derive(Debug, Clone, Copy)]
pub struct Types(pub &'static str);

impl Iterator for Types {
    type Item = &'static str;

    fn next(&mut self) -> Option<&'static str> {
        let mut depth = 0;
        let length = self.0.bytes().position(|c| {
            match c {
                b'(' | b'{' => depth += 1,
                b')' | b'}' => depth -= 1,
                _ => {}
            }
            depth == 0 && c != b'a'
        })? + 1;
        let (first, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(first)
    }
}

/// Values of a type begin at multiples of this.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'q' | b'n') => 2,
        Some(b't' | b'x' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// Elements of fewer bytes are copied rather than shared.
const SHARED_BYTES_MIN: usize = 4096;

/// Bytes under construction. Position 0 must be a multiple of 8 in the message.
#[derive(Debug, Default)]
pub struct Marshaller {
    bytes: Vec<u8>,
    shared: Vec<SharedBytes>,
    /// How many bytes all shared ones have.
    shared_length: usize,
}

/// Bytes that a message contains without a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedBytes {
    /// How many unshared bytes of the message come before them.
    pub at: usize,
    /// The bytes.
    pub bytes: Arc<[u8]>,
}

impl Marshaller {
    /// Appends to existing bytes.
    pub fn after(bytes: Vec<u8>) -> Marshaller {
        Marshaller { bytes, ..Marshaller::default() }
    }

    /// The finished bytes, with a copy of those that are shared.
    pub fn finish(self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.position());
        let mut from = 0;
        for SharedBytes { at, bytes } in &self.shared {
            whole.extend_from_slice(&self.bytes[from..*at]);
            whole.extend_from_slice(bytes);
            from = *at;
        }
        if whole.is_empty() {
            return self.bytes;
        }
        whole.extend_from_slice(&self.bytes[from..]);
        whole
    }

    /// The finished bytes as the arguments of a message. Copies nothing.
    pub fn finish_body(self, signature: impl Into<String>) -> Body {
        Body { signature: signature.into(), bytes: self.bytes, shared: self.shared }
    }

    /// Number of bytes so far.
    pub fn position(&self) -> usize {
        self.bytes.len() + self.shared_length
    }

    /// Appends zeros up to the next multiple of `to`.
    pub fn align(&mut self, to: usize) {
        let padding = self.position().next_multiple_of(to) - self.position();
        self.bytes.resize(self.bytes.len() + padding, 0);
    }

    /// `y`
    pub fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// `q`
    pub fn u16(&mut self, value: u16) {
        self.align(2);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `u`
    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `t`
    pub fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `s` and `o`. D-Bus texts cannot contain NUL: a text is cut before the first one.
    pub fn str(&mut self, text: &str) {
        let text = text.split('\0').next().unwrap_or_default();
        self.u32(text.len() as u32);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    /// Writes the variant in which a property is sent. A property that is a variant itself is not
    /// wrapped again: the existing daemon does not wrap it, and clients unwrap only once.
    pub fn property(&mut self, value: &Value) {
        if !matches!(value, Value::Variant(_)) {
            self.signature(&value.signature());
        }
        self.value(value);
    }

    /// `g`
    pub fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    /// Appends bytes that were marshalled at a multiple of 8, at the next such multiple.
    pub fn marshalled(&mut self, bytes: &[u8]) {
        self.align(8);
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends bytes that other messages share, at the next multiple of 8. Copies them only if they
    /// are few.
    fn shared(&mut self, bytes: &Arc<[u8]>) {
        if bytes.len() < SHARED_BYTES_MIN {
            return self.marshalled(bytes);
        }
        self.align(8);
        self.shared.push(SharedBytes { at: self.bytes.len(), bytes: Arc::clone(bytes) });
        self.shared_length += bytes.len();
    }

    /// `a…`: the length, padding that the length does not include, and the elements that `fill`
    /// writes. `element` is the elements' signature.
    pub fn array<R>(&mut self, element: &str, fill: impl FnOnce(&mut Marshaller) -> R) -> R {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment(element));
        let start = self.position();
        let result = fill(self);
        let length = (self.position() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        result
    }

    /// Any value.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(v) => self.byte(*v),
            Value::Bool(v) => self.u32(u32::from(*v)),
            Value::U16(v) => self.u16(*v),
            Value::U32(v) => self.u32(*v),
            Value::U64(v) => self.u64(*v),
            Value::Str(v) | Value::Path(v) => self.str(v),
            // No member returns a descriptor (a test walks the table). This index names none.
            Value::Descriptor(_) => self.u32(u32::MAX),
            Value::Array(element, values) => self.array(element, |m| values.iter().for_each(|v| m.value(v))),
            Value::Dict(entry, entries) => self.array(entry, |m| {
                for (key, value) in entries {
                    m.align(8);
                    m.value(key);
                    m.value(value);
                }
            }),
            Value::Elements(element, bytes) => self.array(element, |m| m.shared(bytes)),
            Value::Struct(fields) => {
                self.align(8);
                fields.iter().for_each(|v| self.value(v));
            }
            Value::Variant(inner) => {
                self.signature(&inner.signature());
                self.value(inner);
            }
        }
    }
}

/// The arguments of a reply or signal, ready to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body {
    /// Signature of all arguments together.
    pub signature: String,
    /// The marshalled arguments, without the bytes that are shared.
    pub bytes: Vec<u8>,
    /// Shared bytes that come between those, in order.
    pub shared: Vec<SharedBytes>,
}

impl Body {
    /// How many bytes the arguments have.
    pub fn length(&self) -> usize {
        self.bytes.len() + self.shared.iter().map(|shared| shared.bytes.len()).sum::<usize>()
    }

    /// No arguments.
    pub fn empty() -> Body {
        Body::default()
    }

    /// These arguments.
    pub fn of(values: &[Value]) -> Body {
        let mut marshaller = Marshaller::default();
        let mut signature = String::new();
        for value in values {
            value.push_signature(&mut signature);
            marshaller.value(value);
        }
        marshaller.finish_body(signature)
    }
}

/// Converts a value into the Rust type that a handler takes. The value's type has been compared
/// with the row's signature before. So `None` means that row and handler disagree, which a test
/// over all rows rules out.
pub trait FromValue: Sized {
    /// The value, if it is of this type.
    fn from_value(value: Value) -> Option<Self>;
}

macro_rules! from_value {
    ($type:ty, $variant:ident) => {
        impl FromValue for $type {
            fn from_value(value: Value) -> Option<$type> {
                match value {
                    Value::$variant(v) => Some(v),
                    _ => None,
                }
            }
        }
    };
}

from_value!(u8, Byte);
from_value!(bool, Bool);
from_value!(u16, U16);
from_value!(u32, U32);
from_value!(u64, U64);
from_value!(String, Str);

/// An object path as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathArgument(pub String);

impl FromValue for PathArgument {
    fn from_value(value: Value) -> Option<PathArgument> {
        match value {
            Value::Path(path) => Some(PathArgument(path)),
            _ => None,
        }
    }
}

/// A descriptor as an argument. `None` if the message contains no descriptor of that number.
#[derive(Debug)]
pub struct DescriptorArgument(pub Option<Descriptor>);

impl FromValue for DescriptorArgument {
    fn from_value(value: Value) -> Option<DescriptorArgument> {
        match value {
            Value::Descriptor(descriptor) => Some(DescriptorArgument(descriptor)),
            _ => None,
        }
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: Value) -> Option<Vec<T>> {
        match value {
            Value::Array(_, values) => values.into_iter().map(T::from_value).collect(),
            _ => None,
        }
    }
}

/// `(bT)`: the interfaces' form of an optional value.
impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Option<Option<T>> {
        let (is_there, value) = <(bool, T)>::from_value(value)?;
        Some(is_there.then_some(value))
    }
}

macro_rules! from_struct {
    ($($name:ident)+) => {
        impl<$($name: FromValue),+> FromValue for ($($name,)+) {
            fn from_value(value: Value) -> Option<Self> {
                let Value::Struct(fields) = value else { return None };
                let mut fields = fields.into_iter();
                let result = ($($name::from_value(fields.next()?)?,)+);
                fields.next().is_none().then_some(result)
            }
        }
    };
}

from_struct!(A);
from_struct!(A B);
from_struct!(A B C);
from_struct!(A B C D);
from_struct!(A B C D E);
from_struct!(A B C D E F);
from_struct!(A B C D E F G);
