//! What of the page can be told without a node: escaping, the style's colours, its hash, and small texts.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;

use super::*;

#[test]
fn text_cannot_become_markup() {
    let text = |text: &str| Text(text).render().into_string();
    assert_eq!(text("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    assert_eq!(text("a\tb\u{7f}\u{85}\u{202e}c\nd\u{200b} é €"), "a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}c\nd\u{fffd} é €");
}

#[test]
fn the_policy_knows_the_style() {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(STYLE.as_bytes()).unwrap();
    let printed = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    let bytes: Vec<u8> = (0..64).step_by(2).map(|at| u8::from_str_radix(&printed[at..at + 2], 16).unwrap()).collect();
    let hash = format!("'sha256-{}'", base64::engine::general_purpose::STANDARD.encode(bytes));
    assert!(POLICY.contains(&hash), "page.css has changed: its hash in POLICY is now {hash}");
    // A browser hashes what stands between the tags; these would end it early or change it.
    assert!(!STYLE.contains(['<', '\r']));
}

/// Variables of the style: the light ones, and the dark ones over them.
fn colors(dark: bool) -> Vec<(&'static str, [f64; 3])> {
    let block = STYLE.split(":root{").nth(if dark { 2 } else { 1 }).unwrap();
    let block = block.split('}').next().unwrap();
    let variables = block.split(';').filter_map(|line| line.trim().strip_prefix("--")?.split_once(":#"));
    let channel = |hex: &str, at: usize| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
    variables.map(|(name, hex)| (name, [channel(hex, 0), channel(hex, 2), channel(hex, 4)])).collect()
}

/// WCAG 2: (L1 + 0.05) / (L2 + 0.05).
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let linear =
        |channel: f64| if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) };
    let luminance = |[r, g, b]: [f64; 3]| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
    let (a, b) = (luminance(a), luminance(b));
    if a > b { a / b } else { b / a }
}

#[test]
fn colors_have_the_contrast_of_wcag_aa() {
    assert!((contrast([1.0; 3], [0.0; 3]) - 21.0).abs() < 1e-9);
    for dark in [false, true] {
        let colors = colors(dark);
        let of = |name: &str| colors.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no {name}")).1;
        let texts = ["ink", "dim", "link"].into_iter().flat_map(|text| [(text, "bg"), (text, "card"), (text, "code")]);
        let chips = [
            ("act-ink", "act-bg"),
            ("watch-ink", "watch-bg"),
            ("blind-ink", "blind-bg"),
            ("ok-ink", "ok-bg"),
            ("off-ink", "off-bg"),
        ];
        for (text, ground) in texts.chain(chips) {
            let contrast = contrast(of(text), of(ground));
            assert!(contrast >= 4.5, "dark {dark}: {text} on {ground}: {contrast:.2}");
        }
    }
}

#[test]
fn neighbours_of_a_kind_share_an_element() {
    let out = blocks(["One.", "- a", "- b", "$ ls <x>", "$ df", "Two."].into_iter()).into_string();
    assert_eq!(out, "<p>One.</p>\n<ul><li>a</li><li>b</li></ul>\n<pre>ls &lt;x&gt;\ndf</pre>\n<p>Two.</p>\n");
}

#[test]
fn times_in_two_units_at_the_most() {
    let rough = |seconds: u64| rough(Duration::from_secs(seconds));
    let texts = [5, 119, 7_200, 20_400, 172_800, 1_047_600].map(rough);
    assert_eq!(texts, ["5 s", "1 min", "2 h", "5 h 40 min", "2 d", "12 d 3 h"]);
}

#[test]
fn of_nothing_there_is_a_page_too() {
    let report =
        Report { node: "n".into(), kernel: None, at: std::time::UNIX_EPOCH, sampled: Duration::ZERO, rows: Vec::new() };
    let page = render(&report, Site { telemetry_path: "/m\"<", uptime: None, pages: 0, age: None });
    assert!(page.contains("<title>off · n · headroom</title>") && page.contains("no sample yet"), "{page}");
    assert!(page.contains("href=\"/m&quot;&lt;\""));
}
