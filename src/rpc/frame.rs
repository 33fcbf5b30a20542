//! Finds the end of a JSON value in a stream: no length precedes the value and no mark follows it,
//! and the client keeps its end of the socket open. Each byte is examined once.
//!
//! Must never know: what the value means. The JSON parser decides whether it is valid.

/// Follows a stream up to the end of its first value, a text or an object.
#[derive(Debug, Default)]
pub struct Frame {
    depth: usize,
    in_text: bool,
    escaped: bool,
    state: FrameState,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum FrameState {
    #[default]
    Before,
    Inside,
    Whole,
    Wrong,
}

/// How much of a value has been received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameProgress {
    /// The value is not complete.
    Partial,
    /// The value is complete.
    Whole,
    /// The value is neither a string nor an object, or bytes follow it.
    Wrong,
}

impl Frame {
    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) -> FrameProgress {
        for byte in bytes {
            self.state = self.after(*byte);
        }
        match self.state {
            FrameState::Before | FrameState::Inside => FrameProgress::Partial,
            FrameState::Whole => FrameProgress::Whole,
            FrameState::Wrong => FrameProgress::Wrong,
        }
    }

    fn after(&mut self, byte: u8) -> FrameState {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match self.state {
            FrameState::Before if is_space => FrameState::Before,
            FrameState::Whole if is_space => FrameState::Whole,
            FrameState::Before if !matches!(byte, b'"' | b'{') => FrameState::Wrong,
            FrameState::Whole | FrameState::Wrong => FrameState::Wrong,
            FrameState::Before | FrameState::Inside => {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' if self.in_text => self.escaped = true,
                    b'"' => self.in_text = !self.in_text,
                    _ if self.in_text => {}
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                if self.depth == 0 && !self.in_text { FrameState::Whole } else { FrameState::Inside }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn ends_at(text: &str, end: Option<usize>) {
        let mut frame = Frame::default();
        let found = text.bytes().position(|byte| frame.feed(&[byte]) == FrameProgress::Whole);
        assert_eq!(found.map(|at| at + 1), end, "{text}");
        assert_eq!(Frame::default().feed(text.as_bytes()) == FrameProgress::Whole, end.is_some(), "{text} at once");
    }

    #[test]
    fn a_value_ends_with_its_last_byte() {
        ends_at("\"Report\"", Some(8));
        ends_at(" \n{\"Report\":null}", Some(17));
        ends_at(r#"{"PoolDestroy":"a}\"b]"}"#, Some(24));
        ends_at(r#"{"PoolStart":[{"Name":"\\"},"Any"]}"#, Some(35));
        ends_at("\"Rep", None);
        ends_at("{\"a\":[{}", None);
        ends_at("", None);
    }

    #[test]
    fn what_cannot_be_a_request_is_wrong() {
        for text in ["7", "null", "[1]", "}", "\"a\"x", "{}{}", "\"a\" \"b\""] {
            assert_eq!(Frame::default().feed(text.as_bytes()), FrameProgress::Wrong, "{text}");
        }
        assert_eq!(Frame::default().feed(b"\"a\"\n "), FrameProgress::Whole);
    }
}
