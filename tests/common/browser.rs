//! A real browser without a screen (Debian package chromium), and what a picture of it shows.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

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
    pixels: Vec<[u8; 3]>,
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
        let (mut pixels, mut colors) = (Vec::with_capacity(width * height), HashMap::new());
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
                pixels.push([pixel[0], pixel[1], pixel[2]]);
                *colors.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
            }
            above = line;
        }
        Picture { width, height, pixels, colors }
    }

    /// A PNG of 256 colours, a third as large: mostly what is lost is the edge of a letter.
    pub fn indexed(&self) -> Vec<u8> {
        let far =
            |a: &[u8; 3], b: &[u8; 3]| -> u64 { a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum() };
        // Each colour that is taken is the one whose loss would be seen most: often there, and far from all others.
        let mut left: Vec<([u8; 3], u64, u64)> =
            self.colors.iter().map(|(color, count)| (*color, *count as u64, 3 * 255 * 255)).collect();
        let mut palette = Vec::new();
        while palette.len() < 256 {
            let Some(worst) = left.iter().max_by_key(|(color, count, far)| (count * far * far, *color)) else { break };
            let taken = worst.0;
            palette.push(taken);
            left.iter_mut().for_each(|(color, _, least)| *least = far(color, &taken).min(*least));
            left.retain(|(_, _, least)| *least > 0);
        }
        let nearest = |color: &[u8; 3]| (0..palette.len()).min_by_key(|at| far(&palette[*at], color)).unwrap() as u8;
        let index: HashMap<&[u8; 3], u8> = self.colors.keys().map(|color| (color, nearest(color))).collect();
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
        for line in self.pixels.chunks_exact(self.width) {
            let line: Vec<u8> = std::iter::once(0).chain(line.iter().map(|color| index[color])).collect();
            packed.write_all(&line).unwrap();
        }
        let (width, height) = (self.width as u32, self.height as u32);
        let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 3, 0, 0, 0]].concat();
        let chunks =
            [(b"IHDR", head), (b"PLTE", palette.concat()), (b"IDAT", packed.finish().unwrap()), (b"IEND", vec![])];
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, data) in chunks {
            let (length, named) = (data.len() as u32, [&name[..], &data].concat());
            let mut sum = Crc::new();
            sum.update(&named);
            png.extend([&length.to_be_bytes()[..], &named, &sum.sum().to_be_bytes()].concat());
        }
        png
    }

    /// How many pixels have this colour, `#rrggbb`.
    pub fn count(&self, color: &str) -> usize {
        let channel = |at: usize| u8::from_str_radix(&color[at..at + 2], 16).unwrap();
        self.colors.get(&[channel(1), channel(3), channel(5)]).copied().unwrap_or(0)
    }
}

/// Width and height of a PNG of any kind.
pub fn size(png: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
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
