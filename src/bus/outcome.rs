//! What a call came to, and how that is told to the caller: return code and text, or a D-Bus error. The one place that
//! does so.
//!
//! Engine errors never become D-Bus errors of *methods*; setting a property knows nothing else. Texts are for people:
//! no client reads them (`docs/spec/dbus/dbus-api.md` §6).

use std::error::Error;

use crate::{
    base::error_chain,
    bus::{
        job::{Failure, Late},
        properties::NO_UUID,
        table::{Filler, Interface, Member, Row},
        tree::Tree,
        wire::{Body, Value},
    },
};

/// Return code and text of a method that did what was asked, or found it done.
const OK: (u16, &str) = (0, "Ok");
/// Return code of a method that did not.
const REFUSED: u16 = 1;

/// What an operation came to.
pub enum Outcome {
    /// It was done; this is the result, without code and text. Built when the change is published, since it may name
    /// objects that get their paths then.
    Done(Late<Value>),
    /// What was asked for is so already; nothing was changed.
    NoChange,
    /// It was refused or failed, and nothing was changed. The text says why.
    Refused(String),
}

impl Outcome {
    /// It was done, with a result that is known now.
    pub fn done(result: Value) -> Outcome {
        Outcome::Done(Box::new(|_| result))
    }

    /// It was refused or failed.
    pub fn refused(error: &dyn Error) -> Outcome {
        Outcome::Refused(error_chain::sentence(error))
    }

    /// From an engine operation: `tell` makes of its result what is told, `None` if nothing was changed.
    pub fn of<T: Send + 'static, E: Error>(
        result: Result<T, E>,
        tell: impl FnOnce(T) -> Option<Late<Value>>,
    ) -> Outcome {
        match result {
            Ok(value) => tell(value).map_or(Outcome::NoChange, Outcome::Done),
            Err(error) => Outcome::refused(&error),
        }
    }
}

/// Longest text for people in an answer, in bytes.
const TEXT_BYTES_MAX: usize = 2048;

/// A text for people that quotes what the caller gave us, which can be megabytes: beginning and end of it are kept,
/// which say what is wrong and what to do.
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

/// The content of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These values.
    Return(Body),
    /// A D-Bus error: its name and a text for people.
    Error(&'static str, String),
}

/// The names of the D-Bus errors that we send, those of the D-Bus specification.
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

/// What was called: decides the form of the answer.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The method, or the property that is to be set.
    pub row: &'static Row,
    /// Through which interface.
    pub interface: Interface,
}

impl Asked {
    /// For the log, as `pool.r9.SetName`.
    pub fn label(&self) -> String {
        let set = if self.row.is_property() { "Set " } else { "" };
        format!("{set}{}.{}", self.interface.short(), self.row.name)
    }

    /// The answer.
    pub fn answer(&self, outcome: Outcome, tree: &Tree) -> Answer {
        match self.row.member {
            Member::Method { result, filler, .. } => {
                let fill = || result.map(|(_, signature)| filled(filler, signature));
                let (value, code, text) = match outcome {
                    Outcome::Done(build) => {
                        let value = build(tree);
                        (result.map(|_| value), OK.0, OK.1.to_owned())
                    }
                    Outcome::NoChange => (fill(), OK.0, OK.1.to_owned()),
                    Outcome::Refused(text) => (fill(), REFUSED, readable(text)),
                };
                let values: Vec<Value> = value.into_iter().chain([Value::U16(code), Value::Str(text)]).collect();
                Answer::Return(Body::of(&values))
            }
            Member::Property { .. } => match outcome {
                Outcome::Done(_) | Outcome::NoChange => Answer::Return(Body::empty()),
                // Every stratis-cli from 3.7 on but 3.9.0 explains a refusal under this name, and none of those under another
                // (`dbus-api.md` §6.3).
                Outcome::Refused(text) => Answer::Error(error_name::FAILED, text),
            },
        }
    }

    /// The outcome of a request that did not come to its end.
    pub fn failure(&self, failure: Failure) -> Outcome {
        Outcome::Refused(match failure {
            Failure::Panicked => format!(
                "{} met with a fault of the daemon and was given up; please report it with what the log says",
                self.label()
            ),
            Failure::Stopping => {
                "the daemon is stopping and takes no more requests; try again when it is up".to_owned()
            }
            Failure::Unfinished => format!(
                "the daemon is stopping and could not wait for the end of {}; look what has become of it when it is up",
                self.label()
            ),
        })
    }
}

fn filled(filler: Filler, signature: &'static str) -> Value {
    match (filler, Value::filler(signature)) {
        (Filler::Zeros, Value::Struct(fields)) => {
            let zeros = |field| if field == Value::str("") { Value::str(NO_UUID) } else { field };
            Value::Struct(fields.into_iter().map(zeros).collect())
        }
        (_, value) => value,
    }
}
