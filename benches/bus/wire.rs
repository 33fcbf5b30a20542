//! A minimal D-Bus client: calls are encoded before the clock starts, and of a reply only the
//! header is parsed. The figures contain no cost of a D-Bus library.
//!
//! This module knows nothing of what the calls mean. It trusts its input, because both ends belong
//! to the benchmark.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
/// Bytes before the header fields.
const FIXED_BYTES: usize = 16;

/// Codes of header fields.
mod field {
    pub const PATH: u8 = 1;
    pub const INTERFACE: u8 = 2;
    pub const MEMBER: u8 = 3;
    pub const REPLY_SERIAL: u8 = 5;
    pub const DESTINATION: u8 = 6;
    pub const SENDER: u8 = 7;
    pub const SIGNATURE: u8 = 8;
}

/// A message under construction: header, then body, both little-endian.
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(signature.len() as u8);
        self.0.extend_from_slice(signature.as_bytes());
        self.0.push(0);
    }

    fn field(&mut self, code: u8, signature: &str, write: impl FnOnce(&mut Writer)) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        write(self);
    }
}

/// A message with these header fields and this body. Its serial number is filled in when it is
/// sent.
fn message(kind: u8, fields: impl FnOnce(&mut Writer), signature: &str, body: &[u8]) -> Vec<u8> {
    let mut writer = Writer(Vec::with_capacity(256 + body.len()));
    writer.0.extend_from_slice(&[b'l', kind, 0, 1]);
    writer.u32(body.len() as u32);
    writer.u32(0);
    writer.u32(0);
    fields(&mut writer);
    if !signature.is_empty() {
        writer.field(field::SIGNATURE, "g", |w| w.signature(signature));
    }
    let fields_bytes = (writer.0.len() - FIXED_BYTES) as u32;
    writer.0[12..16].copy_from_slice(&fields_bytes.to_le_bytes());
    writer.align(8);
    writer.0.extend_from_slice(body);
    writer.0
}

/// A method call that can be sent any number of times.
pub struct Call(Vec<u8>);

impl Call {
    /// A call whose arguments are texts.
    pub fn new(destination: &str, path: &str, interface: &str, member: &str, arguments: &[&str]) -> Call {
        let mut body = Writer(Vec::new());
        arguments.iter().for_each(|argument| body.text(argument));
        Call::with_body(destination, path, interface, member, &"s".repeat(arguments.len()), &body.0)
    }

    fn with_body(destination: &str, path: &str, interface: &str, member: &str, signature: &str, body: &[u8]) -> Call {
        let fields = |w: &mut Writer| {
            w.field(field::PATH, "o", |w| w.text(path));
            w.field(field::DESTINATION, "s", |w| w.text(destination));
            w.field(field::INTERFACE, "s", |w| w.text(interface));
            w.field(field::MEMBER, "s", |w| w.text(member));
        };
        Call(message(METHOD_CALL, fields, signature, body))
    }
}

/// The header of a message.
#[derive(Debug, Default)]
struct Header {
    kind: u8,
    serial: u32,
    reply_serial: u32,
    sender: String,
    member: String,
    body_at: usize,
    bytes: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The start of the body and the end of the message, or `None` if too little has been read.
fn extent(bytes: &[u8]) -> Option<(usize, usize)> {
    let fixed = bytes.get(..FIXED_BYTES)?;
    let body_at = FIXED_BYTES + (u32_at(fixed, 12) as usize).next_multiple_of(8);
    Some((body_at, body_at + u32_at(fixed, 4) as usize))
}

fn header(message: &[u8], (body_at, bytes): (usize, usize)) -> Header {
    let mut header = Header { kind: message[1], serial: u32_at(message, 8), body_at, bytes, ..Header::default() };
    let mut at = FIXED_BYTES;
    let end = FIXED_BYTES + u32_at(message, 12) as usize;
    while at < end {
        at = at.next_multiple_of(8);
        let (code, kind) = (message[at], message[at + 2]);
        at += 4;
        if kind == b'g' {
            at += usize::from(message[at]) + 2;
            continue;
        }
        at = at.next_multiple_of(4);
        let value = u32_at(message, at);
        at += 4;
        match (code, kind) {
            (field::REPLY_SERIAL, _) => header.reply_serial = value,
            (_, b'u') => {}
            _ => {
                let text = || String::from_utf8_lossy(&message[at..at + value as usize]).into_owned();
                match code {
                    field::SENDER => header.sender = text(),
                    field::MEMBER => header.member = text(),
                    _ => {}
                }
                at += value as usize + 1;
            }
        }
    }
    header
}

/// A connection to the bus.
pub struct Wire {
    socket: UnixStream,
    serial: u32,
    /// Starts with the last message returned, which ends at `taken`.
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl Wire {
    /// Connects to the bus at a socket.
    pub fn connect(socket: &Path) -> Wire {
        let mut wire = Wire {
            socket: UnixStream::connect(socket).expect("the bus accepts connections"),
            serial: 0,
            buffer: vec![0; 64 << 10],
            filled: 0,
            taken: 0,
        };
        wire.authenticate().expect("the bus accepts us");
        let bus = "org.freedesktop.DBus";
        wire.call(&mut Call::new(bus, "/org/freedesktop/DBus", bus, "Hello", &[]));
        wire
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let user = rustix::process::getuid().as_raw().to_string();
        let hex: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.socket.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            let mut byte = [0];
            self.socket.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
        self.socket.write_all(b"BEGIN\r\n")
    }

    /// Acquires a well-known name.
    pub fn take_name(&mut self, name: &str) {
        let mut body = Writer(Vec::new());
        body.text(name);
        body.u32(0);
        let bus = "org.freedesktop.DBus";
        self.call(&mut Call::with_body(bus, "/org/freedesktop/DBus", bus, "RequestName", "su", &body.0));
    }

    /// The first argument of a body, which is a text.
    fn text(body: &[u8]) -> String {
        let length = body.get(..4).map_or(0, |bytes| u32_at(bytes, 0) as usize);
        String::from_utf8_lossy(body.get(4..4 + length).unwrap_or(body)).into_owned()
    }

    /// Sends a call, waits for its reply, which must not be an error, and returns the body of the
    /// reply.
    pub fn call(&mut self, call: &mut Call) -> &[u8] {
        let serial = self.send(&mut call.0);
        loop {
            let header = self.next();
            if header.reply_serial != serial {
                continue;
            }
            let body = &self.buffer[header.body_at..header.bytes];
            assert!(header.kind == METHOD_RETURN, "error: {}", Wire::text(body));
            return body;
        }
    }

    /// Sends a call whose reply is not read.
    pub fn post(&mut self, call: &mut Call) {
        self.send(&mut call.0);
    }

    fn send(&mut self, message: &mut [u8]) -> u32 {
        self.serial += 1;
        message[8..12].copy_from_slice(&self.serial.to_le_bytes());
        self.socket.write_all(message).expect("the bus is connected");
        self.serial
    }

    /// Waits for the next message and moves it to the front of the buffer.
    fn next(&mut self) -> Header {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        loop {
            let extent = extent(&self.buffer[..self.filled]);
            if let Some((_, end)) = extent {
                if self.buffer.len() < end {
                    self.buffer.resize(end, 0);
                }
            }
            match extent {
                Some((body_at, end)) if end <= self.filled => {
                    self.taken = end;
                    return header(&self.buffer[..end], (body_at, end));
                }
                _ => {}
            }
            let read = self.socket.read(&mut self.buffer[self.filled..]).expect("the bus is connected");
            assert!(read > 0, "the bus has closed the connection");
            self.filled += read;
        }
    }

    /// Serves the floors until the bus closes the connection:
    ///
    /// - `Keep` requests the list that `list` asks for and keeps its bytes.
    /// - `Bytes` returns a byte array of that size: the cost of any method that returns as much.
    /// - `Kept` returns the list itself: the cost of the list to the bus, whichever program sends
    ///   it.
    /// - `Ping` returns nothing: the cost of any call to the bus.
    pub fn serve_floors(mut self, list: &mut Call, signature: &str) -> ! {
        let (mut kept, mut bytes) = (Vec::new(), Vec::new());
        loop {
            let call = self.next();
            if call.kind != METHOD_CALL {
                continue;
            }
            let fields = |w: &mut Writer| {
                w.field(field::REPLY_SERIAL, "u", |w| w.u32(call.serial));
                w.field(field::DESTINATION, "s", |w| w.text(&call.sender));
            };
            let mut reply = match call.member.as_str() {
                "Ping" => message(METHOD_RETURN, fields, "", &[]),
                "Bytes" => message(METHOD_RETURN, fields, "ay", &bytes),
                "Kept" => message(METHOD_RETURN, fields, signature, &kept),
                _ => {
                    kept = self.call(list).to_vec();
                    bytes = ((kept.len() - 4) as u32).to_le_bytes().to_vec();
                    bytes.resize(kept.len(), b'x');
                    message(METHOD_RETURN, fields, "", &[])
                }
            };
            self.send(&mut reply);
        }
    }
}
