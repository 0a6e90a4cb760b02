//! A real browser without a screen (Debian package chromium), and what a picture of it shows.
#![allow(unreachable_pub, reason = "the parts of one test")]

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Two minutes are for a machine on which everything else runs at the same time; it takes half a second.
const TIMEOUT: &str = "120";

const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
];

/// What the reader has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

fn chromium(scheme: Scheme, arguments: &[&str], url: &str) -> Vec<u8> {
    let profile = tempfile::tempdir().unwrap();
    let preferred = match scheme {
        Scheme::Dark => "--blink-settings=preferredColorScheme=0",
        Scheme::Light => "--blink-settings=preferredColorScheme=1",
    };
    let output = Command::new("timeout")
        .args(["--kill-after=5", TIMEOUT, "chromium"])
        .args(FLAGS)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(preferred)
        .args(arguments)
        .arg(url)
        .env("HOME", profile.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What this page looks like in a window of this size.
pub fn picture(url: &str, scheme: Scheme, (width, height): (u32, u32), file: &Path) -> Picture {
    let (shot, size) = (format!("--screenshot={}", file.display()), format!("--window-size={width},{height}"));
    chromium(scheme, &[&shot, &size], url);
    Picture::decode(&std::fs::read(file).unwrap())
}

/// The page's elements after its scripts have run.
pub fn dom(url: &str) -> String {
    String::from_utf8(chromium(Scheme::Light, &["--dump-dom", "--window-size=1300,900"], url)).unwrap()
}

/// A decoded PNG.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    colors: HashMap<[u8; 3], usize>,
}

impl Picture {
    /// Of the kinds that browsers write: eight bits for each of three or four channels, not interlaced.
    pub fn decode(png: &[u8]) -> Self {
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG");
        let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        let (width, height, channels) = (number(16), number(20), if png[25] == 6 { 4 } else { 3 });
        assert!(png[24] == 8 && matches!(png[25], 2 | 6) && png[28] == 0, "another kind of PNG");
        let (mut at, mut packed) = (8, Vec::new());
        while at < png.len() {
            let length = number(at);
            if &png[at + 4..at + 8] == b"IDAT" {
                packed.extend_from_slice(&png[at + 8..at + 8 + length]);
            }
            at += 12 + length;
        }
        let mut raw = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut raw).unwrap();
        let mut above = vec![0; width * channels];
        let mut colors = HashMap::new();
        for line in raw.chunks_exact(1 + width * channels) {
            let (filter, mut line) = (line[0], line[1..].to_vec());
            for x in 0..line.len() {
                let left = if x < channels { 0 } else { line[x - channels] };
                let corner = if x < channels { 0 } else { above[x - channels] };
                let guess = match filter {
                    0 => 0,
                    1 => left,
                    2 => above[x],
                    3 => u16::midpoint(left.into(), above[x].into()) as u8,
                    _ => paeth(left, above[x], corner),
                };
                line[x] = line[x].wrapping_add(guess);
            }
            for pixel in line.chunks_exact(channels) {
                *colors.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
            }
            above = line;
        }
        Picture { width, height, colors }
    }

    /// How many pixels have this colour, `#rrggbb`.
    pub fn count(&self, color: &str) -> usize {
        let channel = |at: usize| u8::from_str_radix(&color[at..at + 2], 16).unwrap();
        self.colors.get(&[channel(1), channel(3), channel(5)]).copied().unwrap_or(0)
    }
}

fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let guess = i16::from(left) + i16::from(above) - i16::from(corner);
    let far = |from: u8| (guess - i16::from(from)).abs();
    match (far(left), far(above), far(corner)) {
        (a, b, c) if a <= b && a <= c => left,
        (_, b, c) if b <= c => above,
        _ => corner,
    }
}
