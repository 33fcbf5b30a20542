//! Reports of the bus on the messages that it holds (`org.freedesktop.DBus.Debug.Stats`, which root
//! may call on a system bus), in the two dialects of the buses in use.
//!
//! Pure: sends nothing. An answer in neither dialect is [`Holding::Silence`].

use std::collections::HashMap;

use dbus::{
    Message, MessageType,
    arg::{ArgType, PropMap, Variant, prop_cast},
};

use crate::bus::wire::{Body, Value};

/// The messages that the bus is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuotaSubject {
    /// Those that the daemon has sent, to any receiver.
    Ours,
    /// Those to this connection.
    Caller(String),
}

/// A question to the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The messages that the question is about.
    pub side: QuotaSubject,
    /// The dialect of the question.
    pub dialect: Dialect,
}

/// What the bus holds according to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Bytes of messages from and to the connection.
    Holds {
        /// Sent by the connection and not yet taken by the receivers.
        of_theirs: u64,
        /// Not yet taken by the connection.
        for_them: u64,
    },
    /// The connection has ended.
    Gone,
    /// The bus could not answer this time.
    Failed,
    /// The bus does not give such figures.
    Silence,
}

/// How to ask a bus.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// dbus-daemon: one connection at a time. `IncomingBytes` are messages that the connection has
    /// sent, `OutgoingBytes` messages to it. Tried first.
    #[default]
    Connection,
    /// dbus-broker: all connections at once, in a separate entry. `OutgoingBytes` of a peer wait
    /// for the peer to read. The bus does not report who sent them.
    Peers,
}

/// dbus-broker's entry: `a(sa{sv}a{su})`, the name, credentials and figures of each connection.
const PEERS: &str = "org.bus1.DBus.Debug.Stats.PeerAccounting";
/// Name, credentials, figures.
type Peer<'a> = (&'a str, PropMap, HashMap<&'a str, u32>);

impl Dialect {
    /// The dialect to try if the bus does not understand this one.
    pub fn next(self) -> Option<Dialect> {
        match self {
            Dialect::Connection => Some(Dialect::Peers),
            Dialect::Peers => None,
        }
    }

    /// The method and arguments of a question about a connection.
    pub fn question(self, name: &str) -> (&'static str, Body) {
        match self {
            Dialect::Connection => ("GetConnectionStats", Body::of(&[Value::str(name)])),
            Dialect::Peers => ("GetStats", Body::empty()),
        }
    }

    /// The content of a reply.
    pub fn answer(self, reply: &Message, side: &QuotaSubject) -> Holding {
        match reply.msg_type() {
            MessageType::MethodReturn => match self {
                Dialect::Connection => of_connection(reply),
                Dialect::Peers => of_peers(reply, side),
            }
            .unwrap_or(Holding::Silence),
            _ => match error_name(reply).as_deref() {
                Some("org.freedesktop.DBus.Error.NameHasNoOwner") => Holding::Gone,
                Some("org.freedesktop.DBus.Error.LimitsExceeded" | "org.freedesktop.DBus.Error.NoMemory") => {
                    Holding::Failed
                }
                _ => Holding::Silence,
            },
        }
    }
}

fn of_connection(reply: &Message) -> Option<Holding> {
    let map: PropMap = reply.get1()?;
    let bytes = |key: &str| prop_cast::<u32>(&map, key).map(|bytes| u64::from(*bytes));
    Some(Holding::Holds { of_theirs: bytes("IncomingBytes")?, for_them: bytes("OutgoingBytes")? })
}

fn of_peers(reply: &Message, side: &QuotaSubject) -> Option<Holding> {
    let mut entries = reply.iter_init().recurse(ArgType::Array)?;
    while let Some(mut entry) = entries.recurse(ArgType::DictEntry) {
        if entry.get::<&str>()? != PEERS {
            entries.next();
            continue;
        }
        entry.next();
        let Variant(peers) = entry.get::<Variant<Vec<Peer<'_>>>>()?;
        let mut held = peers.iter().map(|(name, _, figures)| (*name, figures.get("OutgoingBytes").copied()));
        return match side {
            QuotaSubject::Caller(caller) => match held.find(|(name, _)| name == caller) {
                Some((_, bytes)) => bytes.map(|bytes| Holding::Holds { of_theirs: 0, for_them: bytes.into() }),
                None => Some(Holding::Gone),
            },
            // The figure includes messages of other senders, which fill the same account.
            QuotaSubject::Ours => {
                let all: Option<u64> = held.map(|(_, bytes)| bytes.map(u64::from)).sum();
                all.map(|of_theirs| Holding::Holds { of_theirs, for_them: 0 })
            }
        };
    }
    None
}

/// The name of an error. The `dbus` crate gives the name only by turning the message into an error.
fn error_name(message: &Message) -> Option<String> {
    let error = message.duplicate().ok()?.as_result().err()?;
    Some(error.name()?.to_owned())
}
