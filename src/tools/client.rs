//! Calls the running daemon over the system bus. One time limit covers the whole call: connecting,
//! authentication, registration and the answer.
//!
//! This module must never depend on what the answer means.

use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use dbus::{
    Message,
    channel::{BusType, Channel},
};
use threads::group::Group;

use crate::bus::NAME;

/// The object that lists all others and returns reports.
const TOP: &str = "/org/storage/stratis3";
/// The name of the thread that makes a call.
const THREAD: &str = "bus-call";

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The bus or the daemon has answered with an error.
    #[error("{name}: {text}")]
    Answer {
        /// The name of the error.
        name: String,
        /// Its text.
        text: String,
    },
    /// The call cannot be made.
    #[error("{0}")]
    Call(String),
    /// No answer came in time.
    #[error("org.freedesktop.DBus.Error.NoReply: no answer came within {} s", .0.as_secs())]
    Late(Duration),
    /// The answer has the wrong type.
    #[error("the answer cannot be read: {0}")]
    Answered(String),
}

impl Unanswered {
    /// Whether the cause is that the daemon does not run.
    pub fn is_absent(&self) -> bool {
        let names = ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"];
        matches!(self, Unanswered::Answer { name, .. } if names.contains(&name.as_str()))
    }

    /// Whether the cause is that the bus does not allow this user to make the call.
    pub fn is_denied(&self) -> bool {
        matches!(self, Unanswered::Answer { name, .. } if name == "org.freedesktop.DBus.Error.AccessDenied")
    }
}

impl From<dbus::Error> for Unanswered {
    fn from(error: dbus::Error) -> Unanswered {
        Unanswered::Answer {
            name: error.name().unwrap_or("org.freedesktop.DBus.Error.Failed").to_owned(),
            text: error.message().unwrap_or("no text").to_owned(),
        }
    }
}

/// Calls a member of the daemon's top object that takes no argument, and reads its answer.
///
/// # Errors
/// If no answer comes within `limit`, or it is an error.
pub fn call<T: Send + 'static>(
    interface: &'static str,
    member: &'static str,
    limit: Duration,
    read: impl FnOnce(&Message) -> Result<T, String> + Send + 'static,
) -> Result<T, Unanswered> {
    let (answers, answered) = bounded(1);
    let work = move || {
        // The caller may no longer wait.
        let _ =
            answers.send(ask(interface, member, limit).and_then(|reply| read(&reply).map_err(Unanswered::Answered)));
    };
    // libdbus connects and authenticates without a time limit, so a separate thread makes the call.
    // The program ends soon, so the thread may be left behind.
    Group::new(&[THREAD]).spawn_transient(THREAD, work).map_err(|error| Unanswered::Call(error.to_string()))?;
    answered.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => Unanswered::Late(limit),
        RecvTimeoutError::Disconnected => Unanswered::Answered("the call failed unexpectedly".to_owned()),
    })?
}

fn ask(interface: &str, member: &str, limit: Duration) -> Result<Message, Unanswered> {
    let channel = Channel::get_private(BusType::System)?;
    let call = Message::new_method_call(NAME, TOP, interface, member).map_err(Unanswered::Call)?;
    Ok(channel.send_with_reply_and_block(call, limit)?)
}
