//! The connection alone, with a real bus daemon: the behaviour that the tree writer and the
//! daemon's end rely on.

use std::{sync::Arc, time::Instant};

use crossbeam_channel::bounded;
use nix::sys::signal::Signal;
use threads::{pulse::Pulse, stop::Stop};

use super::private_bus::{Client, LIMIT, private_bus};
use crate::{
    bus::{
        Error, Lister, NAME, Reader,
        connection::Connection,
        job::{Job, Reply},
        message::{self, Envelope},
        published::Published,
        wire::{Body, Value},
    },
    service::{Locks, Submit},
};

/// The signals of a large change are sent in portions, each when the mark after the last portion
/// has passed. A mark that passed too early would put all portions in front of messages to other
/// clients.
#[test]
fn a_mark_passes_when_the_bus_answers() {
    let bus = private_bus();
    let connection = Connection::at(&bus.address).unwrap();
    connection.mark();
    connection.passed().try_recv().expect("nobody reads the answer yet, so the mark passes at once");

    connection.begin();
    connection.mark();
    assert!(connection.passed().try_recv().is_err(), "the answer has not been read");
    let deadline = Instant::now() + LIMIT;
    while connection.passed().is_empty() {
        assert!(Instant::now() < deadline, "the bus does not answer");
        connection.exchange(Some(deadline), None).unwrap();
        std::iter::from_fn(|| connection.next_message()).for_each(|message| connection.take_answer(&message));
    }
    connection.passed().recv().unwrap();

    connection.mark();
    connection.end();
    connection.passed().try_recv().expect("nobody reads any more");
}

#[test]
fn a_flush_sends_what_the_bus_takes() {
    const SIGNALS: usize = 8;
    let bus = private_bus();
    let connection = Connection::at(&bus.address).unwrap();
    let client = Client::new(&bus).listens_to("interface='a.b'");
    bus.signal(Signal::SIGSTOP);
    // The body is far larger than what a socket holds.
    let body = Body::of(&[Value::str("x".repeat(1 << 20))]);
    for _ in 0..SIGNALS {
        let envelope = Envelope::Signal { path: "/", interface: "a.b", member: "C" };
        connection.send(message::message(envelope, &body.signature, &body.bytes));
    }
    bus.signal(Signal::SIGCONT);
    connection.flush(LIMIT, LIMIT);
    for _ in 0..SIGNALS {
        assert_eq!(client.next().member().as_deref(), Some("C"));
    }
}

/// Other clients may send such a signal as well, as `forged_loss_of_the_name_is_ignored` shows.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test, without the daemon's thread group")]
fn the_loss_of_the_name_ends_the_reader() {
    let bus = private_bus();
    let connection = Arc::new(Connection::at(&bus.address).unwrap());
    let published = Arc::new(Published::default());
    let (_lister, lists) = Lister::new(Arc::clone(&connection), Arc::clone(&published));
    let reader = Reader::new(Arc::clone(&connection), published, lists).unwrap();
    reader.request_name().unwrap();
    let body = Body::of(&[Value::str(NAME)]);
    let envelope = Envelope::ToBus { serial: message::next_serial(), interface: message::BUS, member: "ReleaseName" };
    connection.send(message::message(envelope, &body.signature, &body.bytes));
    let (ended, end) = bounded(1);
    let stop = Stop::new();
    let switch = stop.clone();
    let thread = std::thread::spawn(move || drop(ended.send(reader.run(&Nobody, &switch, &Pulse::default()))));
    let result = end.recv_timeout(LIMIT);
    stop.trigger("the test is done");
    thread.join().unwrap();
    assert!(matches!(result, Ok(Err(Error::NameLost(NAME)))));
}

/// Accepts no job.
struct Nobody;

impl Submit<Reply> for Nobody {
    fn submit(&self, _: Job) {}

    fn locks(&self) -> Locks {
        Locks::default()
    }
}
