//! The word that somebody may have meant by one that is not known: options, actions, keys, themes.

/// How alike two words must be, from 0 to 1; clap suggests from there on too.
const ALIKE: f64 = 0.7;

/// The known word that is most like an unknown one; `None` when none is like it.
pub fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let unknown = unknown.to_lowercase();
    let scored = known.into_iter().map(|word| (strsim::jaro_winkler(&unknown, &word.to_lowercase()), word));
    scored.filter(|(score, _)| *score > ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}

/// "did you mean 'enter'?", or else what is to be said instead.
pub fn did_you_mean<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>, instead: &str) -> String {
    match nearest(unknown, known) {
        Some(word) => format!("did you mean '{word}'?"),
        None => instead.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood_and_another_word_is_not() {
        let known = ["enter", "esc", "page-down", "page-up"];
        assert_eq!(nearest("entr", known), Some("enter"));
        assert_eq!(nearest("Page-Dwon", known), Some("page-down"));
        assert_eq!(nearest("xyzzy", known), None);
        assert_eq!(did_you_mean("esk", known, "look there"), "did you mean 'esc'?");
        assert_eq!(did_you_mean("", known, "look there"), "look there");
    }
}
