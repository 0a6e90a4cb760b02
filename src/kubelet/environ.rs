//! The environment that a Go program was started with.

/// The values of these names, each empty if there is none. Of a name that is there twice the first one counts
/// (`copyenv` in syscall/env_unix.go).
pub(super) fn values<'a, const N: usize>(environ: impl IntoIterator<Item = &'a str>, names: [&str; N]) -> [&'a str; N] {
    let mut found = [None; N];
    for (name, value) in environ.into_iter().filter_map(|variable| variable.split_once('=')) {
        if let Some(index) = names.iter().position(|known| *known == name) {
            found[index].get_or_insert(value);
        }
    }
    found.map(Option::unwrap_or_default)
}
