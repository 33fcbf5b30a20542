//! What a call came to, and how that is told to the caller: return code and text, or a D-Bus error.
//! The one place that does so.
//!
//! Engine errors never become D-Bus errors of *methods*; setting a property knows nothing else.
//! Texts are for people: no client reads them (`docs/spec/dbus/dbus-api.md` §6).

use std::error::Error;

use crate::{
    base::error_chain,
    bus::{tree::Late, wire::Value},
};

/// What an operation came to.
pub enum Outcome {
    /// It was done; this is the result, without code and text. Built when the change is published,
    /// since it may name objects that get their paths then.
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

    /// From an engine operation: `tell` makes of its result what is told, `None` if nothing was
    /// changed.
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

/// Why a chain did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A step panicked.
    Panicked,
    /// The daemon stops and the job was not begun.
    Stopping,
    /// The daemon ends and could not wait for the job any longer.
    Unfinished,
}
