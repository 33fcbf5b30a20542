//! Reads and writes bytes together with a file descriptor on a Unix socket.
//!
//! Must never know: what the bytes say.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

/// The number of descriptors that one read accepts. A request may have one; a second shows that
/// there are too many. The kernel closes the others.
const DESCRIPTORS_MAX: usize = 2;

/// The result of one read.
pub struct Packet {
    /// The number of bytes. 0 means that the other end is closed.
    pub length: usize,
    /// The descriptors that came with the bytes.
    pub descriptors: Vec<OwnedFd>,
    /// There were more descriptors; the kernel has closed them.
    pub had_more: bool,
}

/// Reads once.
///
/// # Errors
/// [`Errno::AGAIN`] if nothing is there to read and the socket is non-blocking.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<Packet, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Packet { length: received.bytes, descriptors, had_more: received.flags.contains(ReturnFlags::CTRUNC) })
}

/// Writes once, with a descriptor. Returns the number of bytes written.
///
/// # Errors
/// [`Errno::AGAIN`] if the socket is full and non-blocking.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn a_descriptor_travels_beside_the_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert_eq!(send(here.as_fd(), b"key", Some(writer.as_fd())), Ok(3));
        drop(writer);
        let mut bytes = [0; 8];
        let received = receive(there.as_fd(), &mut bytes).unwrap();
        assert_eq!((received.length, received.descriptors.len(), received.had_more), (3, 1, false));
        drop(received);
        assert_eq!(reader.read(&mut bytes).unwrap(), 0, "the only writing end was the received one");
    }

    #[test]
    fn too_many_descriptors_are_noticed_and_closed() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let many = [writer.as_fd(); 5];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(5))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&here, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        drop(writer);
        let mut bytes = [0; 8];
        let received = receive(there.as_fd(), &mut bytes).unwrap();
        assert!(received.had_more || received.descriptors.len() == 5);
        drop(received);
        assert_eq!(reader.read(&mut bytes).unwrap(), 0, "none is left open");
    }
}
