//! Values of templates, and the functions that take them.

use crate::humanize;
use crate::verdict::promql::eval::{Element, Evaluator};
use crate::verdict::promql::expression;
use crate::verdict::promql::labels::Labels;

/// What a template handles.
#[derive(Clone, Debug)]
pub(in crate::verdict) enum Datum {
    Nothing,
    Text(String),
    Float(f64),
    Int(i64),
    Bool(bool),
    Labels(Labels),
    Sample(Element),
    Samples(Vec<Element>),
}

impl Datum {
    pub(in crate::verdict) fn is_true(&self) -> bool {
        match self {
            Datum::Nothing => false,
            Datum::Text(text) => !text.is_empty(),
            Datum::Float(value) => *value != 0.0,
            Datum::Int(value) => *value != 0,
            Datum::Bool(value) => *value,
            Datum::Labels(labels) => labels.iter().next().is_some(),
            Datum::Sample(_) => true,
            Datum::Samples(samples) => !samples.is_empty(),
        }
    }

    pub(in crate::verdict) fn print(&self) -> String {
        match self {
            Datum::Nothing => "<no value>".into(),
            Datum::Text(text) => text.clone(),
            Datum::Float(value) => humanize::plain(*value),
            Datum::Int(value) => value.to_string(),
            Datum::Bool(value) => value.to_string(),
            Datum::Labels(labels) => labels.to_string(),
            Datum::Sample(sample) => sample.labels.to_string(),
            Datum::Samples(samples) => samples.iter().map(|sample| sample.labels.to_string()).collect(),
        }
    }

    pub(in crate::verdict) fn field(self, name: &str) -> Result<Datum, String> {
        match (&self, name) {
            (Datum::Labels(labels), name) => Ok(Datum::Text(labels.get(name).into())),
            (Datum::Sample(sample), "Labels") => Ok(Datum::Labels(sample.labels.clone())),
            (Datum::Sample(sample), "Value") => Ok(Datum::Float(sample.value)),
            _ => Err(format!("there is no .{name}")),
        }
    }

    fn number(&self) -> Result<f64, String> {
        match self {
            Datum::Float(value) => Ok(*value),
            Datum::Int(value) => Ok(*value as f64),
            Datum::Text(text) => text.parse().map_err(|_| format!("{text:?} is no number")),
            _ => Err("this is no number".into()),
        }
    }

    fn same(&self, other: &Datum) -> Result<bool, String> {
        match (self, other) {
            (Datum::Text(a), Datum::Text(b)) => Ok(a == b),
            (Datum::Int(a), Datum::Int(b)) => Ok(a == b),
            (Datum::Float(a), Datum::Float(b)) => Ok(a == b),
            (Datum::Bool(a), Datum::Bool(b)) => Ok(a == b),
            _ => Err("incompatible types for comparison".into()),
        }
    }

    fn less(&self, other: &Datum) -> Result<bool, String> {
        match (self, other) {
            (Datum::Text(a), Datum::Text(b)) => Ok(a < b),
            (Datum::Int(a), Datum::Int(b)) => Ok(a < b),
            (Datum::Float(a), Datum::Float(b)) => Ok(a < b),
            _ => Err("incompatible types for comparison".into()),
        }
    }
}

/// Every function.
pub(in crate::verdict) const NAMES: [&str; 17] = [
    "query",
    "first",
    "value",
    "label",
    "sortByLabel",
    "humanize",
    "humanize1024",
    "humanizeDuration",
    "humanizePercentage",
    "printf",
    "eq",
    "ne",
    "lt",
    "not",
    "and",
    "or",
    "len",
];

pub(in crate::verdict) fn call(
    name: &str,
    mut arguments: Vec<Datum>,
    evaluator: &Evaluator<'_>,
) -> Result<Datum, String> {
    match (name, arguments.as_mut_slice()) {
        ("query", [Datum::Text(text)]) => {
            let vector = evaluator.vector(&expression::parse(text)?)?;
            Ok(Datum::Samples(vector))
        }
        ("first", [Datum::Samples(samples)]) => {
            let first = samples.first().cloned().map(Datum::Sample);
            first.ok_or_else(|| "first() called on vector with no elements".into())
        }
        ("value", [Datum::Sample(sample)]) => Ok(Datum::Float(sample.value)),
        ("label", [Datum::Text(name), Datum::Sample(sample)]) => Ok(Datum::Text(sample.labels.get(name).into())),
        ("sortByLabel", [Datum::Text(name), Datum::Samples(samples)]) => {
            samples.sort_by(|a, b| a.labels.get(name).cmp(b.labels.get(name)));
            Ok(Datum::Samples(std::mem::take(samples)))
        }
        ("humanize", [value]) => Ok(Datum::Text(humanize::humanize(value.number()?))),
        ("humanize1024", [value]) => Ok(Datum::Text(humanize::humanize1024(value.number()?))),
        ("humanizeDuration", [value]) => Ok(Datum::Text(humanize::duration(value.number()?))),
        ("humanizePercentage", [value]) => Ok(Datum::Text(humanize::percentage(value.number()?))),
        ("printf", [Datum::Text(format), arguments @ ..]) => printf(format, arguments).map(Datum::Text),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            for other in others.iter() {
                if first.same(other)? {
                    return Ok(Datum::Bool(true));
                }
            }
            Ok(Datum::Bool(false))
        }
        ("ne", [a, b]) => Ok(Datum::Bool(!a.same(b)?)),
        ("lt", [a, b]) => Ok(Datum::Bool(a.less(b)?)),
        ("not", [value]) => Ok(Datum::Bool(!value.is_true())),
        ("and" | "or", [.., last]) => {
            let last = last.clone();
            Ok(arguments.into_iter().find(|value| value.is_true() == (name == "or")).unwrap_or(last))
        }
        ("len", [Datum::Samples(samples)]) => Ok(Datum::Int(samples.len() as i64)),
        ("len", [Datum::Text(text)]) => Ok(Datum::Int(text.len() as i64)),
        _ => Err(format!("{name}: wrong arguments")),
    }
}

/// Go's `Sprintf`, with `%s %q %v %d %f %g %%` and a precision.
fn printf(format: &str, arguments: &[Datum]) -> Result<String, String> {
    let (mut out, mut rest, mut arguments) = (String::new(), format, arguments.iter());
    while let Some(place) = rest.find('%') {
        out.push_str(&rest[..place]);
        rest = &rest[place + 1..];
        let verb = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).ok_or("a format ends in %")?;
        let (precision, letter) = (&rest[..verb], &rest[verb..verb + 1]);
        rest = &rest[verb + 1..];
        if letter == "%" {
            out.push('%');
            continue;
        }
        let argument = arguments.next().ok_or("printf: an argument is missing")?;
        let precision = match precision.strip_prefix('.') {
            Some("") => Some(0),
            Some(digits) => Some(digits.parse::<usize>().map_err(|_| "printf: a bad precision")?),
            None if precision.is_empty() => None,
            None => return Err("printf: a width is not supported".into()),
        };
        match (letter, argument, precision) {
            ("s" | "v", Datum::Text(text), None) => out.push_str(text),
            ("v", datum, None) => out.push_str(&datum.print()),
            ("q", Datum::Text(text), None) => out.push_str(&quote(text)),
            ("d", Datum::Int(value), None) => out.push_str(&value.to_string()),
            ("f", Datum::Float(value), precision) => out.push_str(&format!("{value:.*}", precision.unwrap_or(6))),
            ("g", Datum::Float(value), None) => out.push_str(&humanize::plain(*value)),
            ("g", Datum::Float(value), Some(4)) => out.push_str(&humanize::short(*value)),
            _ => return Err(format!("printf: %{letter} is not supported here")),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Go's quoting, which is PromQL's.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
