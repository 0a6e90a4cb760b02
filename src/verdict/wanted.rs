//! Which metrics a history keeps: those that something here asks for.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::promql::expression;
use super::{facts, figure, rules};

/// What says whether a mode could be looked at.
const JUDGED: [&str; 3] = ["headroom_collector_outcome", "headroom_collector_errors_total", "headroom_kubelet_running"];

/// The names of all metrics that a rule, an annotation, a figure or a fact asks for.
pub(super) fn wanted() -> &'static BTreeSet<String> {
    static WANTED: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let mut wanted = BTreeSet::from(JUDGED.map(String::from));
        for rule in rules::groups().iter().flat_map(|group| &group.rules) {
            expression::names(&rule.expr, &mut wanted);
            for text in rule.annotations.values() {
                let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
                wanted.extend(words.filter(|word| word.starts_with("headroom_")).map(String::from));
            }
        }
        figure::names(&mut wanted);
        facts::names(&mut wanted);
        wanted
    });
    &WANTED
}

#[cfg(test)]
mod tests {
    use promql_parser::parser::Expr;

    use super::*;
    use crate::verdict::promql::{aggregate, functions};

    /// Adds the names of functions and aggregations.
    fn called(expr: &Expr, names: &mut BTreeSet<String>) {
        match expr {
            Expr::Call(call) => drop(names.insert(call.func.name.to_owned())),
            Expr::Aggregate(aggregate) => drop(names.insert(aggregate.op.to_string())),
            _ => {}
        }
        expression::children(expr).into_iter().for_each(|child| called(child, names));
    }

    #[test]
    fn the_evaluator_knows_every_function_that_is_used_and_no_other() {
        let rules = || rules::groups().iter().flat_map(|group| &group.rules);
        let mut used = BTreeSet::new();
        rules()
            .map(|rule| &rule.expr)
            .chain(figure::expressions())
            .chain(facts::expressions())
            .for_each(|expr| called(expr, &mut used));
        // Queries in annotations are put together when they are rendered: `query (printf "topk(5, x{instance=%q})" …)`.
        for query in rules().flat_map(|rule| rule.annotations.values()).flat_map(|text| text.split("printf \"").skip(1))
        {
            let end = query.match_indices('"').map(|(at, _)| at).find(|at| !query[..*at].ends_with('\\'));
            let query = query[..end.unwrap()].replace("\\\"", "\"").replace("%q", "\"x\"");
            if !query.contains("headroom_") {
                continue;
            }
            called(&expression::parse(&query).unwrap(), &mut used);
        }
        let known: BTreeSet<String> = functions::names().chain(aggregate::NAMES).map(String::from).collect();
        assert_eq!(used, known);
    }
}
