//! From text to nodes: `{{ … }}`, trimming, `if`, `with`, `range`.

use super::functions::{Datum, NAMES};

/// A piece of a template.
pub(in crate::verdict) enum Node {
    Text(String),
    Print(Pipe),
    /// `if`, and `with`, which sets the dot.
    If {
        with: bool,
        condition: Pipe,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// `$a, $b := command | command`
pub(in crate::verdict) struct Pipe {
    pub(in crate::verdict) variables: Vec<String>,
    pub(in crate::verdict) commands: Vec<Vec<Term>>,
}

pub(in crate::verdict) enum Term {
    Literal(Datum),
    Function(String),
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Pipe(Pipe),
}

pub(in crate::verdict) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut pieces = pieces(text)?.into_iter();
    match list(&mut pieces)? {
        (nodes, None) => Ok(nodes),
        (_, Some(end)) => Err(format!("unexpected {end}")),
    }
}

enum Piece {
    Text(String),
    Action(String),
}

const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut rest, mut trim) = (Vec::new(), text, false);
    loop {
        let start = rest.find("{{");
        let mut plain = &rest[..start.unwrap_or(rest.len())];
        if trim {
            plain = plain.trim_start_matches(BLANK);
        }
        let Some(start) = start else {
            pieces.push(Piece::Text(plain.into()));
            return Ok(pieces);
        };
        rest = &rest[start + 2..];
        if let Some(after) = rest.strip_prefix('-').filter(|after| after.starts_with(BLANK)) {
            plain = plain.trim_end_matches(BLANK);
            rest = after;
        }
        pieces.push(Piece::Text(plain.into()));
        let end = rest.find("}}").ok_or("unclosed action")?;
        let mut action = &rest[..end];
        trim = action.ends_with('-') && action[..action.len() - 1].ends_with(BLANK);
        if trim {
            action = &action[..action.len() - 1];
        }
        pieces.push(Piece::Action(action.trim_matches(BLANK).into()));
        rest = &rest[end + 2..];
    }
}

/// Nodes up to an `else …` or `end`, which is handed back.
fn list(pieces: &mut impl Iterator<Item = Piece>) -> Result<(Vec<Node>, Option<String>), String> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let (word, rest) = action.split_once(BLANK).unwrap_or((&action, ""));
        match word {
            "if" | "with" | "range" => nodes.push(block(word, rest, pieces)?),
            "else" | "end" => return Ok((nodes, Some(action))),
            _ => nodes.push(Node::Print(pipe(&action)?)),
        }
    }
    Ok((nodes, None))
}

fn block(word: &str, head: &str, pieces: &mut impl Iterator<Item = Piece>) -> Result<Node, String> {
    let head = pipe(head)?;
    let (body, end) = list(pieces)?;
    let end = end.ok_or_else(|| format!("{word} without end"))?;
    let otherwise = match end.strip_prefix("else").map(|rest| rest.trim_matches(BLANK)) {
        None => Vec::new(),
        Some("") => match list(pieces)? {
            (nodes, Some(end)) if end == "end" => nodes,
            _ => return Err("else without end".into()),
        },
        // `else if` closes with the `end` of the whole.
        Some(more) => match more.split_once(BLANK) {
            Some((word @ ("if" | "with"), head)) => vec![block(word, head, pieces)?],
            _ => return Err(format!("unexpected else {more}")),
        },
    };
    Ok(match word {
        "range" => Node::Range { over: head, body, otherwise },
        _ => Node::If { with: word == "with", condition: head, then: body, otherwise },
    })
}

fn pipe(text: &str) -> Result<Pipe, String> {
    let tokens = tokens(text)?;
    let mut tokens = tokens.as_slice();
    let mut variables = Vec::new();
    if let Some(place) = tokens.iter().position(|token| token == ":=") {
        for token in tokens[..place].iter().filter(|token| *token != ",") {
            variables.push(token.strip_prefix('$').ok_or("only variables can be set")?.to_owned());
        }
        tokens = &tokens[place + 1..];
    }
    let commands = commands(&mut tokens)?;
    match tokens {
        [] => Ok(Pipe { variables, commands }),
        [token, ..] => Err(format!("unexpected {token}")),
    }
}

fn commands(tokens: &mut &[String]) -> Result<Vec<Vec<Term>>, String> {
    let mut commands = vec![Vec::new()];
    while let Some((token, rest)) = tokens.split_first() {
        if token == ")" {
            break;
        }
        *tokens = rest;
        if token == "|" {
            commands.push(Vec::new());
            continue;
        }
        let term = if token == "(" {
            let inner = self::commands(tokens)?;
            match tokens.split_first() {
                Some((token, rest)) if token == ")" => *tokens = rest,
                _ => return Err("unclosed (".into()),
            }
            Term::Pipe(Pipe { variables: Vec::new(), commands: inner })
        } else {
            term(token)?
        };
        if let Some(command) = commands.last_mut() {
            command.push(term);
        }
    }
    if commands.iter().any(Vec::is_empty) { Err("an empty command".into()) } else { Ok(commands) }
}

fn term(token: &str) -> Result<Term, String> {
    let fields = |path: &str| path.split('.').skip(1).filter(|field| !field.is_empty()).map(String::from).collect();
    if let Some(text) = token.strip_prefix('"') {
        return Ok(Term::Literal(Datum::Text(text.into())));
    }
    if let Some(path) = token.strip_prefix('$') {
        return Ok(Term::Variable(path.split('.').next().unwrap_or_default().into(), fields(path)));
    }
    if token.starts_with('.') {
        return Ok(Term::Dot(fields(token)));
    }
    match token {
        "true" => Ok(Term::Literal(Datum::Bool(true))),
        "false" => Ok(Term::Literal(Datum::Bool(false))),
        name if NAMES.contains(&name) => Ok(Term::Function(name.into())),
        number => match (number.parse::<i64>(), number.parse::<f64>()) {
            (Ok(number), _) => Ok(Term::Literal(Datum::Int(number))),
            (_, Ok(number)) => Ok(Term::Literal(Datum::Float(number))),
            _ => Err(format!("{number}: unknown")),
        },
    }
}

/// A text is handed on unescaped, behind one quotation mark.
fn tokens(text: &str) -> Result<Vec<String>, String> {
    let (mut tokens, mut chars) = (Vec::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            c if BLANK.contains(&c) => {}
            '(' | ')' | '|' | ',' => tokens.push(c.into()),
            ':' if chars.next_if_eq(&'=').is_some() => tokens.push(":=".into()),
            '"' => {
                let mut token = String::from('"');
                loop {
                    match chars.next().ok_or("unclosed text")? {
                        '"' => break,
                        '\\' => token.push(match chars.next() {
                            Some('n') => '\n',
                            Some('t') => '\t',
                            Some(c @ ('"' | '\\')) => c,
                            _ => return Err("an escape that is not supported".into()),
                        }),
                        c => token.push(c),
                    }
                }
                tokens.push(token);
            }
            c => {
                let mut token = String::from(c);
                while let Some(c) = chars.next_if(|c| !BLANK.contains(c) && !"()|,:\"".contains(*c)) {
                    token.push(c);
                }
                tokens.push(token);
            }
        }
    }
    Ok(tokens)
}
