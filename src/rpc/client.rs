//! The client's end: one request, one answer, one connection.
//!
//! Must never know: what the request is for.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use super::{
    ANSWER_BYTES_MAX, REQUEST_BYTES_MAX,
    frame::{Frame, FrameProgress},
    packet,
    protocol::{RpcRequest, RpcResult},
};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// Why the client got no answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClientError {
    #[error("cannot reach stratisd-min at {path}; is it running?")]
    Connect { path: String, source: io::Error },
    #[error("the connection to stratisd-min was lost; see its log")]
    Lost(#[source] io::Error),
    #[error("the request is longer than {REQUEST_BYTES_MAX} bytes, the limit of stratisd-min; shorten it")]
    TooLong,
    #[error("cannot write the request as JSON")]
    Unwritable(#[source] serde_json::Error),
    #[error("stratisd-min closed the connection without an answer; see its log")]
    NoAnswer,
    #[error("cannot decode the answer of stratisd-min; check that stratis-min and stratisd-min have the same version")]
    NotAnAnswer(#[source] serde_json::Error),
    #[error("the answer of stratisd-min is longer than {ANSWER_BYTES_MAX} bytes")]
    Endless,
}

/// Sends a request to the daemon at this socket and waits for its answer, however long that takes:
/// the start of a large pool takes minutes.
///
/// # Errors
/// No answer came; the error says why.
pub fn ask(path: &Path, request: &RpcRequest, descriptor: Option<BorrowedFd<'_>>) -> Result<RpcResult, ClientError> {
    let text = serde_json::to_vec(request).map_err(ClientError::Unwritable)?;
    if text.len() > REQUEST_BYTES_MAX {
        return Err(ClientError::TooLong);
    }
    let socket = UnixStream::connect(path)
        .map_err(|source| ClientError::Connect { path: path.display().to_string(), source })?;
    let mut sent = 0;
    while sent < text.len() {
        // The descriptor is sent with the first bytes.
        let beside = descriptor.filter(|_| sent == 0);
        match packet::send(socket.as_fd(), &text[sent..], beside) {
            Ok(bytes) => sent += bytes,
            // The daemon may refuse a request before it has read all of it; its answer says why.
            Err(rustix::io::Errno::PIPE) => break,
            Err(errno) => return Err(ClientError::Lost(errno.into())),
        }
    }
    read(&socket)
}

/// Reads up to the end of the answer. Not every daemon closes the connection after it.
fn read(socket: &UnixStream) -> Result<RpcResult, ClientError> {
    let (mut answer, mut frame) = (Vec::new(), Frame::default());
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let length = match packet::receive(socket.as_fd(), &mut bytes) {
            Ok(received) => received.length,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => return Err(ClientError::Lost(errno.into())),
        };
        answer.extend_from_slice(&bytes[..length]);
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Endless);
        }
        if frame.feed(&bytes[..length]) != FrameProgress::Partial {
            return serde_json::from_slice(&answer).map_err(ClientError::NotAnAnswer);
        }
        if length == 0 {
            return Err(ClientError::NoAnswer);
        }
    }
}
