//! The content of a reply: values, or a D-Bus error with a text for people.

use crate::bus::wire::Body;

/// The content of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These values.
    Return(Body),
    /// A D-Bus error: its name and a text for people.
    Error(&'static str, String),
}

/// The names of the D-Bus errors that the daemon sends. The D-Bus specification defines them.
pub mod error_name {
    #![allow(missing_docs)]
    pub const FAILED: &str = "org.freedesktop.DBus.Error.Failed";
    pub const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
    pub const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
    pub const PROPERTY_READ_ONLY: &str = "org.freedesktop.DBus.Error.PropertyReadOnly";
    pub const UNKNOWN_INTERFACE: &str = "org.freedesktop.DBus.Error.UnknownInterface";
    pub const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";
    pub const UNKNOWN_OBJECT: &str = "org.freedesktop.DBus.Error.UnknownObject";
    pub const UNKNOWN_PROPERTY: &str = "org.freedesktop.DBus.Error.UnknownProperty";
}

/// Longest error text in an answer, in bytes.
const TEXT_BYTES_MAX: usize = 2048;

/// Shortens a text that quotes what the caller sent, which can be megabytes. The beginning and the
/// end stay: they say what is wrong and what to do.
pub fn readable(text: String) -> String {
    const ELLIPSIS: &str = " […] ";
    const TAIL: usize = TEXT_BYTES_MAX / 4;
    if text.len() <= TEXT_BYTES_MAX {
        return text;
    }
    let head = (0..=TEXT_BYTES_MAX - TAIL - ELLIPSIS.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let tail = (text.len() - TAIL..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("{}{ELLIPSIS}{}", &text[..head], &text[tail..])
}
