//! Splits a kernel command line into words as systemd does: at white space outside single and
//! double quotes. `-` and `_` are equal in the name of a parameter.

/// The values of all parameters with this name. A parameter without `=` has no value.
pub(super) fn values(text: &str, name: &str) -> Vec<String> {
    words(text)
        .into_iter()
        .filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            let same = |a: char| if a == '-' { '_' } else { a };
            key.chars().map(same).eq(name.chars().map(same)).then(|| value.to_owned())
        })
        .collect()
}

/// The words, without their quotes. A quote that is not closed reaches to the end.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c.is_ascii_whitespace() => words.extend(word.take()),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_protect_white_space() {
        let text = "root=/dev/x  a=\"b c=d\" \"e=f g\" h='i j'\tk=l\"m n\"o\n";
        assert_eq!(words(text), ["root=/dev/x", "a=b c=d", "e=f g", "h=i j", "k=lm no"]);
        assert_eq!(words("a=\"b c"), ["a=b c"]);
        assert_eq!(words("\"\" x"), ["", "x"]);
        assert!(words("  \n").is_empty());
    }

    #[test]
    fn only_parameters_of_this_name_count() {
        let text = "a.b_c=1 \"a.b-c=2 3\" a.b_c xa.b_c=4 a.b_c= n=\"a.b_c=5\" n=\" a.b_c=6\"";
        assert_eq!(values(text, "a.b_c"), ["1", "2 3", ""]);
    }
}
