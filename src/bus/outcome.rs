//! What a method came to, and how that is told to the caller.

/// The content of a reply.
pub enum Answer {}
