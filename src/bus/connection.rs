//! The connection to the bus: one socket, read and polled by the reader's thread alone, written from several.
//!
//! libdbus has one I/O path per connection. Whoever sends while another thread is inside the library's own read call
//! gets its message queued, not sent, until that call returns. So nobody ever blocks inside the library: the reader
//! waits in its own poll on the socket and a waker, and calls [`Connection::exchange`] without blocking. A send that
//! could not be completed (the path was taken, or the socket is full) wakes the reader, which then waits for the
//! socket to take more. No wake-up gets lost: the sender queues first and wakes then; the reader drains the waker
//! first and looks at the queue then.
//!
//! Knows nothing of what the messages say.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use dbus::{
    Message,
    channel::{BusType, Channel},
};
use parking_lot::{Condvar, Mutex};
use threads::wake::{PollFd, PollFlags, Waker, poll};

use crate::bus::{
    Error,
    message::{NotAMessage, Outgoing},
};
use crate::platform::linux::descriptors;

/// Bytes that may wait in the library for the socket to take them before no more calls are read, and no more lists
/// built. Small change is not held up by it: it is what the bus has left lying of some large lists.
const BACKLOG_MAX: usize = 48 << 20;

/// How long a call to the bus itself may take.
const BUS_CALL_LIMIT: Duration = Duration::from_secs(25);

/// The connection.
pub struct Connection {
    channel: Channel,
    /// A duplicate of the library's descriptor, to wait on: the library closes its own when the bus hangs up, whichever
    /// thread comes across that.
    socket: OwnedFd,
    waker: Waker,
    backlog: Mutex<Backlog>,
    drained: Condvar,
}

/// What waits in the library for the socket. An estimate: no byte is forgotten until all have been taken.
#[derive(Debug, Default)]
struct Backlog {
    bytes: usize,
    /// Nobody empties it any more.
    ended: bool,
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
        let waker = Waker::new().map_err(Error::Wait)?;
        Ok(Connection { channel, socket, waker, backlog: Mutex::default(), drained: Condvar::new() })
    }

    /// Wakes the reader out of its wait.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Puts a message on its way. Does not block. From any thread.
    pub fn send(&self, message: Result<Outgoing, NotAMessage>) {
        let Outgoing { message, bytes } = match message {
            Ok(outgoing) => outgoing,
            Err(error) => {
                log::error!("{error}");
                return;
            }
        };
        if self.channel.send(message).is_err() {
            log::error!("libdbus has no memory left for a message of {bytes} bytes; it is not sent");
            return;
        }
        if self.channel.has_messages_to_send() {
            self.backlog.lock().bytes += bytes;
            self.waker.wake();
        }
    }

    /// Whether calls should be read and lists be built, or the bus first take what there is.
    pub fn has_room(&self) -> bool {
        self.backlog.lock().bytes < BACKLOG_MAX
    }

    /// Waits until there is room. `false`: there will be none, the connection has ended. Not for the reader.
    pub fn wait_for_room(&self) -> bool {
        let mut backlog = self.backlog.lock();
        // The reader notifies whenever it finds the queue empty, and when it ends.
        self.drained.wait_while(&mut backlog, |backlog| backlog.bytes >= BACKLOG_MAX && !backlog.ended);
        !backlog.ended
    }

    /// Nobody reads or polls any more: whoever waits for room goes on.
    pub fn end(&self) {
        self.backlog.lock().ended = true;
        self.drained.notify_all();
    }

    /// The next message that has been read, if any.
    pub fn next_message(&self) -> Option<Message> {
        self.channel.pop_message()
    }

    /// Waits for something to read, for the socket to take what waits, or for the waker; then reads and writes what is
    /// possible without blocking. Only for the thread that owns reading.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn exchange(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut wanted = PollFlags::empty();
        if self.has_unsent() {
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
        let connected = self.channel.read_write(Some(Duration::ZERO)).is_ok();
        self.has_unsent();
        if connected { Ok(()) } else { Err(Error::Lost) }
    }

    /// Whether messages wait for the socket. If not, that is noted and told.
    fn has_unsent(&self) -> bool {
        let mut backlog = self.backlog.lock();
        // Asked with the estimate locked, so that what a sender adds is not forgotten unsent.
        let unsent = self.channel.has_messages_to_send();
        if !unsent && backlog.bytes > 0 {
            backlog.bytes = 0;
            self.drained.notify_all();
        }
        unsent
    }

    /// Sends all that waits, within the limit. For the end, when no other thread reads or polls.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.has_unsent() && Instant::now() < deadline {
            let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, Some(deadline)).is_err() || self.channel.read_write(Some(Duration::ZERO)).is_err() {
                break;
            }
        }
        if self.has_unsent() {
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
        let call = Message::new_method_call(
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "RequestName",
        )
        .map_err(refused)?
        .append2(name, DO_NOT_QUEUE);
        let reply =
            self.channel.send_with_reply_and_block(call, BUS_CALL_LIMIT).map_err(|error| refused(text(&error)))?;
        match reply.get1::<u32>() {
            Some(PRIMARY_OWNER | ALREADY_OWNER) => Ok(()),
            _ => Err(refused("another program has it; stop that one first".to_owned())),
        }
    }
}

fn text(error: &dbus::Error) -> String {
    error.message().unwrap_or("no reason given").to_owned()
}
