//! Texts of the command line and the environment become values, or one clear sentence.

use std::time::Duration;

use crate::apiserver::{self, Address};
use crate::check_config::Capacity;
use crate::kubelet::configz;

pub(super) fn telemetry_path(text: &str) -> Result<String, String> {
    let reserved = ["/healthz", "/readyz"];
    if !text.starts_with('/') || text.contains(['{', '}', '?', '#', '*', ' ']) {
        return Err("expected a path such as /metrics".to_owned());
    }
    if reserved.contains(&text) {
        return Err(format!("{text} is taken"));
    }
    Ok(text.to_owned())
}

pub(super) fn endpoint(text: &str) -> Result<String, String> {
    match crate::runtime::endpoint_path(text) {
        Some(path) => Ok(format!("unix://{path}")),
        None => Err("expected unix:///PATH or /PATH of a socket".to_owned()),
    }
}

pub(super) fn socket_path(text: &str) -> Result<String, String> {
    let path = crate::runtime::endpoint_path(text).ok_or("expected unix:///PATH or /PATH of a socket")?;
    Ok(path.to_owned())
}

pub(super) fn kubelet_url(text: &str) -> Result<configz::Ask, String> {
    if text == "off" { Ok(configz::Ask::Never) } else { configz::Address::kubelet(text).map(configz::Ask::At) }
}

pub(super) fn apiserver_url(text: &str) -> Result<apiserver::Ask, String> {
    if text == "off" { Ok(apiserver::Ask::Never) } else { Address::apiserver(text).map(apiserver::Ask::At) }
}

pub(super) fn apiserver_endpoint(text: &str) -> Result<Address, String> {
    let wrong = || format!("expected HOST:PORT, found {text:?}");
    if text.contains('/') {
        return Err(wrong());
    }
    Address::apiserver(&format!("https://{text}")).map_err(|_| wrong())
}

pub(super) fn probe_path(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if text.starts_with('/') && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("expected a path such as /livez".to_owned())
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    crate::kubelet::quantity::duration(text).map_err(|_| "expected a duration such as 500ms, 10s or 1m30s".to_owned())
}

pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("must be longer than 0s".to_owned()) } else { Ok(time) })
}

/// One `NAME=QUANTITY` of `--capacity`.
pub(super) fn capacity(text: &str) -> Result<Capacity, String> {
    let wrong = || format!("expected NAME=QUANTITY with one of {}", Capacity::NAMES.join(", "));
    let (name, quantity) = text.split_once('=').ok_or_else(wrong)?;
    let name = Capacity::NAMES.into_iter().find(|known| *known == name).ok_or_else(wrong)?;
    // People write GiB; Kubernetes does not.
    let quantity = quantity.strip_suffix("iB").map_or_else(|| quantity.to_owned(), |number| format!("{number}i"));
    let amount = crate::kubelet::quantity::quantity(&quantity).map_err(|error| error.to_string())?;
    match u64::try_from(amount) {
        Ok(0) | Err(_) => Err("expected more than nothing, and less than 16 EiB".to_owned()),
        Ok(amount) => Ok(Capacity { name, amount }),
    }
}

/// Whether output has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    Always,
    Never,
}

/// What `--color` takes.
pub(super) const COLORS: [&str; 3] = ["auto", "always", "never"];

impl Color {
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "always" => Color::Always,
            "never" => Color::Never,
            _ => Color::Auto,
        }
    }

    pub(super) fn wanted(self, terminal: bool) -> bool {
        #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        match self {
            Color::Auto => {
                terminal && variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
            }
            Color::Always => true,
            Color::Never => false,
        }
    }
}
