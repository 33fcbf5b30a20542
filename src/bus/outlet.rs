//! Where messages leave: our own queue before the socket, of which nobody else writes.
//!
//! A list of all objects is megabytes of entries that the tree keeps anyway. Through libdbus it
//! would be copied twice and checked value by value, which takes longer than all the rest of it. So
//! libdbus reads from the socket and we write to it: a message is bytes of its own and entries that
//! it shares with the tree, and goes out from where they lie.
//!
//! Knows nothing of what the messages say.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::bus::entry::Entry;

/// Bytes that may wait for the socket to take them before no more calls are read, and no more lists
/// built. Small change is not held up by it: it is what the bus has left lying of some large lists.
const BACKLOG_MAX: usize = 48 << 20;
/// Pieces given to the kernel at once. So many entries are more than a socket takes.
const PARTS_AT_ONCE: usize = 64;

/// A stretch of a message.
#[derive(Debug)]
pub enum Part {
    /// Its own.
    Bytes(Vec<u8>),
    /// The entry of an object in a list, filled up to where the next begins.
    Entry(Arc<Entry>),
    /// The last one, which is not.
    LastEntry(Arc<Entry>),
}

impl Part {
    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Part::Bytes(bytes) => bytes,
            Part::Entry(entry) => entry.filled_up(),
            Part::LastEntry(entry) => entry.added(),
        }
    }
}

/// The way out. All of it may be called from any thread; nothing blocks but
/// [`Outlet::wait_for_room`].
pub struct Outlet {
    socket: OwnedFd,
    queue: Mutex<Queue>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    parts: VecDeque<Part>,
    /// What has been written of the first part.
    written: usize,
    /// What has not been written of all.
    bytes: usize,
    /// Nobody empties it any more.
    ended: bool,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The socket has it.
    Whole,
    /// Some of it waits until the socket takes more: whoever polls is to know.
    Waits,
}

impl Outlet {
    /// For a socket that does not block, and that nobody else writes to from now on.
    pub fn new(socket: OwnedFd) -> Outlet {
        Outlet { socket, queue: Mutex::default(), room: Condvar::new() }
    }

    /// Puts a message on its way, after all that were before.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn send(&self, message: Vec<Part>) -> io::Result<Sent> {
        let mut queue = self.queue.lock();
        let waits_already = !queue.parts.is_empty();
        queue.bytes += message.iter().map(|part| part.bytes().len()).sum::<usize>();
        queue.parts.extend(message);
        // Whoever finds something waiting leaves it to those who wait for the socket.
        if !waits_already {
            queue.write(&self.socket)?;
        }
        Ok(if queue.parts.is_empty() { Sent::Whole } else { Sent::Waits })
    }

    /// Writes what the socket takes of what waits.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn write(&self) -> io::Result<()> {
        let mut queue = self.queue.lock();
        let result = queue.write(&self.socket);
        if queue.has_room() {
            self.room.notify_all();
        }
        result
    }

    /// Whether anything waits for the socket.
    pub fn is_waiting(&self) -> bool {
        !self.queue.lock().parts.is_empty()
    }

    /// How many bytes wait for the socket.
    pub fn bytes_waiting(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Whether calls should be read and lists be built, or the bus first take what there is.
    pub fn has_room(&self) -> bool {
        self.queue.lock().has_room()
    }

    /// Waits until there is room. `false`: there will be none, the connection has ended. Not for
    /// the thread that writes what waits.
    pub fn wait_for_room(&self) -> bool {
        let mut queue = self.queue.lock();
        // Told whenever something has been written, and at the end.
        self.room.wait_while(&mut queue, |queue| !queue.has_room() && !queue.ended);
        !queue.ended
    }

    /// Nobody writes what waits any more: whoever waits for room goes on.
    pub fn end(&self) {
        self.queue.lock().ended = true;
        self.room.notify_all();
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        self.bytes < BACKLOG_MAX
    }

    fn write(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while !self.parts.is_empty() {
            let written = {
                let mut from = self.written;
                let slices: Vec<IoSlice<'_>> = self
                    .parts
                    .iter()
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

    /// Forgets what has been written.
    fn take(&mut self, written: usize) {
        self.bytes -= written;
        self.written += written;
        while let Some(length) = self.parts.front().map(|part| part.bytes().len()).filter(|n| *n <= self.written) {
            self.written -= length;
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    fn pair() -> (Outlet, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Outlet::new(ours.into()), theirs)
    }

    fn bytes(count: usize, of: u8) -> Vec<Part> {
        vec![Part::Bytes(vec![of; count / 2]), Part::Bytes(vec![of; count - count / 2])]
    }

    #[test]
    fn what_the_socket_does_not_take_waits_and_goes_out_in_order() {
        let (outlet, mut theirs) = pair();
        assert_eq!(outlet.send(bytes(10, 1)).unwrap(), Sent::Whole);
        assert!(!outlet.is_waiting());
        assert_eq!(outlet.send(bytes(5_000_001, 2)).unwrap(), Sent::Waits);
        assert_eq!(outlet.send(bytes(3, 3)).unwrap(), Sent::Waits, "nothing overtakes");
        let mut read = Vec::new();
        let mut some = vec![0; 70_000];
        while read.len() < 5_000_014 {
            let count = theirs.read(&mut some).unwrap();
            read.extend_from_slice(&some[..count]);
            outlet.write().unwrap();
        }
        assert!(!outlet.is_waiting());
        let wanted: Vec<u8> = [vec![1; 10], vec![2; 5_000_001], vec![3; 3]].concat();
        assert!(read == wanted);
    }

    #[test]
    fn an_empty_part_is_passed_over() {
        let (outlet, mut theirs) = pair();
        outlet.send(vec![Part::Bytes(vec![]), Part::Bytes(vec![7]), Part::Bytes(vec![])]).unwrap();
        assert!(!outlet.is_waiting());
        let mut some = [0; 9];
        assert_eq!((theirs.read(&mut some).unwrap(), some[0]), (1, 7));
    }

    #[test]
    fn room_is_gone_while_too_much_waits_and_whoever_waits_for_it_is_told_of_the_end() {
        let (outlet, _theirs) = pair();
        assert!(outlet.wait_for_room());
        outlet.send(bytes(BACKLOG_MAX + (1 << 22), 1)).unwrap();
        assert!(!outlet.has_room());
        outlet.end();
        assert!(!outlet.wait_for_room());
    }

    #[test]
    fn the_end_of_the_other_side_is_an_error() {
        let (outlet, theirs) = pair();
        drop(theirs);
        assert!(outlet.send(bytes(10, 1)).is_err());
    }
}
