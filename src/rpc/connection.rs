//! One connection: receives a request and sends its answer. It never blocks. Both phases that
//! depend on the client (sending the request, reading the answer) have a time limit.
//!
//! Must never know: what a request or an answer says.

use std::{
    mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use threads::wake::PollFlags;

use super::{
    REQUEST_BYTES_MAX,
    frame::{Frame, FrameProgress},
    packet,
};

/// How long a client may take to send its request.
pub const RECEIVE_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to read its answer.
pub const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Bytes read at once.
const READ_BYTES: usize = 4 << 10;

/// A client's connection.
pub struct RpcConnection {
    socket: OwnedFd,
    phase: ConnectionPhase,
}

enum ConnectionPhase {
    Receiving(Incoming),
    /// The daemon handles the request. This phase has no time limit.
    Serving,
    Sending {
        answer: Vec<u8>,
        sent: usize,
        until: Instant,
    },
}

struct Incoming {
    bytes: Vec<u8>,
    frame: Frame,
    descriptors: Vec<OwnedFd>,
    had_more: bool,
    until: Instant,
}

/// A request as it was received.
pub struct RawRequest {
    /// Its text.
    pub text: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// Why a request is refused before it is decoded. The texts are for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadRequest {
    #[error("the request is longer than {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    #[error("a request is one JSON text or object, with nothing after it")]
    NotOneValue,
    #[error("the request came with more than one file descriptor")]
    Descriptors,
}

/// What has happened on a connection.
pub enum ConnectionEvent {
    /// Nothing that concerns the server.
    Nothing,
    /// A request has arrived. The server calls [`RpcConnection::answer`] next.
    Request(RawRequest),
    /// The request is refused. The server calls [`RpcConnection::answer`] next.
    Refused(BadRequest),
    /// The connection has ended.
    Over,
}

impl RpcConnection {
    /// A connection that waits for its request.
    pub fn new(socket: OwnedFd, now: Instant) -> RpcConnection {
        let incoming = Incoming {
            bytes: Vec::new(),
            frame: Frame::default(),
            descriptors: Vec::new(),
            had_more: false,
            until: now + RECEIVE_LIMIT,
        };
        RpcConnection { socket, phase: ConnectionPhase::Receiving(incoming) }
    }

    /// The events to poll for. `poll` reports a client that has disconnected in any case.
    pub fn interest(&self) -> PollFlags {
        match self.phase {
            ConnectionPhase::Receiving(_) => PollFlags::IN,
            ConnectionPhase::Serving => PollFlags::empty(),
            ConnectionPhase::Sending { .. } => PollFlags::OUT,
        }
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the request is not complete yet.
    pub fn is_receiving(&self) -> bool {
        matches!(self.phase, ConnectionPhase::Receiving(_))
    }

    /// When the time limit of the client expires; `None` while the daemon handles the request.
    pub fn until(&self) -> Option<Instant> {
        match &self.phase {
            ConnectionPhase::Receiving(incoming) => Some(incoming.until),
            ConnectionPhase::Serving => None,
            ConnectionPhase::Sending { until, .. } => Some(*until),
        }
    }

    /// The number of bytes of the answer that are not sent yet.
    pub fn unsent(&self) -> usize {
        match &self.phase {
            ConnectionPhase::Sending { answer, sent, .. } => answer.len() - sent,
            _ => 0,
        }
    }

    /// Handles an event on the socket.
    pub fn advance(&mut self, events: PollFlags) -> ConnectionEvent {
        match &self.phase {
            ConnectionPhase::Receiving(_) => self.receive(),
            ConnectionPhase::Sending { .. } => self.send(),
            // The client has disconnected; the request continues without it.
            ConnectionPhase::Serving if events.intersects(PollFlags::HUP | PollFlags::ERR) => ConnectionEvent::Over,
            ConnectionPhase::Serving => ConnectionEvent::Nothing,
        }
    }

    /// Starts to send the answer: sends as much as the socket takes now.
    pub fn answer(&mut self, answer: Vec<u8>, now: Instant) -> ConnectionEvent {
        self.phase = ConnectionPhase::Sending { answer, sent: 0, until: now + SEND_LIMIT };
        self.send()
    }

    fn receive(&mut self) -> ConnectionEvent {
        let ConnectionPhase::Receiving(incoming) = &mut self.phase else { return ConnectionEvent::Nothing };
        let mut bytes = [0; READ_BYTES];
        loop {
            let received = match packet::receive(self.socket.as_fd(), &mut bytes) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return ConnectionEvent::Nothing,
                Err(_) => return ConnectionEvent::Over,
            };
            incoming.descriptors.extend(received.descriptors);
            incoming.had_more |= received.had_more;
            let came = &bytes[..received.length];
            let progress = incoming.frame.feed(came);
            let refusal = if incoming.had_more || incoming.descriptors.len() > 1 {
                Some(BadRequest::Descriptors)
            } else if incoming.bytes.len() + came.len() > REQUEST_BYTES_MAX {
                Some(BadRequest::TooLong)
            } else {
                (progress == FrameProgress::Wrong).then_some(BadRequest::NotOneValue)
            };
            if received.length == 0 {
                return ConnectionEvent::Over;
            }
            incoming.bytes.extend_from_slice(came);
            if refusal.is_none() && progress == FrameProgress::Partial {
                continue;
            }
            let ConnectionPhase::Receiving(incoming) = mem::replace(&mut self.phase, ConnectionPhase::Serving) else {
                return ConnectionEvent::Nothing;
            };
            return match refusal {
                Some(why) => ConnectionEvent::Refused(why),
                None => {
                    ConnectionEvent::Request(RawRequest { text: incoming.bytes, descriptors: incoming.descriptors })
                }
            };
        }
    }

    fn send(&mut self) -> ConnectionEvent {
        let ConnectionPhase::Sending { answer, sent, .. } = &mut self.phase else { return ConnectionEvent::Nothing };
        while *sent < answer.len() {
            match packet::send(self.socket.as_fd(), &answer[*sent..], None) {
                Ok(bytes) => *sent += bytes,
                Err(Errno::AGAIN) => return ConnectionEvent::Nothing,
                Err(_) => break,
            }
        }
        ConnectionEvent::Over
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn pair() -> (UnixStream, RpcConnection) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        (client, RpcConnection::new(server.into(), Instant::now()))
    }

    #[test]
    fn an_answer_is_sent_as_it_is_read() {
        let (mut client, mut connection) = pair();
        let (answer, now) = (vec![b'x'; 4 << 20], Instant::now());
        assert!(matches!(connection.answer(answer, now), ConnectionEvent::Nothing));
        assert_eq!(connection.until(), Some(now + SEND_LIMIT));
        let begun = connection.unsent();
        assert!(begun > 0 && begun < 4 << 20, "{begun}: more than the socket takes at once");
        let (mut bytes, mut length, mut is_over) = (vec![0; 64 << 10], 0, false);
        loop {
            match client.read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) => {
                    assert!(error.kind() == ErrorKind::WouldBlock && !is_over, "{error}");
                    is_over = matches!(connection.advance(PollFlags::OUT), ConnectionEvent::Over);
                    if is_over {
                        assert_eq!(connection.unsent(), 0);
                        // The server drops the connection now.
                        connection = pair().1;
                    }
                }
            }
        }
        assert_eq!((length, is_over), (4 << 20, true));
    }

    #[test]
    fn a_client_that_goes_while_served_is_noticed() {
        let (mut client, mut connection) = pair();
        client.write_all(b"\"KeyList\"").unwrap();
        assert!(matches!(connection.advance(PollFlags::IN), ConnectionEvent::Request(_)));
        assert_eq!((connection.interest(), connection.until()), (PollFlags::empty(), None));
        assert!(matches!(connection.advance(PollFlags::empty()), ConnectionEvent::Nothing));
        drop(client);
        assert!(matches!(connection.advance(PollFlags::HUP), ConnectionEvent::Over));
    }

    #[test]
    fn half_a_request_has_a_limit() {
        let (mut client, mut connection) = pair();
        let until = connection.until();
        client.write_all(b"{\"Pool").unwrap();
        assert!(matches!(connection.advance(PollFlags::IN), ConnectionEvent::Nothing));
        assert!(connection.is_receiving() && until.is_some());
        assert_eq!(connection.until(), until, "more bytes do not give more time");
        drop(client);
        assert!(matches!(connection.advance(PollFlags::HUP), ConnectionEvent::Over));
    }
}
