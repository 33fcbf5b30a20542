//! The connection to the bus: one socket. Only the reader's thread reads and polls it; several
//! threads write to it.
//!
//! libdbus connects and reads. Outgoing messages bypass the library and go through the
//! [`send_queue`](super::send_queue). Once connected, the library sends nothing: it would send only
//! on request, or when it answers calls by itself. So a thread that sends waits for nothing, and no
//! thread blocks inside the library: the reader waits in its own poll for the socket and a waker. A
//! thread that could not send its whole message wakes the reader, which then waits until the socket
//! takes more. No wake-up is lost: the sender first queues the message and then wakes the reader;
//! the reader first drains the waker and then looks at the queue.
//!
//! The [`quota`](super::quota) notes the receiver of each message. When the quotas require it, the
//! connection asks the bus how many bytes it holds.
//!
//! This module knows the content of no messages except those to and from the bus itself.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use dbus::{
    Message,
    channel::{BusType, Channel},
};
use parking_lot::{Condvar, Mutex};
use threads::wake::{PollFd, PollFlags, Waker, poll};

use crate::bus::{
    Error,
    caller::Caller,
    message::{self, BUS, Envelope, NotAMessage, Outgoing},
    names::MESSAGE_MAX_VARIABLE,
    quota::{CallAdmission, Quotas},
    send_queue::{MessagePart, SendQueue, Sent},
    statistics::{Question, QuotaSubject},
    wire::{Body, Value},
};
use crate::platform::linux::descriptors;

/// Time limit of a call to the bus itself.
const BUS_CALL_LIMIT: Duration = Duration::from_secs(25);

/// The interface through which the bus reports what it holds for each connection.
const BUS_STATISTICS: &str = "org.freedesktop.DBus.Debug.Stats";

/// The largest message that the reference bus takes by default. If it gets a larger one, it ends
/// the connection. An administrator who raises the limit (`max_message_size` in the bus
/// configuration) also sets [`MESSAGE_MAX_VARIABLE`] for the daemon.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// The connection.
pub struct Connection {
    channel: Channel,
    /// A duplicate of the library's descriptor, to wait on. The library closes its own descriptor
    /// when the bus hangs up, on whichever thread notices that.
    socket: OwnedFd,
    send_queue: SendQueue,
    /// Longer messages are not sent: the bus would end the connection, and with it the daemon.
    message_bytes_max: usize,
    waker: Waker,
    /// Messages that arrived before the answer to a call of the daemon's own.
    early: Mutex<VecDeque<Message>>,
    /// Held while a message is queued or written, so that the quotas know in which order the bus
    /// gets messages.
    quotas: Mutex<Quotas>,
    /// Notified after each answer of the bus about what it holds.
    bus_answered: Condvar,
    mark: Mark,
}

/// A question to the bus. Its answer shows that the bus has taken all messages sent before it.
struct Mark {
    /// Serial number of the question. 0 means that no question is under way.
    serial: AtomicU32,
    /// The reader takes the answers. Not set while the daemon starts, nor when it ends.
    is_heard: AtomicBool,
    passed: (Sender<()>, Receiver<()>),
}

impl Mark {
    fn new() -> Mark {
        Mark { serial: AtomicU32::new(0), is_heard: AtomicBool::new(false), passed: bounded(1) }
    }

    fn pass(&self) {
        // If the channel is full, the receiver will be woken anyway.
        let _ = self.passed.0.try_send(());
    }
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
        // The library has made the socket non-blocking, and the duplicate shares that flag.
        let send_queue = SendQueue::new(descriptors::duplicate(channel.watch().fd).map_err(Error::Wait)?);
        let waker = Waker::new().map_err(Error::Wait)?;
        let configured = std::env::var(MESSAGE_MAX_VARIABLE).ok().and_then(|text| text.parse().ok());
        let message_bytes_max = configured.unwrap_or(MESSAGE_BYTES_MAX);
        let (early, quotas, bus_answered) = Default::default();
        let mark = Mark::new();
        Ok(Connection { channel, socket, send_queue, message_bytes_max, waker, early, quotas, bus_answered, mark })
    }

    /// The longest message that the bus takes from us, in bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    /// Wakes the reader out of its wait.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Sends a message from any thread, without blocking. If an answer is too long for the bus, an
    /// error that reports this is sent instead. Any other message that is too long is dropped.
    pub fn send(&self, message: Result<Outgoing, NotAMessage>) {
        let outgoing = self.fitting(message);
        self.send_fitting(&mut self.quotas.lock(), outgoing);
    }

    /// Sends several messages with no other message between them.
    pub fn send_all(&self, messages: Vec<Result<Outgoing, NotAMessage>>) {
        let outgoing: Vec<Outgoing> = messages.into_iter().filter_map(|message| self.fitting(message)).collect();
        self.send_fitting(&mut self.quotas.lock(), outgoing);
    }

    /// Sends a message if `is_right` returns `true` when the message is queued. Messages of other
    /// threads are sent either before `is_right` is called or after this message. Returns `false`
    /// if the message was not sent.
    pub fn send_if(&self, message: Result<Outgoing, NotAMessage>, is_right: impl FnOnce() -> bool) -> bool {
        let outgoing = self.fitting(message);
        let mut quotas = self.quotas.lock();
        let is_right = is_right();
        if is_right {
            self.send_fitting(&mut quotas, outgoing);
        }
        is_right
    }

    /// Makes a message, if `make` returns one, and queues it in one critical section: messages of
    /// other threads are sent either before `make` is called or after this message. Other threads
    /// wait meanwhile, so `make` must be quick.
    pub fn send_made_if(&self, make: impl FnOnce() -> Option<Result<Outgoing, NotAMessage>>) {
        let mut quotas = self.quotas.lock();
        let outgoing = make().and_then(|message| self.fitting(message));
        self.send_fitting(&mut quotas, outgoing);
    }

    fn fitting(&self, message: Result<Outgoing, NotAMessage>) -> Option<Outgoing> {
        let fitting = message.and_then(|outgoing| outgoing.within(self.message_bytes_max));
        fitting.inspect_err(|error| log::error!("{error}")).ok()
    }

    fn send_fitting(&self, quotas: &mut Quotas, messages: impl IntoIterator<Item = Outgoing>) {
        let (mut parts, mut due) = (Vec::new(), Vec::new());
        for outgoing in messages {
            let name = outgoing.to.as_ref().map(|caller| caller.name.as_str());
            due.extend(quotas.sent(name, outgoing.bytes()));
            parts.extend(outgoing.parts);
        }
        if !parts.is_empty() {
            self.put(parts);
            self.ask(quotas, due);
        }
    }

    /// Asks the bus to confirm that it has taken all messages sent before. [`Connection::passed`]
    /// reports the answer. Only one question may be under way at a time.
    pub fn mark(&self) {
        let serial = message::next_serial();
        let envelope = Envelope::ToBus { serial, interface: BUS, member: "GetId" };
        self.mark.serial.store(serial, Ordering::SeqCst);
        match message::message(envelope, "", &[]) {
            Ok(question) => self.put(question.parts),
            Err(error) => {
                log::error!("{error}");
                self.mark.pass();
            }
        }
        if !self.mark.is_heard.load(Ordering::SeqCst) {
            self.mark.pass();
        }
    }

    /// Gets a message when the bus has taken all messages sent before the mark, or when no thread
    /// reads the bus's answers.
    pub fn passed(&self) -> &Receiver<()> {
        &self.mark.passed.1
    }

    fn put(&self, parts: Vec<MessagePart>) {
        match self.send_queue.send(parts) {
            Ok(Sent::Whole) => {}
            // If the bus has hung up, the reader will notice.
            Ok(Sent::Waits) | Err(_) => self.waker.wake(),
        }
    }

    /// Asks the bus what it holds.
    fn ask(&self, quotas: &mut Quotas, about: Vec<QuotaSubject>) {
        for side in about {
            let name = match &side {
                QuotaSubject::Ours => self.channel.unique_name().unwrap_or_default(),
                QuotaSubject::Caller(name) => name,
            };
            let dialect = quotas.dialect();
            let (member, body) = dialect.question(name);
            let serial = message::next_serial();
            let envelope = Envelope::ToBus { serial, interface: BUS_STATISTICS, member };
            match message::message(envelope, &body.signature, &body.bytes) {
                Ok(question) => {
                    self.put(question.parts);
                    quotas.asking(serial, Question { side, dialect });
                }
                Err(error) => log::error!("{error}"),
            }
        }
    }

    /// Takes the bus's answer to a question. Any client may send answers; only those of the bus
    /// count.
    pub fn take_answer(&self, message: &Message) {
        let (Some(serial), Some(BUS)) = (message.get_reply_serial(), message.sender().as_deref()) else { return };
        if self.mark.serial.compare_exchange(serial, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            // An error answer, too, shows that the bus has taken the earlier messages.
            return self.mark.pass();
        }
        let Some(Question { side, dialect }) = self.quotas.lock().question(serial) else { return };
        let answer = dialect.answer(message, &side);
        let mut quotas = self.quotas.lock();
        quotas.note_answer(serial, answer);
        let about = quotas.after_answer();
        self.ask(&mut quotas, about);
        drop(quotas);
        self.bus_answered.notify_all();
    }

    /// Whether a call is admitted, depending on what its caller has left unread.
    pub fn admission(&self, caller: &Caller) -> CallAdmission {
        let mut quotas = self.quotas.lock();
        let (admission, side) = quotas.admission(&caller.name);
        self.ask(&mut quotas, side.into_iter().collect());
        admission
    }

    /// Whether one more list may wait for its turn.
    pub fn list_wanted(&self, caller: &Caller) -> bool {
        self.quotas.lock().list_wanted(&caller.name)
    }

    /// The counterpart of [`Connection::list_wanted`].
    pub fn list_done(&self, caller: &Caller) {
        self.quotas.lock().list_done(&caller.name);
    }

    /// Whether a list of `bytes` bytes may be sent. If the quotas cannot decide, this method asks
    /// the bus and waits for its answer. The reader must not call this method: the reader takes
    /// that answer.
    pub fn list_fits(&self, caller: &Caller, bytes: usize) -> bool {
        let deadline = Instant::now() + BUS_CALL_LIMIT;
        let mut quotas = self.quotas.lock();
        // An answer under way may be older than what the caller has read since, and the question
        // may have to be repeated in another dialect. The third answer is neither outdated nor in
        // the wrong dialect.
        for _ in 0..3 {
            if quotas.list_fits(&caller.name, bytes) {
                return true;
            }
            let about = quotas.questions(&caller.name);
            self.ask(&mut quotas, about);
            self.waker.wake();
            while quotas.is_asking(&caller.name) {
                // The reader notifies after every answer, and when the reader ends.
                if self.bus_answered.wait_until(&mut quotas, deadline).timed_out() {
                    return false;
                }
            }
        }
        quotas.list_fits(&caller.name, bytes)
    }

    /// Whether the daemon may read calls and build lists. If not, the bus must first take what
    /// waits.
    pub fn has_room(&self) -> bool {
        self.send_queue.has_room()
    }

    /// Waits until there is room. Returns `false` if the connection has ended, so that there will
    /// be none. The reader must not call this.
    pub fn wait_for_room(&self) -> bool {
        self.send_queue.wait_for_room()
    }

    /// From now on the reader reads from the bus and polls the socket.
    pub fn begin(&self) {
        self.mark.is_heard.store(true, Ordering::SeqCst);
    }

    /// The reader no longer reads or polls. Threads that wait for room return.
    pub fn end(&self) {
        self.send_queue.end();
        self.quotas.lock().end();
        self.bus_answered.notify_all();
        self.mark.is_heard.store(false, Ordering::SeqCst);
        self.mark.pass();
    }

    /// The next message that has been read, if any.
    pub fn next_message(&self) -> Option<Message> {
        let early = self.early.lock().pop_front();
        early.or_else(|| self.channel.pop_message())
    }

    /// Waits for input on the socket, for the socket to take what waits, for the waker, or for
    /// `other` to be readable; then reads and writes what is possible without blocking. Only the
    /// reader's thread may call this method.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn exchange(&self, deadline: Option<Instant>, other: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let mut wanted = PollFlags::empty();
        if self.send_queue.is_waiting() {
            wanted |= PollFlags::OUT;
        }
        if self.has_room() {
            wanted |= PollFlags::IN;
        }
        {
            let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let mut fds = vec![PollFd::from_borrowed_fd(self.socket.as_fd(), wanted), readable(self.waker.fd())];
            fds.extend(other.map(readable));
            poll(&mut fds, deadline).map_err(Error::Wait)?;
        }
        self.waker.drain();
        let written = self.send_queue.write();
        let read = self.channel.read_write(Some(Duration::ZERO));
        if written.is_ok() && read.is_ok() { Ok(()) } else { Err(Error::Lost) }
    }

    /// Sends all that waits, as long as the bus takes some of it at least every `pause`, and within
    /// the limit. Called at the end, when no other thread reads or polls.
    pub fn flush(&self, pause: Duration, limit: Duration) {
        let end = Instant::now() + limit;
        let mut left = self.send_queue.bytes_waiting();
        let mut deadline = end.min(Instant::now() + pause);
        while left > 0 && Instant::now() < deadline {
            let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, Some(deadline)).is_err() || self.send_queue.write().is_err() {
                break;
            }
            let now = self.send_queue.bytes_waiting();
            if now < left {
                deadline = end.min(Instant::now() + pause);
            }
            left = now;
        }
        if left > 0 {
            log::warn!("the bus did not take {left} bytes of replies and signals before the daemon ended");
        }
    }

    /// Takes a well-known name. Blocks, so call it before the reader runs.
    ///
    /// # Errors
    /// When another connection owns the name, when the bus refuses it, or when the connection is
    /// lost.
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
                None if Instant::now() < deadline => self.exchange(Some(deadline), None)?,
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

/// Any client may send answers; only those of the bus count.
fn is_answer(message: &Message, serial: u32) -> bool {
    message.get_reply_serial() == Some(serial) && message.sender().as_deref() == Some(BUS)
}

fn text(error: &dbus::Error) -> String {
    error.message().unwrap_or("no reason given").to_owned()
}
