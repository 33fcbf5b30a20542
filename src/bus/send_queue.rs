//! The send queue: messages of the daemon that wait for the bus socket. Nothing else writes to
//! that socket.
//!
//! A list of all objects is megabytes of entries that the tree keeps anyway. libdbus would copy the
//! list twice and check it value by value, which takes longer than all the rest. So libdbus reads
//! from the socket and the send queue writes to it: a message consists of its own bytes and of
//! entries that it shares with the tree, and is written without copying them.
//!
//! This module does not know the content of the messages.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::bus::object_entry::ObjectEntry;

/// Bytes that may wait for the socket before the daemon stops reading calls and building lists.
/// Small messages never reach this limit: what waits is the rest of a few large lists.
const BACKLOG_MAX: usize = 48 << 20;
/// Messages that may wait before the same happens: twice as many as lists of 100 kB that fit into
/// [`BACKLOG_MAX`]. Each message takes memory besides its bytes. Without this limit, refusals of
/// further lists took a MiB and more.
const MESSAGES_MAX: usize = 1024;
/// The most parts given to the kernel at once. That many entries are more than a socket takes.
const PARTS_AT_ONCE: usize = 64;

/// A part of a message.
#[derive(Debug)]
pub enum MessagePart {
    /// The message's own bytes.
    Bytes(Vec<u8>),
    /// The entry of an object in a list, padded up to the next entry.
    Entry(Arc<ObjectEntry>),
    /// The last entry of a list, without padding.
    LastEntry(Arc<ObjectEntry>),
    /// Bytes that other messages share.
    Shared(Arc<[u8]>),
}

impl MessagePart {
    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        match self {
            MessagePart::Bytes(bytes) => bytes,
            MessagePart::Entry(entry) => entry.filled_up(),
            MessagePart::LastEntry(entry) => entry.added(),
            MessagePart::Shared(bytes) => bytes,
        }
    }
}

/// The send queue. Any thread may call any method; only [`SendQueue::wait_for_room`] blocks.
pub struct SendQueue {
    socket: OwnedFd,
    unsent: Mutex<Unsent>,
    room: Condvar,
}

/// The waiting messages. A single queue of their parts would double its capacity for a few lists of
/// thousands of parts, and never shrink.
#[derive(Debug, Default)]
struct Unsent {
    messages: VecDeque<Vec<MessagePart>>,
    /// Parts of the first message that are written.
    parts_written: usize,
    /// Bytes of the next part that are written.
    written: usize,
    /// Bytes of all parts that are not written yet.
    bytes: usize,
    /// No thread empties the queue any more.
    ended: bool,
}

/// How far a message got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The socket has taken all of it.
    Whole,
    /// A part waits until the socket takes more. The sender must wake the thread that polls.
    Waits,
}

impl SendQueue {
    /// A send queue for a non-blocking socket. Nothing else may write to the socket from now on.
    pub fn new(socket: OwnedFd) -> SendQueue {
        SendQueue { socket, unsent: Mutex::default(), room: Condvar::new() }
    }

    /// Queues a message after all earlier ones and writes what the socket takes.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn send(&self, message: Vec<MessagePart>) -> io::Result<Sent> {
        let mut queue = self.unsent.lock();
        let waits_already = !queue.messages.is_empty();
        queue.bytes += message.iter().map(|part| part.bytes().len()).sum::<usize>();
        queue.messages.push_back(message);
        // If something waits already, the thread that waits for the socket writes this message too.
        if !waits_already {
            queue.write(&self.socket)?;
        }
        Ok(if queue.messages.is_empty() { Sent::Whole } else { Sent::Waits })
    }

    /// Writes as much of the queue as the socket takes.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn write(&self) -> io::Result<()> {
        let mut queue = self.unsent.lock();
        let result = queue.write(&self.socket);
        if queue.has_room() {
            self.room.notify_all();
        }
        result
    }

    /// Whether anything waits for the socket.
    pub fn is_waiting(&self) -> bool {
        !self.unsent.lock().messages.is_empty()
    }

    /// How many bytes wait for the socket.
    pub fn bytes_waiting(&self) -> usize {
        self.unsent.lock().bytes
    }

    /// Whether the daemon may read calls and build lists. If not, the bus must first take what
    /// waits.
    pub fn has_room(&self) -> bool {
        self.unsent.lock().has_room()
    }

    /// Waits until there is room. Returns `false` if the connection has ended, so that there will
    /// be none. The thread that writes the queue must not call this.
    pub fn wait_for_room(&self) -> bool {
        let mut queue = self.unsent.lock();
        // Notified after every write, and at the end.
        self.room.wait_while(&mut queue, |queue| !queue.has_room() && !queue.ended);
        !queue.ended
    }

    /// No thread writes the queue any more. Threads that wait for room continue.
    pub fn end(&self) {
        self.unsent.lock().ended = true;
        self.room.notify_all();
    }
}

impl Unsent {
    fn has_room(&self) -> bool {
        self.bytes < BACKLOG_MAX && self.messages.len() < MESSAGES_MAX
    }

    fn write(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while !self.messages.is_empty() {
            let written = {
                let mut from = self.written;
                let slices: Vec<IoSlice<'_>> = self
                    .messages
                    .iter()
                    .flatten()
                    .skip(self.parts_written)
                    .take(PARTS_AT_ONCE)
                    .map(|part| IoSlice::new(&part.bytes()[std::mem::take(&mut from)..]))
                    .collect();
                match rustix::io::writev(socket.as_fd(), &slices) {
                    Ok(written) => written,
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
            };
            self.take(written);
        }
        Ok(())
    }

    /// Removes what has been written.
    fn take(&mut self, written: usize) {
        self.bytes -= written;
        self.written += written;
        while let Some(message) = self.messages.front() {
            match message.get(self.parts_written).map(|part| part.bytes().len()) {
                Some(length) if length <= self.written => {
                    self.written -= length;
                    self.parts_written += 1;
                }
                Some(_) => break,
                None => {
                    self.messages.pop_front();
                    self.parts_written = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    fn pair() -> (SendQueue, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (SendQueue::new(ours.into()), theirs)
    }

    fn bytes(count: usize, of: u8) -> Vec<MessagePart> {
        vec![MessagePart::Bytes(vec![of; count / 2]), MessagePart::Bytes(vec![of; count - count / 2])]
    }

    #[test]
    fn unsent_bytes_wait_and_go_out_in_order() {
        let (send_queue, mut theirs) = pair();
        assert_eq!(send_queue.send(bytes(10, 1)).unwrap(), Sent::Whole);
        assert!(!send_queue.is_waiting());
        assert_eq!(send_queue.send(bytes(5_000_001, 2)).unwrap(), Sent::Waits);
        assert_eq!(send_queue.send(bytes(3, 3)).unwrap(), Sent::Waits, "nothing overtakes");
        assert!(send_queue.is_waiting());
        let mut read = Vec::new();
        let mut some = vec![0; 70_000];
        while read.len() < 5_000_014 {
            let count = theirs.read(&mut some).unwrap();
            read.extend_from_slice(&some[..count]);
            send_queue.write().unwrap();
        }
        assert!(!send_queue.is_waiting());
        let wanted: Vec<u8> = [vec![1; 10], vec![2; 5_000_001], vec![3; 3]].concat();
        assert!(read == wanted);
    }

    /// Formerly each part took a place in the queue, which doubled when refusals waited behind lists.
    #[test]
    fn a_list_takes_one_place() {
        let (send_queue, mut theirs) = pair();
        let list =
            |of: u8| -> Vec<MessagePart> { (0..=255).map(|part| MessagePart::Bytes(vec![of ^ part; 700])).collect() };
        for of in 0..10 {
            send_queue.send(list(of)).unwrap();
        }
        assert!((1..=10).contains(&send_queue.unsent.lock().messages.len()));
        let wanted: Vec<u8> = (0..10).flat_map(list).flat_map(|part| part.bytes().to_vec()).collect();
        let (mut read, mut some) = (Vec::new(), vec![0; 70_001]);
        while read.len() < wanted.len() {
            let count = theirs.read(&mut some).unwrap();
            read.extend_from_slice(&some[..count]);
            send_queue.write().unwrap();
        }
        assert!(read == wanted && !send_queue.is_waiting());
    }

    #[test]
    fn an_empty_part_is_passed_over() {
        let (send_queue, mut theirs) = pair();
        send_queue
            .send(vec![MessagePart::Bytes(vec![]), MessagePart::Bytes(vec![7]), MessagePart::Bytes(vec![])])
            .unwrap();
        assert!(!send_queue.is_waiting());
        let mut some = [0; 9];
        assert_eq!((theirs.read(&mut some).unwrap(), some[0]), (1, 7));
    }

    #[test]
    fn no_room_beyond_the_limit_or_the_end() {
        let (send_queue, _theirs) = pair();
        assert!(send_queue.wait_for_room());
        send_queue.send(bytes(BACKLOG_MAX + (1 << 22), 1)).unwrap();
        assert!(!send_queue.has_room());
        send_queue.end();
        assert!(!send_queue.wait_for_room());
    }

    #[test]
    fn many_short_messages_leave_no_room() {
        let (send_queue, mut theirs) = pair();
        send_queue.send(bytes(1 << 22, 1)).unwrap();
        for _ in 1..MESSAGES_MAX {
            assert!(send_queue.has_room());
            send_queue.send(bytes(10, 2)).unwrap();
        }
        assert!(!send_queue.has_room());
        let mut some = vec![0; 70_000];
        while send_queue.is_waiting() {
            assert!(theirs.read(&mut some).unwrap() > 0);
            send_queue.write().unwrap();
        }
        assert!(send_queue.wait_for_room());
    }

    #[test]
    fn a_closed_socket_is_an_error() {
        let (send_queue, theirs) = pair();
        drop(theirs);
        assert!(send_queue.send(bytes(10, 1)).is_err());
    }
}
