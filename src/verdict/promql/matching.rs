//! Binary operators: which element meets which, and what labels the result has.

use std::collections::{HashMap, HashSet};

use promql_parser::parser::{BinModifier, BinaryExpr, LabelModifier, VectorMatchCardinality};

use super::eval::{Element, Evaluator, Value};
use super::labels::{Labels, NAME};

pub(in crate::verdict) fn binary(evaluator: &Evaluator<'_>, expr: &BinaryExpr) -> Result<Value, String> {
    let op = expr.op.to_string();
    let op = op.as_str();
    let default = BinModifier::default();
    let modifier = expr.modifier.as_ref().unwrap_or(&default);
    let left = evaluator.eval(&expr.lhs)?;
    // Of nothing only `or` makes something; most rules end here on a healthy node.
    if op != "or" && matches!(&left, Value::Vector(vector) if vector.is_empty()) {
        return Ok(left);
    }
    match (left, evaluator.eval(&expr.rhs)?) {
        (Value::Scalar(left), Value::Scalar(right)) => Ok(Value::Scalar(match compare(op, left, right) {
            Some(holds) => f64::from(holds),
            None => arithmetic(op, left, right)?,
        })),
        (Value::Vector(vector), Value::Scalar(scalar)) => with_scalar(op, vector, scalar, false, modifier.return_bool),
        (Value::Scalar(scalar), Value::Vector(vector)) => with_scalar(op, vector, scalar, true, modifier.return_bool),
        (Value::Vector(left), Value::Vector(right)) => match op {
            "and" | "or" | "unless" => Ok(Value::Vector(set(op, left, right, modifier))),
            _ => vectors(op, left, right, modifier).map(Value::Vector),
        },
        _ => Err(format!("a text stands beside {op}")),
    }
}

fn compare(op: &str, left: f64, right: f64) -> Option<bool> {
    Some(match op {
        "==" => left == right,
        "!=" => left != right,
        ">" => left > right,
        "<" => left < right,
        ">=" => left >= right,
        "<=" => left <= right,
        _ => return None,
    })
}

fn arithmetic(op: &str, left: f64, right: f64) -> Result<f64, String> {
    Ok(match op {
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left / right,
        "%" => left % right,
        "^" => left.powf(right),
        _ => return Err(format!("operator {op} is not supported")),
    })
}

/// The value of a result and whether it keeps the metric's name, or nothing if a filter takes it away.
fn apply(op: &str, left: f64, right: f64, return_bool: bool) -> Result<Option<(f64, bool)>, String> {
    Ok(match compare(op, left, right) {
        Some(holds) if return_bool => Some((f64::from(holds), false)),
        Some(holds) => holds.then_some((left, true)),
        None => Some((arithmetic(op, left, right)?, false)),
    })
}

fn with_scalar(op: &str, vector: Vec<Element>, scalar: f64, swap: bool, return_bool: bool) -> Result<Value, String> {
    let mut result = Vec::with_capacity(vector.len());
    for Element { labels, value } in vector {
        let (left, right) = if swap { (scalar, value) } else { (value, scalar) };
        match apply(op, left, right, return_bool)? {
            // A filter hands on the vector's value, on whichever side it stands.
            Some((_, true)) => result.push(Element { labels, value }),
            Some((value, false)) => result.push(Element { labels: labels.without_name(), value }),
            None => {}
        }
    }
    Ok(Value::Vector(result))
}

fn signature(labels: &Labels, matching: Option<&LabelModifier>) -> Labels {
    match matching {
        Some(LabelModifier::Include(on)) => labels.keep(&on.labels),
        Some(LabelModifier::Exclude(ignoring)) => labels.without(&ignoring.labels),
        None => labels.without_name(),
    }
}

fn set(op: &str, left: Vec<Element>, right: Vec<Element>, modifier: &BinModifier) -> Vec<Element> {
    let of = |element: &Element| signature(&element.labels, modifier.matching.as_ref());
    if op == "or" {
        let known: HashSet<Labels> = left.iter().map(of).collect();
        let rest = right.into_iter().filter(|element| !known.contains(&of(element)));
        return left.into_iter().chain(rest).collect();
    }
    let known: HashSet<Labels> = right.iter().map(of).collect();
    left.into_iter().filter(|element| known.contains(&of(element)) == (op == "and")).collect()
}

fn vectors(op: &str, left: Vec<Element>, right: Vec<Element>, modifier: &BinModifier) -> Result<Vec<Element>, String> {
    let swap = matches!(modifier.card, VectorMatchCardinality::OneToMany(_));
    let (many, one) = if swap { (right, left) } else { (left, right) };
    let matching = modifier.matching.as_ref();
    let mut known: HashMap<Labels, &Element> = HashMap::with_capacity(one.len());
    for element in &one {
        if known.insert(signature(&element.labels, matching), element).is_some() {
            return Err(format!(
                "found duplicate series for the match group of {}: many-to-many matching not allowed",
                element.labels
            ));
        }
    }
    let (mut seen, mut result) = (HashSet::new(), Vec::new());
    for element in &many {
        let signature = signature(&element.labels, matching);
        let Some(partner) = known.get(&signature) else { continue };
        let (left, right) = if swap { (partner.value, element.value) } else { (element.value, partner.value) };
        let Some((value, keeps_name)) = apply(op, left, right, modifier.return_bool)? else { continue };
        let mut labels = if keeps_name { element.labels.clone() } else { element.labels.without_name() };
        match &modifier.card {
            VectorMatchCardinality::ManyToOne(copied) | VectorMatchCardinality::OneToMany(copied) => {
                copied.labels.iter().for_each(|name| labels.set(name, partner.labels.get(name)));
                if !seen.insert(labels.clone()) {
                    return Err(format!(
                        "multiple matches for labels: {labels}: grouping labels must ensure unique matches"
                    ));
                }
            }
            _ => {
                labels = match matching {
                    Some(LabelModifier::Include(on)) => labels.keep(&on.labels),
                    Some(LabelModifier::Exclude(ignoring)) => {
                        let name = labels.get(NAME).to_owned();
                        let mut labels = labels.without(&ignoring.labels);
                        labels.set(NAME, &name);
                        labels
                    }
                    None => labels,
                };
                if !seen.insert(signature) {
                    return Err("multiple matches for labels: many-to-one matching must be explicit".into());
                }
            }
        }
        result.push(Element { labels, value });
    }
    Ok(result)
}
