//! What is released: the image and the archive, made as `docs/release.md` says, and run.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod image;
mod names;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use image::{Image, REVISION, WHEN};
use memchr::memmem;
use names::NameServer;
use serde_json::{Value, json};

use crate::common::netns::{self, Namespace};
use crate::common::{eventually, shell};

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[test]
fn the_image_is_small_says_what_it_is_and_can_be_made_again() {
    let image = match Image::shared() {
        Ok(image) => image,
        Err(why) => skip!("{why}"),
    };

    let files = shell(&format!("cd {} && find . -type f | sort", image.root.display()));
    let expected = ["./bin/headroom-exporter", "./usr/share/licenses/headroom-exporter/LICENSE"];
    assert_eq!(files.lines().collect::<Vec<_>>(), expected, "nothing but the binary and its licence");
    let binary = fs::metadata(image.binary()).unwrap();
    assert!((5_000_000..12_000_000).contains(&binary.len()), "{}", binary.len());
    assert_eq!((binary.mode() & 0o7777, binary.uid(), binary.gid()), (0o755, 0, 0));
    assert_eq!(binary.mtime().to_string(), WHEN);

    let config = &image.config["config"];
    assert_eq!(config["User"], "65534:65534");
    assert_eq!(config["Entrypoint"], json!(["/bin/headroom-exporter"]));
    assert_eq!(config["ExposedPorts"], json!({"10843/tcp": {}}));
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str().unwrap();
    assert_eq!((label("version"), label("revision"), label("licenses")), (VERSION, REVISION, "Apache-2.0"));
    assert_eq!(label("source"), "https://github.com/headroom-exporter/headroom-exporter");

    let said = Command::new(image.binary()).arg("--version").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said, format!("headroom-exporter {VERSION} (revision {})\n", &REVISION[..12]));

    let bytes = fs::read(image.binary()).unwrap();
    let drill = fs::read(env!("CARGO_BIN_EXE_headroom-drill")).unwrap();
    for word in ["headroom-drill", "cgroups-rs"] {
        assert!(memmem::find(&drill, word.as_bytes()).is_some(), "{word} would be found");
        assert!(memmem::find(&bytes, word.as_bytes()).is_none(), "{word} is in the released binary");
    }
    let home = shell(r#"echo "${CARGO_HOME:-$HOME/.cargo}""#);
    for place in [env!("CARGO_MANIFEST_DIR"), home.trim()] {
        assert!(memmem::find(&bytes, place.as_bytes()).is_none(), "the binary depends on the folder {place}");
    }

    let again = Image::again();
    assert_eq!(again.id(), image.id(), "the same sources give the same image");
}

#[test]
fn as_nobody_with_nothing_the_image_serves_and_says_what_is_denied() {
    let image = match Image::shared() {
        Ok(image) => image,
        Err(why) => skip!("{why}"),
    };
    let container = image.run(&[], |_| {});
    assert_eq!(container.status("Uid"), "65534\t65534\t65534\t65534");
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(container.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(container.status("NoNewPrivs"), "1");

    let page = container.exporter.scrape();
    let build = format!(
        "headroom_build_info{{version=\"{VERSION}\",revision=\"{REVISION}\",arch=\"{}\"}}",
        std::env::consts::ARCH
    );
    assert_eq!(page.value(&build), 1.0);
    // Other users' processes are not ours to read: said, and what everybody may read is there all the same.
    assert_eq!(page.outcome("open_files"), "failed");
    assert!(page.errors("open_files", "denied") > 0.0, "{page:#?}");
    assert!(page.value("headroom_file_handles_allocated") > 0.0);
    // There is no /sys in this container, and no apiserver.
    assert_eq!(page.outcome("node_status"), "not_applicable");
    assert_eq!(container.exporter.get("/healthz", &[]).status, 200);
}

#[test]
fn with_what_a_daemonset_gives_the_image_sees_the_machine() {
    let image = match Image::shared() {
        Ok(image) => image,
        Err(why) => skip!("{why}"),
    };
    let paths = ["--path.procfs=/proc", "--path.sysfs=/host/sys", "--path.rootfs=/host/root", "--no-runtime"];
    let container = image.run(&paths, |bundle| {
        let capabilities = json!(["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"]);
        bundle["process"]["user"] = json!({"uid": 0, "gid": 0});
        bundle["process"]["capabilities"] =
            json!({"bounding": capabilities, "permitted": capabilities, "effective": capabilities});
        let mount = |from: &str, to: &str| {
            json!({"destination": to, "type": "none", "source": from, "options": ["rbind", "ro", "rslave"]})
        };
        let mounts = bundle["mounts"].as_array_mut().unwrap();
        mounts.extend([mount("/", "/host/root"), mount("/sys", "/host/sys")]);
    });
    let page = container.exporter.scrape();
    for collector in ["cgroup_leak", "kmem", "eviction", "open_files"] {
        assert_eq!(page.outcome(collector), "ok", "{collector}: {page:#?}");
    }
    let blocks = shell("stat -f -c '%b %S' /var/lib/kubelet 2>/dev/null || stat -f -c '%b %S' /var/lib");
    let capacity: f64 = blocks.split_whitespace().map(|word| word.parse::<f64>().unwrap()).product();
    assert_eq!(page.value("headroom_eviction_capacity_bytes{signal=\"nodefs.available\"}"), capacity);
    let own = format!("headroom_process_fd_limit{{pid=\"{}\"", container.status("Pid"));
    assert!(page.0.keys().any(|series| series.starts_with(&own)), "{own}: {page:#?}");
}

/// The binary is static, and the image has no NSS libraries: names must be found all the same, by DNS with search
/// domains and by /etc/hosts.
#[test]
fn the_static_binary_finds_names() {
    if let Some(missing) = netns::lacking() {
        skip!("no {missing} here");
    }
    let image = match Image::shared() {
        Ok(image) => image,
        Err(why) => skip!("{why}"),
    };
    let namespace = Namespace::new();
    let names = NameServer::start(&namespace, "apiserver.cluster.test");
    let etc = tempfile::tempdir().unwrap();
    let resolver = "nameserver 127.0.0.1\nsearch cluster.test\noptions ndots:5 timeout:1 attempts:1\n";
    fs::write(etc.path().join("resolv.conf"), resolver).unwrap();
    fs::write(etc.path().join("hosts"), "127.0.0.1 from-the-hosts-file\n").unwrap();
    let start = |url: &str| {
        let arguments = [
            &format!("--apiserver.url={url}"),
            "--apiserver.probe-interval=1s",
            "--apiserver.probe-timeout=900ms",
            "--apiserver.insecure-skip-verify",
        ];
        image.run(&arguments, |bundle| {
            let network = json!({"type": "network", "path": format!("/proc/{}/ns/net", namespace.init())});
            bundle["linux"]["namespaces"].as_array_mut().unwrap().push(network);
            for file in ["resolv.conf", "hosts"] {
                bundle["mounts"].as_array_mut().unwrap().push(json!({
                    "destination": format!("/etc/{file}"),
                    "type": "none",
                    "source": etc.path().join(file),
                    "options": ["bind", "ro"],
                }));
            }
        })
    };
    let count = |container: &image::Container, result: &str| {
        let series = format!("headroom_apiserver_probe_total{{connection=\"fresh\",result=\"{result}\"}}");
        namespace.inside(|| container.exporter.scrape()).get(&series).unwrap_or(0.0)
    };

    let by_dns = start("https://apiserver:6443");
    eventually("a name that nobody knows is not found", || count(&by_dns, "dns") > 0.0);
    assert_eq!(count(&by_dns, "refused"), 0.0);
    names.know();
    eventually("a name is found by DNS, with a search domain", || count(&by_dns, "refused") > 0.0);
    drop(by_dns);

    let by_file = start("https://from-the-hosts-file:6443");
    eventually("a name is found in /etc/hosts", || count(&by_file, "refused") > 0.0);
    assert_eq!(count(&by_file, "dns"), 0.0);
}

/// Runs `deploy/release/build` with the image's binary.
fn archive(image: &Image, out: &Path) {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/release/build"))
        .arg("--binary")
        .arg(image.binary())
        .arg("--out")
        .arg(out)
        .envs([("HEADROOM_COMMIT", REVISION), ("SOURCE_DATE_EPOCH", WHEN), ("CARGO_NET_OFFLINE", "true")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_archive_has_all_that_a_machine_needs_and_can_be_made_again() {
    let image = match Image::shared() {
        Ok(image) => image,
        Err(why) => skip!("{why}"),
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    archive(&image, one.path());
    archive(&image, two.path());
    let sums = |folder: &tempfile::TempDir| fs::read_to_string(folder.path().join("SHA256SUMS")).unwrap();
    assert_eq!(sums(&one), sums(&two), "the same commit gives the same bytes");
    shell(&format!("cd {} && sha256sum --check --strict SHA256SUMS", one.path().display()));

    let target = shell("rustc -vV | sed -n 's/^host: //p'");
    let name = format!("headroom-exporter-{VERSION}-{}", target.trim());
    shell(&format!("cd {} && tar -xzf {name}.tar.gz", one.path().display()));
    let folder = one.path().join(&name);
    let modes = headroom::modes::MODES.iter().map(|mode| mode.id).chain(["exporter"]);
    let mut files: Vec<String> =
        modes.flat_map(|mode| [format!("alerts/{mode}/rules.yaml"), format!("alerts/{mode}/runbook.md")]).collect();
    files.extend(
        ["LICENSE", "README.md", "CHANGELOG.md", "dashboards/fleet.json", "systemd/headroom-exporter.service"]
            .map(str::to_owned),
    );
    for file in files {
        let there = fs::read(folder.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let here = [file.clone(), file.replace("systemd/", "deploy/systemd/")]
            .into_iter()
            .find_map(|file| fs::read(file).ok());
        assert_eq!(Some(there), here, "{file}");
    }
    let said = shell(&format!("{}/headroom-exporter --version", folder.display()));
    assert!(said.contains(VERSION) && said.contains(&REVISION[..12]), "{said}");
    // The man page and the completions, as far as this binary has them.
    let speaks = Command::new(image.binary()).arg("man").output().unwrap().status.success();
    for file in ["man/headroom-exporter.1", "completions/headroom-exporter.bash"] {
        assert_eq!(folder.join(file).exists(), speaks, "{file}");
    }
    let changes = fs::read_to_string("CHANGELOG.md").unwrap();
    assert!(changes.contains(&format!("## [{VERSION}]")), "CHANGELOG.md has nothing of {VERSION}");

    // The inventory is of this binary: what it links, by the checksums of Cargo.lock, and nothing of tests, build
    // scripts and macros.
    let sbom = fs::read_to_string(one.path().join(format!("{name}.cdx.json"))).unwrap();
    let sbom: Value = serde_json::from_str(&sbom).unwrap();
    assert_eq!((&sbom["bomFormat"], &sbom["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    let components = sbom["components"].as_array().unwrap();
    let lock = fs::read_to_string("Cargo.lock").unwrap();
    for component in components.iter().filter(|component| component["purl"].as_str().unwrap().starts_with("pkg:cargo/"))
    {
        let sum = component["hashes"][0]["content"].as_str().unwrap();
        let name = component["name"].as_str().unwrap();
        let version = component["version"].as_str().unwrap();
        let row = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let locked = lock.split("\n\n").find(|package| package.contains(&row)).unwrap_or_else(|| panic!("{row}"));
        assert!(locked.contains(sum), "{component}");
        assert!(!component["licenses"][0]["expression"].as_str().unwrap().is_empty(), "{component}");
    }
    let named: BTreeSet<&str> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
    assert!(
        ["tokio", "rustls", "ring", "h2", "glibc", "rust-std"].iter().all(|name| named.contains(name)),
        "{named:?}"
    );
    assert!(
        ["cgroups-rs", "tempfile", "rcgen", "clap_derive", "cc"].iter().all(|name| !named.contains(name)),
        "{named:?}"
    );
    let refs: BTreeSet<&str> = components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
    for dependency in sbom["dependencies"].as_array().unwrap() {
        let on = dependency["dependsOn"].as_array().unwrap();
        assert!(on.iter().all(|on| refs.contains(on.as_str().unwrap())), "{dependency}");
    }
    let licences = fs::read_to_string(folder.join("THIRD-PARTY.txt")).unwrap();
    for component in components.iter().filter(|component| component["hashes"].is_array()) {
        let row = format!("\n{} {}: ", component["name"].as_str().unwrap(), component["version"].as_str().unwrap());
        assert!(licences.contains(&row), "{row}");
    }
    assert!(licences.contains("Permission is hereby granted, free of charge"), "texts, not only names");
}
