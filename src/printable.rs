//! Text from outside made safe to look at: names of processes, of pods, of files are whatever somebody chose.
//!
//! A terminal obeys escape sequences, and C1 controls like them; a bidirectional override shows a line in another order
//! than it has; what has no width hides. All of these become what Rust writes for them, `\u{1b}`, which nobody obeys.
//! It is done where text is written for people; the metrics page has names as they are.

use std::borrow::Cow;
use std::fmt::Write as _;

/// True for a character that does something else than to be seen: controls (the line feed too), what changes the
/// direction, what has no width.
pub fn is_hidden(character: char) -> bool {
    // General category Cf and what else Unicode calls default ignorable, with the separators of lines and paragraphs.
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// For a place within one line.
pub fn printable(text: &str) -> Cow<'_, str> {
    visible(text, is_hidden)
}

/// For a text that has lines.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    visible(text, |character| is_hidden(character) && !matches!(character, '\n' | '\t'))
}

fn visible(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if hidden(character) {
            let _ = write!(out, "{}", character.escape_default());
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_show_is_shown() {
        for (text, seen) in [
            ("\u{1b}[8mevil\u{1b}]0;x\u{7}", "\\u{1b}[8mevil\\u{1b}]0;x\\u{7}"),
            ("\u{9b}31m \u{9d}", "\\u{9b}31m \\u{9d}"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("ng\u{200b}inx\u{feff}\u{ad}\u{2060}", "ng\\u{200b}inx\\u{feff}\\u{ad}\\u{2060}"),
            ("\u{e0041}\u{3164}\u{fe0f}", "\\u{e0041}\\u{3164}\\u{fe0f}"),
            ("one\r\n\tok  two\u{2028}", "one\\r\\n\\tok  two\\u{2028}"),
            ("\0\u{7f}", "\\u{0}\\u{7f}"),
        ] {
            assert_eq!(printable(text), seen);
        }
        assert_eq!(printable_lines("a\n\tb\r\u{1b}\n"), "a\n\tb\\r\\u{1b}\n");
    }

    #[test]
    fn what_shows_stays() {
        for text in ["", "kubelet --a=\"b\\n\"", "café 名前 имя שלום مرحبا 🦀 \u{fffd} ≥ · —"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
