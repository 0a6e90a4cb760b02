//! Expressions: parsed, and checked for what the evaluator knows, so that a rule with something else is red at once.

use std::collections::BTreeSet;
use std::time::Duration;

use promql_parser::parser::{Expr, Offset, VectorSelector};

use super::{aggregate, functions};

/// Parses one expression.
///
/// # Errors
/// What is not PromQL, and what the evaluator does not know.
pub fn parse(text: &str) -> Result<Expr, String> {
    let expr = promql_parser::parser::parse(text)?;
    check(&expr)?;
    Ok(expr)
}

fn check(expr: &Expr) -> Result<(), String> {
    match expr {
        Expr::Aggregate(aggregate) if !aggregate::NAMES.contains(&aggregate.op.to_string().as_str()) => {
            return Err(format!("aggregation {} is not supported", aggregate.op));
        }
        Expr::Binary(binary) if binary.op.to_string() == "atan2" => return Err("atan2 is not supported".into()),
        Expr::Binary(binary)
            if binary
                .modifier
                .as_ref()
                .is_some_and(|modifier| modifier.fill_values.lhs.is_some() || modifier.fill_values.rhs.is_some()) =>
        {
            return Err("fill is not supported".into());
        }
        Expr::Call(call) if !functions::known(call.func.name) => {
            return Err(format!("function {} is not supported", call.func.name));
        }
        Expr::VectorSelector(selector) => check_selector(selector)?,
        Expr::MatrixSelector(selector) => check_selector(&selector.vs)?,
        Expr::Subquery(_) | Expr::Extension(_) => return Err("subqueries are not supported".into()),
        _ => {}
    }
    children(expr).into_iter().try_for_each(check)
}

fn check_selector(selector: &VectorSelector) -> Result<(), String> {
    match (&selector.at, selector.matchers.or_matchers.is_empty()) {
        (Some(_), _) => Err("the modifier @ is not supported".into()),
        (None, false) => Err("or between label matchers is not supported".into()),
        (None, true) => Ok(()),
    }
}

/// The expressions right below one.
pub(in crate::verdict) fn children(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Aggregate(aggregate) => aggregate.param.iter().map(|param| &**param).chain([&*aggregate.expr]).collect(),
        Expr::Unary(unary) => vec![&unary.expr],
        Expr::Binary(binary) => vec![&binary.lhs, &binary.rhs],
        Expr::Paren(paren) => vec![&paren.expr],
        Expr::Subquery(subquery) => vec![&subquery.expr],
        Expr::Call(call) => call.args.args.iter().map(|argument| &**argument).collect(),
        _ => Vec::new(),
    }
}

/// Adds the names of the metrics that it selects.
pub(in crate::verdict) fn names(expr: &Expr, names: &mut BTreeSet<String>) {
    let name = match expr {
        Expr::VectorSelector(selector) => selector.name.clone(),
        Expr::MatrixSelector(selector) => selector.vs.name.clone(),
        _ => None,
    };
    names.extend(name);
    children(expr).into_iter().for_each(|child| self::names(child, names));
}

/// Adds what it selects, as text without a range or an offset: `name{label="value"}`.
pub(in crate::verdict) fn selectors(expr: &Expr, selectors: &mut BTreeSet<String>) {
    let selector = match expr {
        Expr::VectorSelector(selector) => Some(selector),
        Expr::MatrixSelector(selector) => Some(&selector.vs),
        _ => None,
    };
    selectors.extend(selector.map(|selector| VectorSelector { offset: None, ..selector.clone() }.to_string()));
    children(expr).into_iter().for_each(|child| self::selectors(child, selectors));
}

/// The alternatives of an expression: the operands of its outermost `or`.
pub(in crate::verdict) fn alternatives(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Paren(paren) => alternatives(&paren.expr),
        Expr::Binary(binary) if binary.op.to_string() == "or" => {
            let mut all = alternatives(&binary.lhs);
            all.extend(alternatives(&binary.rhs));
            all
        }
        other => vec![other],
    }
}

/// How far an expression looks back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::verdict) struct Windows {
    /// The longest reach of a selector, its range and its offset together.
    pub(in crate::verdict) longest: Duration,
    /// The same, of functions that tell a slope.
    pub(in crate::verdict) trend: Duration,
}

fn offset(selector: &VectorSelector) -> Duration {
    match selector.offset {
        Some(Offset::Pos(back)) => back,
        _ => Duration::ZERO,
    }
}

pub(in crate::verdict) fn windows(expr: &Expr) -> Windows {
    let mut windows = children(expr).into_iter().map(windows).fold(Windows::default(), |all, one| Windows {
        longest: all.longest.max(one.longest),
        trend: all.trend.max(one.trend),
    });
    let back = match expr {
        Expr::MatrixSelector(selector) => selector.range + offset(&selector.vs),
        Expr::VectorSelector(selector) => offset(selector),
        _ => Duration::ZERO,
    };
    windows.longest = windows.longest.max(back);
    if let Expr::Call(call) = expr
        && functions::SLOPES.contains(&call.func.name)
    {
        windows.trend = windows.trend.max(windows.longest);
    }
    windows
}
