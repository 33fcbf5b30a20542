//! Secret bytes that can grow: memory that is left behind is wiped. This module knows nothing of
//! their content.

use std::ops::Deref;

use zeroize::Zeroizing;

/// Bytes that are wiped when they move and when they are dropped.
#[derive(Default)]
pub(super) struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// An empty value with capacity for this many bytes before they move.
    pub(super) fn with_room(bytes: usize) -> SecretBytes {
        SecretBytes(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// Appends bytes.
    pub(super) fn push(&mut self, more: &[u8]) {
        let length = self.0.len() + more.len();
        if length > self.0.capacity() {
            // The vector would move by itself, but without wiping.
            let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(more);
    }

    /// Removes the first bytes.
    pub(super) fn drop_first(&mut self, count: usize) {
        let rest = Zeroizing::new(self.0.split_off(count));
        self.0 = rest;
    }

    /// The bytes, for the caller to keep.
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
    fn secret_bytes_grow_and_shrink() {
        let mut bytes = SecretBytes::with_room(2);
        bytes.push(b"one");
        bytes.push(b" two");
        assert_eq!(&*bytes, b"one two");
        bytes.drop_first(4);
        assert_eq!(bytes.into_inner().as_slice(), b"two");
    }
}
