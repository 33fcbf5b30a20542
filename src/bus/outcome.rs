//! The result of a call. [`called_member`](super::called_member) decides in which form the caller
//! gets it.
//!
//! Engine errors never become D-Bus errors of *methods*. A failed set of a property does become a
//! D-Bus error, since it has no other way to fail. The texts are for people: no client parses them
//! (`docs/spec/dbus/dbus-api.md` §6).

use std::error::Error;

use crate::{
    base::error_chain,
    bus::{tree::Late, wire::Value},
};

/// The result of an operation.
pub enum Outcome {
    /// Done. The result is without code and text. It is built when the change is published, since
    /// it may name objects that get their paths at that moment.
    Done(Late<Value>),
    /// The requested state already exists; nothing was changed.
    NoChange,
    /// Refused or failed; nothing was changed. The text says why.
    Refused(String),
}

impl Outcome {
    /// Done, with a result that is already known.
    pub fn done(result: Value) -> Outcome {
        Outcome::Done(Box::new(|_| result))
    }

    /// Refused or failed.
    pub fn refused(error: &dyn Error) -> Outcome {
        Outcome::Refused(error_chain::sentence(error))
    }

    /// The outcome of an engine operation. `tell` makes the result of the reply from the result of
    /// the operation; it returns `None` if nothing was changed.
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
