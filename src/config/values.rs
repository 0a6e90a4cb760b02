//! Texts of the command line and the environment become values, or one clear sentence.

use crate::check_config::Capacity;

pub(super) fn telemetry_path(text: &str) -> Result<String, String> {
    let reserved = ["/healthz", "/readyz"];
    if !text.starts_with('/') || text.contains(['{', '}', '?', '#', '*', ' ']) {
        return Err("expected a path such as /metrics".to_owned());
    }
    if reserved.contains(&text) {
        return Err(format!("{text} is taken: the exporter itself answers there"));
    }
    Ok(text.to_owned())
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
