//! Lines of the log on stderr, as those who read them expect them.
//!
//! - A logfmt value in quotes is a string of JSON (go-logfmt, Loki). The formatter quotes as Rust does: `\'` and
//!   `\u{1b}` are turned into `'` and `\u001b`.
//! - What would not show, or would do something to a terminal, is written as JSON does (`\u009b`), in values that are
//!   not quoted too: names of processes and files are whatever somebody chose.
//! - On a connection to the systemd journal each line begins with its priority (`<4>`, sd-daemon(3)), so that
//!   `journalctl -p warning` finds warnings.

use std::fmt::Write as _;
use std::io::{self, Stderr, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::printable::is_hidden;

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `level=info msg=…`
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// From now on events of `level` and above go to stderr. `journal_stream` is what systemd says of the connection that
/// it made to the journal (`JOURNAL_STREAM`, device and inode).
pub fn to_stderr(level: Level, format: Format, journal_stream: Option<&str>) {
    let lines = Lines { format, with_priority: journal_stream.is_some_and(is_stderr) };
    let registry = tracing_subscriber::registry().with(LevelFilter::from_level(level));
    match format {
        Format::Logfmt => registry.with(tracing_logfmt::builder().with_target(false).layer().with_writer(lines)).init(),
        Format::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_target(false);
            registry.with(layer.with_writer(lines)).init();
        }
    }
}

/// True if stderr is that very connection, and was not turned elsewhere.
fn is_stderr(journal_stream: &str) -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    journal_stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

struct Lines {
    format: Format,
    with_priority: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { format: self.format, priority: None, stderr: io::stderr() }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        let priority = self.with_priority.then(|| priority(*event.level()));
        Line { priority, ..self.make_writer() }
    }
}

/// As syslog(3) counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// One line, which comes in one piece.
struct Line {
    format: Format,
    priority: Option<u8>,
    stderr: Stderr,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let mut out = String::with_capacity(text.len() + 8);
        if let Some(priority) = self.priority {
            let _ = write!(out, "<{priority}>");
        }
        let mut plain = String::with_capacity(text.len() + 8);
        match self.format {
            Format::Logfmt => requote(&text, &mut plain),
            Format::Json => plain.push_str(&text),
        }
        show(&plain, &mut out);
        self.stderr.write_all(out.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stderr.flush()
    }
}

/// What does not show, as JSON has it, but for the end of the line.
fn show(line: &str, out: &mut String) {
    let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
    for character in line.chars() {
        if is_hidden(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(character);
        }
    }
    out.push_str(end);
}

/// Rust's escapes as JSON's.
fn requote(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at + 1..];
        let code = escape.strip_prefix("u{").and_then(|code| code.split_once('}'));
        let character = code.and_then(|(code, _)| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        if let (Some((_, after)), Some(character)) = (code, character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
            rest = after;
        } else {
            // Two characters, whatever they are: of `\\'` the second backslash begins nothing.
            let mut characters = escape.chars();
            match characters.next() {
                Some('\'') => out.push('\''),
                Some('0') => out.push_str("\\u0000"),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            }
            rest = characters.as_str();
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_json() {
        for odd in ["the kubelet's \"port\"", "a\\b\\'c\\", "\u{1b}[31m\0\n\t", "\u{200b}é \u{10fffe}", "plain"] {
            let mut line = String::new();
            requote(&format!("error=\"{}\"", odd.escape_debug()), &mut line);
            let value = line.strip_prefix("error=").unwrap();
            assert_eq!(serde_json::from_str::<String>(value).unwrap(), odd, "{line}");
        }
    }

    #[test]
    fn nothing_on_a_line_moves_the_cursor_or_hides() {
        let odd = "a\u{9b}31m\u{202e}b\u{200b}\nlevel=error\u{e0041}";
        let mut line = String::new();
        show(&format!("comm=\"{odd}\"\n"), &mut line);
        assert_eq!(line, "comm=\"a\\u009b31m\\u202eb\\u200b\\u000alevel=error\\udb40\\udc41\"\n");
        assert_eq!(serde_json::from_str::<String>(line.trim().strip_prefix("comm=").unwrap()).unwrap(), odd);
    }

    #[test]
    fn priorities_of_syslog() {
        assert_eq!([Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG].map(priority), [3, 4, 6, 7]);
    }

    #[test]
    fn a_stream_that_is_not_stderr() {
        assert!(!is_stderr("1:1") && !is_stderr("") && !is_stderr("nonsense"));
        let stat = rustix::fs::fstat(io::stderr()).unwrap();
        assert!(is_stderr(&format!("{}:{}", stat.st_dev, stat.st_ino)));
    }
}
