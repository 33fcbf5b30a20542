//! The connection to the bus: one socket, read and polled by the reader's thread alone, written from several.
//!
//! libdbus connects and reads; what is sent goes past it, through the [`outlet`](super::outlet), and the library itself
//! sends nothing once it has connected: it would only do so when asked to send, or to answer calls by itself. So a thread
//! that sends has nothing to wait for, and nobody blocks inside the library: the reader waits in its own poll on the
//! socket and a waker. A send that could not be completed wakes the reader, which then waits for the socket to take more.
//! No wake-up gets lost: the sender queues first and wakes then; the reader drains the waker first and looks at the queue
//! then.
//!
//! Knows nothing of what the messages say.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use dbus::{
    Message,
    channel::{BusType, Channel},
};
use parking_lot::Mutex;
use threads::wake::{PollFd, PollFlags, Waker, poll};

use crate::bus::{
    Error,
    message::{self, BUS, Envelope, NotAMessage, Outgoing},
    outlet::{Outlet, Sent},
    wire::{Body, Value},
};
use crate::platform::linux::descriptors;

/// How long a call to the bus itself may take.
const BUS_CALL_LIMIT: Duration = Duration::from_secs(25);

/// The connection.
pub struct Connection {
    channel: Channel,
    /// A duplicate of the library's descriptor, to wait on: the library closes its own when the bus hangs up, whichever
    /// thread comes across that.
    socket: OwnedFd,
    outlet: Outlet,
    waker: Waker,
    /// What came before the answer to a call of our own.
    early: Mutex<VecDeque<Message>>,
}

impl Connection {
    /// Connects to the system bus, or to the one that `DBUS_SYSTEM_BUS_ADDRESS` names.
    ///
    /// # Errors
    /// When there is no bus, or no descriptor left.
    pub fn system() -> Result<Connection, Error> {
        let channel = Channel::get_private(BusType::System).map_err(|error| Error::NoBus(text(&error)))?;
        Connection::new(channel)
    }

    /// Connects to the bus at an address.
    ///
    /// # Errors
    /// As [`Connection::system`].
    pub fn at(address: &str) -> Result<Connection, Error> {
        let mut channel = Channel::open_private(address).map_err(|error| Error::NoBus(text(&error)))?;
        channel.register().map_err(|error| Error::NoBus(text(&error)))?;
        Connection::new(channel)
    }

    fn new(mut channel: Channel) -> Result<Connection, Error> {
        channel.set_watch_enabled(true);
        let socket = descriptors::duplicate(channel.watch().fd).map_err(Error::Wait)?;
        // The library has made the socket non-blocking, and this is the same one.
        let outlet = Outlet::new(descriptors::duplicate(channel.watch().fd).map_err(Error::Wait)?);
        let waker = Waker::new().map_err(Error::Wait)?;
        Ok(Connection { channel, socket, outlet, waker, early: Mutex::default() })
    }

    /// Wakes the reader out of its wait.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Puts a message on its way. Does not block. From any thread.
    pub fn send(&self, message: Result<Outgoing, NotAMessage>) {
        let Outgoing(parts) = match message {
            Ok(outgoing) => outgoing,
            Err(error) => {
                log::error!("{error}");
                return;
            }
        };
        match self.outlet.send(parts) {
            Ok(Sent::Whole) => {}
            // That the bus has hung up is for the reader to find.
            Ok(Sent::Waits) | Err(_) => self.waker.wake(),
        }
    }

    /// Whether calls should be read and lists be built, or the bus first take what there is.
    pub fn has_room(&self) -> bool {
        self.outlet.has_room()
    }

    /// Waits until there is room. `false`: there will be none, the connection has ended. Not for the reader.
    pub fn wait_for_room(&self) -> bool {
        self.outlet.wait_for_room()
    }

    /// Nobody reads or polls any more: whoever waits for room goes on.
    pub fn end(&self) {
        self.outlet.end();
    }

    /// The next message that has been read, if any.
    pub fn next_message(&self) -> Option<Message> {
        let early = self.early.lock().pop_front();
        early.or_else(|| self.channel.pop_message())
    }

    /// Waits for something to read, for the socket to take what waits, or for the waker; then reads and writes what is
    /// possible without blocking. Only for the thread that owns reading.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn exchange(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut wanted = PollFlags::empty();
        if self.outlet.is_waiting() {
            wanted |= PollFlags::OUT;
        }
        if self.has_room() {
            wanted |= PollFlags::IN;
        }
        {
            let waker = self.waker.fd();
            let mut fds =
                [PollFd::from_borrowed_fd(self.socket.as_fd(), wanted), PollFd::from_borrowed_fd(waker, PollFlags::IN)];
            poll(&mut fds, deadline).map_err(Error::Wait)?;
        }
        self.waker.drain();
        let written = self.outlet.write();
        let read = self.channel.read_write(Some(Duration::ZERO));
        if written.is_ok() && read.is_ok() { Ok(()) } else { Err(Error::Lost) }
    }

    /// Sends all that waits, within the limit. For the end, when no other thread reads or polls.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.outlet.is_waiting() && Instant::now() < deadline {
            let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, Some(deadline)).is_err() || self.outlet.write().is_err() {
                break;
            }
        }
        if self.outlet.is_waiting() {
            log::warn!("the bus did not take all replies and signals before the daemon ended");
        }
    }

    /// Takes a well-known name. Blocks, so it is for the time before the reader runs.
    ///
    /// # Errors
    /// When another has it, when the bus refuses it to us, or the connection is lost.
    pub fn request_name(&self, name: &'static str) -> Result<(), Error> {
        const DO_NOT_QUEUE: u32 = 4;
        const PRIMARY_OWNER: u32 = 1;
        const ALREADY_OWNER: u32 = 4;

        let refused = |why: String| Error::Name { name, why };
        let body = Body::of(&[Value::str(name), Value::U32(DO_NOT_QUEUE)]);
        let serial = message::next_serial();
        let envelope = Envelope::ToBus { serial, interface: BUS, member: "RequestName" };
        self.send(message::message(envelope, &body.signature, &body.bytes));
        let deadline = Instant::now() + BUS_CALL_LIMIT;
        let mut early = VecDeque::new();
        let mut reply = loop {
            match self.channel.pop_message() {
                Some(message) if is_answer(&message, serial) => break message,
                Some(message) => early.push_back(message),
                None if Instant::now() < deadline => self.exchange(Some(deadline))?,
                None => return Err(refused("the bus does not answer".to_owned())),
            }
        };
        self.early.lock().append(&mut early);
        let reply = reply.as_result().map_err(|error| refused(text(&error)))?;
        match reply.get1::<u32>() {
            Some(PRIMARY_OWNER | ALREADY_OWNER) => Ok(()),
            _ => Err(refused("another program has it; stop that one first".to_owned())),
        }
    }
}

/// Anybody may send us answers; only those of the bus count.
fn is_answer(message: &Message, serial: u32) -> bool {
    message.get_reply_serial() == Some(serial) && message.sender().as_deref() == Some(BUS)
}

fn text(error: &dbus::Error) -> String {
    error.message().unwrap_or("no reason given").to_owned()
}
