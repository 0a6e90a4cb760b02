//! What the command says about itself, read by those who read it: bash and man.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::process::{Command, Stdio};

fn exporter(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_headroom-exporter")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_flags_with_dots_subcommands_and_values() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("completions");
    std::fs::write(&script, exporter(&["completions", "bash"])).unwrap();
    let complete = |words: &str, before: &str| {
        let program = format!(
            "set -eu; source {}; name=$(complete -p headroom-exporter | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
             COMP_WORDS=(headroom-exporter {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
             \"$name\" headroom-exporter \"${{COMP_WORDS[COMP_CWORD]}}\" {before}
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = Command::new("bash").args(["--norc", "-c", &program]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(complete("--web.m", "headroom-exporter").contains(&"--web.max-requests".to_owned()));
    assert_eq!(complete("che", "headroom-exporter"), ["check-config"]);
    assert_eq!(complete("completions fi", "completions"), ["fish"]);
    assert_eq!(complete("--log.format js", "--log.format"), ["json"]);
    assert!(complete("check-config --cap", "check-config").contains(&"--capacity".to_owned()));
}

#[test]
fn every_shell_has_the_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = exporter(&["completions", shell]);
        assert!(text.contains("web.listen-address") && text.contains("check-config"), "{shell}");
    }
}

#[test]
fn the_man_pages_are_read_without_a_complaint() {
    for (arguments, words) in [
        (vec!["man"], ["Path of the metrics page", "check-config"]),
        (vec!["man", "check-config"], ["--capacity", "Exit codes"]),
    ] {
        let page = exporter(&arguments);
        assert!(page.contains(".TH headroom-exporter"), "{page}");
        let mut groff = Command::new("groff")
            .args(["-k", "-man", "-Tutf8", "-P-cbou", "-Wbreak"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = groff.stdin.take().unwrap();
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, page.as_bytes()));
        let output = groff.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        let (text, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && complaints.is_empty(), "{complaints}");
        // Lines are broken and filled with blanks as the width wants it.
        let text = text.replace(['\u{2010}', '\u{2212}'], "-");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in words {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}

/// README's first command: of the two programs `cargo run` takes the exporter.
#[test]
fn cargo_run_runs_the_exporter() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(metadata["packages"][0]["default_run"], "headroom-exporter");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    assert!(readme.contains("\ncargo run --release "), "README says another command");
}
