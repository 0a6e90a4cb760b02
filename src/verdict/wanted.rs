//! Which metrics a history keeps: those that something here asks for.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::promql::expression;
use super::{figure, rules};

/// The names of all metrics that a rule, an annotation or a figure asks for.
pub(super) fn wanted() -> &'static BTreeSet<String> {
    static WANTED: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let mut wanted =
            BTreeSet::from(["headroom_collector_outcome", "headroom_collector_errors_total"].map(String::from));
        for rule in rules::groups().iter().flat_map(|group| &group.rules) {
            expression::names(&rule.expr, &mut wanted);
            for text in rule.annotations.values() {
                let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
                wanted.extend(words.filter(|word| word.starts_with("headroom_")).map(String::from));
            }
        }
        figure::names(&mut wanted);
        wanted
    });
    &WANTED
}
