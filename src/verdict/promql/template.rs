//! Annotations: the part of Go's templates that our rules use, with the functions that Prometheus adds.

use super::eval::Evaluator;
use super::labels::Labels;

mod functions;
mod parse;

use functions::Datum;
use parse::{Node, Pipe, Term};

/// Whether a text can be rendered at all.
pub(in crate::verdict) fn check(text: &str) -> Result<(), String> {
    parse::parse(text).map(drop)
}

/// The text that Prometheus would write for an alert with these labels and this value; queries go to the evaluator.
pub(in crate::verdict) fn render(text: &str, labels: &Labels, value: f64, evaluator: &Evaluator<'_>) -> String {
    let mut renderer = Renderer {
        evaluator,
        variables: vec![("labels".into(), Datum::Labels(labels.clone())), ("value".into(), Datum::Float(value))],
        out: String::with_capacity(text.len()),
    };
    match parse::parse(text).and_then(|nodes| renderer.nodes(&nodes, &Datum::Nothing)) {
        Ok(()) => renderer.out,
        Err(error) => format!("<error expanding template: {error}>"),
    }
}

struct Renderer<'a> {
    evaluator: &'a Evaluator<'a>,
    variables: Vec<(String, Datum)>,
    out: String,
}

impl Renderer<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Datum) -> Result<(), String> {
        nodes.iter().try_for_each(|node| self.node(node, dot))
    }

    fn node(&mut self, node: &Node, dot: &Datum) -> Result<(), String> {
        let scope = self.variables.len();
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipe) => {
                let printed = self.pipe(pipe, dot)?.print();
                self.out.push_str(&printed);
            }
            Node::If { with, condition, then, otherwise } => {
                let value = self.pipe(condition, dot)?;
                self.declare(&condition.variables, &[&value]);
                match (value.is_true(), with) {
                    (true, true) => self.nodes(then, &value)?,
                    (true, false) => self.nodes(then, dot)?,
                    (false, _) => self.nodes(otherwise, dot)?,
                }
            }
            Node::Range { over, body, otherwise } => {
                let Datum::Samples(samples) = self.pipe(over, dot)? else { return Err("range over no samples".into()) };
                if samples.is_empty() {
                    self.nodes(otherwise, dot)?;
                }
                for (place, sample) in samples.into_iter().enumerate() {
                    let (index, sample) = (Datum::Int(place as i64), Datum::Sample(sample));
                    match over.variables.len() {
                        2 => self.declare(&over.variables, &[&index, &sample]),
                        _ => self.declare(&over.variables, &[&sample]),
                    }
                    self.nodes(body, &sample)?;
                    self.variables.truncate(scope);
                }
            }
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn declare(&mut self, names: &[String], values: &[&Datum]) {
        self.variables.extend(names.iter().cloned().zip(values.iter().map(|value| (*value).clone())));
    }

    fn pipe(&self, pipe: &Pipe, dot: &Datum) -> Result<Datum, String> {
        let mut piped = None;
        for command in &pipe.commands {
            let Some(first) = command.first() else { return Err("an empty command".into()) };
            piped = Some(match first {
                Term::Function(name) => {
                    let mut arguments =
                        command[1..].iter().map(|term| self.term(term, dot)).collect::<Result<Vec<_>, _>>()?;
                    arguments.extend(piped);
                    functions::call(name, arguments, self.evaluator)?
                }
                term => self.term(term, dot)?,
            });
        }
        piped.ok_or_else(|| "an empty pipeline".into())
    }

    fn term(&self, term: &Term, dot: &Datum) -> Result<Datum, String> {
        let (start, fields) = match term {
            Term::Literal(datum) => return Ok(datum.clone()),
            Term::Function(name) => return functions::call(name, Vec::new(), self.evaluator),
            Term::Pipe(pipe) => return self.pipe(pipe, dot),
            Term::Dot(fields) => (dot, fields),
            Term::Variable(name, fields) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                (known.map(|(_, datum)| datum).ok_or_else(|| format!("undefined variable ${name}"))?, fields)
            }
        };
        fields.iter().try_fold(start.clone(), |datum, field| datum.field(field))
    }
}
