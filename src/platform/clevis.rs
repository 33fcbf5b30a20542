//! The encrypted passphrases of Clevis as values: JSON Web Encryption in its two forms (RFC 7516 §7).

use serde_json::{Map, Value};

/// Names of the parts, in the order of the compact form.
const PARTS: [&str; 5] = ["protected", "encrypted_key", "iv", "ciphertext", "tag"];

/// The object for a LUKS2 token, from the compact form that `clevis encrypt` writes. `None`: it is not one.
pub fn from_compact(text: &str) -> Option<Value> {
    let parts: Vec<&str> = text.trim().split('.').collect();
    let base64url = |part: &&str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if parts.len() != PARTS.len() || !parts.iter().all(base64url) {
        return None;
    }
    // An empty part is left out, as jose does.
    let named = PARTS.into_iter().zip(parts).filter(|(_, part)| !part.is_empty());
    let object: Map<String, Value> = named.map(|(name, part)| (name.to_owned(), Value::from(part))).collect();
    object.contains_key("protected").then_some(Value::Object(object))
}

/// The compact form, which `clevis decrypt` reads, from the object in a token. `None`: it is not one.
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
    fn both_forms_say_the_same() {
        let compact = "eyJh.a2V5.aXY.Y2lwaGVy.dGFn";
        let object = from_compact(&format!("{compact}\n")).unwrap();
        assert_eq!(object["encrypted_key"], "a2V5");
        assert_eq!(to_compact(&object).unwrap(), compact);
        // With a key that is agreed on directly there is no encrypted key.
        let direct = "eyJh..aXY.Y2lwaGVy.dGFn";
        let object = from_compact(direct).unwrap();
        assert!(object.get("encrypted_key").is_none());
        assert_eq!(to_compact(&object).unwrap(), direct);
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", "a.b.c.d", ".a.b.c.d", "a.b.c.d.e.f", "a.b c.d.e.f", "eyJh.a=.b.c.d"] {
            assert_eq!(from_compact(text), None, "{text}");
        }
        for jwe in [Value::from(1), serde_json::json!({"iv": "a"}), serde_json::json!({"protected": "a", "tag": 1})] {
            assert_eq!(to_compact(&jwe), None, "{jwe}");
        }
    }
}
