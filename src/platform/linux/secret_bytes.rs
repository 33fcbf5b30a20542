//! Bytes that grow and leave nothing behind: what a longer stretch of memory takes over is wiped where it was.
//! Knows nothing of what they are.

use std::ops::Deref;

use zeroize::Zeroizing;

/// Bytes that are wiped when they move and when they are let go.
#[derive(Default)]
pub(super) struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// With room for so many before they have to move.
    pub(super) fn with_room(bytes: usize) -> SecretBytes {
        SecretBytes(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// Appends.
    pub(super) fn push(&mut self, more: &[u8]) {
        let length = self.0.len() + more.len();
        if length > self.0.capacity() {
            // The vector would move by itself, but not wipe.
            let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(more);
    }

    /// Takes the first bytes away.
    pub(super) fn drop_first(&mut self, count: usize) {
        let rest = Zeroizing::new(self.0.split_off(count));
        self.0 = rest;
    }

    /// The bytes, to be kept.
    pub(super) fn into_inner(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::SecretBytes;

    #[test]
    fn they_grow_and_shrink() {
        let mut bytes = SecretBytes::with_room(2);
        bytes.push(b"one");
        bytes.push(b" two");
        assert_eq!(&*bytes, b"one two");
        bytes.drop_first(4);
        assert_eq!(bytes.into_inner().as_slice(), b"two");
    }
}
