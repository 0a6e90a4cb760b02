//! What a process calls itself, where people look: at a terminal, in the log, on `/`; and on the metrics page.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::process::{Command, Stdio};

use crate::common::{self, Exporter};
use crate::eviction::start;

/// Near its limit, so that it is shown, under a name that hides itself and turns the line around.
const SCRIPT: &str = "
import ctypes, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
held = [os.open('/dev/null', os.O_RDONLY) for _ in range(292)]
os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(15, b'\\x1b[8m\\xe2\\x80\\xae\\xc2\\x9bevil', 0, 0, 0)
sys.stdin.read()
";
const NAME: &str = "\u{1b}[8m\u{202e}\u{9b}evil";

/// What a terminal would obey, or not show.
fn obeyed(text: &str) -> bool {
    text.contains(['\u{1b}', '\u{9b}', '\u{202e}'])
}

#[test]
fn a_name_moves_no_cursor_and_turns_no_line() {
    alone!();
    if !common::is_root() || !common::has("python3") {
        skip!("needs root and python3");
    }
    let _tenant = start(Command::new("python3").args(["-c", SCRIPT]), NAME);
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
    doctor.args(["doctor", "--no-runtime", "--apiserver.url=off", "--kubelet.url=off", "--for=1s"]);
    let output = doctor.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\\u{1b}[8m\\u{202e}\\u{9b}evil"), "it is told, and seen: {text}");
    assert!(!obeyed(&text), "{text:?}");

    let exporter = Exporter::start(&["--no-runtime"]);
    let series: Vec<String> = exporter
        .scrape()
        .family("headroom_process_open_fds")
        .map(|(series, _)| series.to_owned())
        .filter(|series| series.contains("evil"))
        .collect();
    assert!(series.len() == 1 && series[0].contains(NAME), "metrics have names as they are: {series:?}");
    let page = exporter.get("/", &[]).text();
    assert!(page.contains("evil") && !obeyed(&page));
    let (_, log) = exporter.stop(rustix::process::Signal::TERM);
    assert!(!obeyed(&log), "{log:?}");
}
