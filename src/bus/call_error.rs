//! Calls that the bus answers with a D-Bus error without asking the engine.

use super::{
    answer::{Answer, error_name},
    message::BadArguments,
};

/// Why a call is answered with a D-Bus error.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CallError {
    #[error("there is no object {0}; list the managed objects to find those that exist")]
    UnknownObject(String),
    #[error(
        "object {path} has no interface {interface}; introspect the object to see its interfaces and their revisions"
    )]
    UnknownInterface { path: String, interface: String },
    #[error("the call names no interface; name the one that has {0}")]
    NoInterface(String),
    #[error(
        "interface {interface} has no method {method}; introspect the object to see which interface, or revision of it, has it"
    )]
    UnknownMethod { interface: String, method: String },
    #[error(
        "interface {interface} has no property {property}; introspect the object to see which interface, or revision of it, has it"
    )]
    UnknownProperty { interface: String, property: String },
    #[error("property {0} cannot be set; introspect the object to see which properties can be set")]
    ReadOnly(String),
    #[error("cannot compute property {0} because of a bug in the daemon; report it with the log")]
    NoValue(String),
    #[error("the call failed because of a bug in the daemon; report it with the log")]
    Panicked,
    #[error("{0}")]
    MachineId(String),
    #[error(transparent)]
    Arguments(#[from] BadArguments),
}

impl CallError {
    fn name(&self) -> &'static str {
        match self {
            CallError::UnknownObject(_) => error_name::UNKNOWN_OBJECT,
            CallError::UnknownInterface { .. } | CallError::NoInterface(_) => error_name::UNKNOWN_INTERFACE,
            CallError::UnknownMethod { .. } => error_name::UNKNOWN_METHOD,
            CallError::UnknownProperty { .. } => error_name::UNKNOWN_PROPERTY,
            CallError::ReadOnly(_) => error_name::PROPERTY_READ_ONLY,
            CallError::Arguments(_) => error_name::INVALID_ARGS,
            CallError::NoValue(_) | CallError::Panicked | CallError::MachineId(_) => error_name::FAILED,
        }
    }
}

impl From<CallError> for Answer {
    fn from(error: CallError) -> Answer {
        Answer::Error(error.name(), error.to_string())
    }
}
