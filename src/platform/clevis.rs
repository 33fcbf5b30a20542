//! Passphrases encrypted by Clevis as values: the two serializations of JSON Web Encryption (RFC
//! 7516 §7).

use serde_json::{Map, Value};

/// Names of the parts, in the order of the compact serialization.
const PARTS: [&str; 5] = ["protected", "encrypted_key", "iv", "ciphertext", "tag"];

/// Converts the compact serialization that `clevis encrypt` prints into the object of a LUKS2
/// token. `None` if it has another form.
pub fn from_compact(text: &str) -> Option<Value> {
    let parts: Vec<&str> = text.trim().split('.').collect();
    let base64url = |part: &&str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if parts.len() != PARTS.len() || !parts.iter().all(base64url) {
        return None;
    }
    // Omit empty parts, as jose does.
    let named = PARTS.into_iter().zip(parts).filter(|(_, part)| !part.is_empty());
    let object: Map<String, Value> = named.map(|(name, part)| (name.to_owned(), Value::from(part))).collect();
    object.contains_key("protected").then_some(Value::Object(object))
}

/// Converts the object of a token into the compact serialization that `clevis decrypt` reads.
/// `None` if the object has another form.
pub fn to_compact(jwe: &Value) -> Option<String> {
    let object = jwe.as_object().filter(|object| object.get("protected").is_some_and(Value::is_string))?;
    let parts = PARTS.map(|name| match object.get(name) {
        Some(part) => part.as_str(),
        None => Some(""),
    });
    Some(parts.into_iter().collect::<Option<Vec<_>>>()?.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serializations_convert_both_ways() {
        let compact = "eyJh.a2V5.aXY.Y2lwaGVy.dGFn";
        let object = from_compact(&format!("{compact}\n")).unwrap();
        assert_eq!(object["encrypted_key"], "a2V5");
        assert_eq!(to_compact(&object).unwrap(), compact);
        // Direct key agreement has no encrypted key.
        let direct = "eyJh..aXY.Y2lwaGVy.dGFn";
        let object = from_compact(direct).unwrap();
        assert!(object.get("encrypted_key").is_none());
        assert_eq!(to_compact(&object).unwrap(), direct);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "a.b.c.d", ".a.b.c.d", "a.b.c.d.e.f", "a.b c.d.e.f", "eyJh.a=.b.c.d"] {
            assert_eq!(from_compact(text), None, "{text}");
        }
        for jwe in [Value::from(1), serde_json::json!({"iv": "a"}), serde_json::json!({"protected": "a", "tag": 1})] {
            assert_eq!(to_compact(&jwe), None, "{jwe}");
        }
    }
}
