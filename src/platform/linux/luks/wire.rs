//! Messages between the daemon and its LUKS2 child, as frames on the child's standard input and
//! output.
//!
//! A frame is the length of a JSON text (4 bytes, little-endian), the number of secrets (1 byte),
//! the text, and for each secret its length (2 bytes) and its bytes. So no secret is part of a
//! text, and every buffer that secrets pass through is wiped. This module knows nothing of LUKS2
//! beyond these values.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    base::units::{Bytes, Sectors},
    platform::{
        keyring::Secret,
        linux::secret_bytes::SecretBytes,
        luks::{Begin, Cost, FormatPurpose, Header, HeaderLayout, Progress, ReencryptionEnd},
    },
};

/// The argument that marks a child. No user would type it.
pub(super) const CHILD: &str = "--luks-child";
/// The daemon's permission to use memory.
pub(super) const GO: u8 = b'g';
/// Longest text; the JSON of the largest LUKS2 header has 4 MiB.
const TEXT_BYTES_MAX: usize = 16 << 20;
/// Longest secret: a passphrase or a volume key.
const SECRET_BYTES_MAX: usize = 1 << 10;
/// Size of the head before the text.
const HEAD_BYTES: usize = 5;
/// Initial capacity for a frame.
const FRAME_BYTES: usize = 16 << 10;

/// Index into the secrets of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Nth(pub(super) usize);

/// A passphrase and the keyslot to try it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SentUnlock {
    pub(super) passphrase: Nth,
    pub(super) keyslot: Option<u32>,
}

/// A keyslot to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SentKeyslot {
    pub(super) number: u32,
    pub(super) passphrase: Nth,
    pub(super) cost: Cost,
}

/// A change of a header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum SentChange {
    AddKeyslot(SentKeyslot),
    AddNextKeyslot(SentKeyslot),
    DestroyKeyslot(u32),
    PutToken(u32, Value),
    RemoveToken(u32),
}

/// The request to a child. A child gets one request in its life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum LuksRequest {
    Read {
        device: PathBuf,
    },
    Format {
        device: PathBuf,
        layout: HeaderLayout,
        purpose: FormatPurpose,
        keyslots: Vec<SentKeyslot>,
        tokens: BTreeMap<u32, Value>,
    },
    Change {
        device: PathBuf,
        unlock: Option<SentUnlock>,
        changes: Vec<SentChange>,
    },
    Open {
        device: PathBuf,
        name: Option<String>,
        unlock: SentUnlock,
    },
    Reopen {
        device: PathBuf,
        name: String,
        volume_key: Nth,
    },
    Resize {
        device: PathBuf,
        name: String,
        volume_key: Nth,
        size: Option<Sectors>,
    },
    Reencrypt {
        device: PathBuf,
        name: String,
        unlock: SentUnlock,
        begin: Begin,
    },
    /// Recovers the hot zone of a killed re-encryption job, so that the crypt device serves all
    /// data.
    Repair {
        device: PathBuf,
        name: String,
        unlock: SentUnlock,
    },
}

/// A message of the child. All but the first two are its last one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum LuksAnswer {
    /// The child is about to derive keys, needs this much memory and waits for [`GO`].
    Needs(Bytes),
    /// Progress of a re-encryption job.
    Progress(Progress),
    /// The header; `None` if there is none.
    Header(Option<Header>),
    /// The volume key follows as a secret.
    VolumeKey,
    /// The request is done.
    Done,
    /// The re-encryption job has ended.
    Ended(ReencryptionEnd),
    /// The passphrase opens no keyslot.
    WrongKey,
    /// The device is in use.
    Busy,
    /// The request failed for this reason; standard error may say more.
    Failed(String),
}

/// The received bytes are not a frame, or its text is not an expected message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled(pub(super) String);

/// Encodes a frame.
pub(super) fn frame(message: &impl Serialize, secrets: &[&Secret]) -> Zeroizing<Vec<u8>> {
    let text = serde_json::to_vec(message).expect("these messages have text keys only and nothing that can fail");
    let length = u32::try_from(text.len()).expect("a message is far shorter than 4 GiB");
    let count = u8::try_from(secrets.len()).expect("a call has fewer secrets than a header has keyslots");
    let mut bytes = SecretBytes::with_room(text.len() + HEAD_BYTES + secrets.len() * SECRET_BYTES_MAX);
    bytes.push(&length.to_le_bytes());
    bytes.push(&[count]);
    bytes.push(&text);
    for secret in secrets {
        let length = u16::try_from(secret.bytes().len()).expect("a passphrase or key is far shorter than 64 KiB");
        bytes.push(&length.to_le_bytes());
        bytes.push(secret.bytes());
    }
    bytes.into_inner()
}

/// Bytes received and not decoded yet.
pub(super) struct Received {
    bytes: SecretBytes,
}

impl Received {
    /// No bytes yet.
    pub(super) fn new() -> Received {
        Received { bytes: SecretBytes::with_room(FRAME_BYTES) }
    }

    /// Adds received bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes.push(bytes);
    }

    /// Decodes the next message with its secrets; `None` if it is incomplete.
    ///
    /// # Errors
    /// [`Garbled`]: nothing after it can be decoded either.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<Secret>)>, Garbled> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [a, b, c, d, count] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > TEXT_BYTES_MAX {
            return Err(Garbled(format!("a message of {length} bytes")));
        }
        let Some((text, mut rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let mut secrets = Vec::new();
        for _ in 0..count {
            let Some((length, after)) = rest.split_first_chunk::<2>() else { return Ok(None) };
            let length = usize::from(u16::from_le_bytes(*length));
            if length > SECRET_BYTES_MAX {
                return Err(Garbled(format!("a secret of {length} bytes")));
            }
            let Some((secret, after)) = after.split_at_checked(length) else { return Ok(None) };
            secrets.push(Secret::new(Zeroizing::new(secret.to_vec())));
            rest = after;
        }
        // The error gives the position and kind of the fault only; the text itself might contain
        // anything.
        let message = serde_json::from_slice(text).map_err(|fault| Garbled(fault.to_string()))?;
        let used = self.bytes.len() - rest.len();
        self.bytes.drop_first(used);
        Ok(Some((message, secrets)))
    }

    /// Whether all received bytes have been decoded.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
    }

    fn next(bytes: &[u8]) -> Result<Option<(LuksAnswer, Vec<Secret>)>, Garbled> {
        let mut received = Received::new();
        received.add(bytes);
        received.next()
    }

    #[test]
    fn messages_survive_arrival_in_pieces() {
        let request = LuksRequest::Open {
            device: "/dev/sda".into(),
            name: Some("n".to_owned()),
            unlock: SentUnlock { passphrase: Nth(1), keyslot: Some(3) },
        };
        let bytes = frame(&request, &[&secret(""), &secret("hunter2")]);
        let text = String::from_utf8_lossy(&bytes[5..]);
        assert_eq!(text.matches("hunter2").count(), 1, "the secret is not behind the text exactly once");
        let mut received = Received::new();
        for byte in &bytes[..bytes.len() - 1] {
            received.add(&[*byte]);
            assert!(received.next::<LuksRequest>().unwrap().is_none());
        }
        received.add(&bytes[bytes.len() - 1..]);
        received.add(&frame(&LuksAnswer::Done, &[]));
        let (message, secrets) = received.next::<LuksRequest>().unwrap().unwrap();
        assert_eq!(message, request);
        assert!(secrets[0].same(b"") && secrets[1].same(b"hunter2") && secrets.len() == 2);
        assert_eq!(received.next::<LuksAnswer>().unwrap().unwrap().0, LuksAnswer::Done);
        assert!(received.is_empty());
    }

    #[test]
    fn every_answer_arrives_as_it_was_sent() {
        let progress = Progress { done: Bytes(1), total: Bytes(u64::MAX.into()) };
        for answer in [
            LuksAnswer::Needs(Bytes(1 << 30)),
            LuksAnswer::Progress(progress),
            LuksAnswer::Header(None),
            LuksAnswer::VolumeKey,
            LuksAnswer::Done,
            LuksAnswer::Ended(ReencryptionEnd::Interrupted),
            LuksAnswer::WrongKey,
            LuksAnswer::Busy,
            LuksAnswer::Failed("\0 \u{1f600} \"".to_owned()),
        ] {
            assert_eq!(next(&frame(&answer, &[])).unwrap().unwrap().0, answer);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_waited_on() {
        for bytes in [
            &b"\xff\xff\xff\xff\x00"[..],
            b"\x01\x00\x00\x01\x00{}",
            b"\x02\x00\x00\x00\x00{}",
            b"\x04\x00\x00\x00\x00null",
            b"\x06\x00\x00\x00\x00\"Done'",
            b"\x06\x00\x00\x00\x00\"Dont\"",
            b"\x06\x00\x00\x00\x01\"Done\"\xff\xff",
        ] {
            assert!(next(bytes).is_err(), "{bytes:?}");
        }
        for bytes in [&b""[..], b"\x06\x00\x00", b"\x06\x00\x00\x00\x00\"Don", b"\x06\x00\x00\x00\x01\"Done\"\x02\x00x"]
        {
            assert_eq!(next(bytes).unwrap().map(|(answer, _)| answer), None, "{bytes:?}");
        }
    }
}
