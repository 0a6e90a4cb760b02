//! A table panel's rows: the answers of its queries, after its transformations.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Series;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Number(f64),
}

type Row = BTreeMap<String, Cell>;

#[derive(Default)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Row>,
}

impl Table {
    /// `answers` has one element for each query.
    pub(super) fn of(panel: &Value, answers: &[Vec<Series>]) -> Self {
        let many = answers.len() > 1;
        let frames = answers.iter().zip(panel["targets"].as_array().unwrap()).map(|(answer, target)| {
            let value = if many { format!("Value #{}", target["refId"].as_str().unwrap()) } else { "Value".to_owned() };
            Table::from_answer(answer, &value)
        });
        let mut frames: Vec<Table> = frames.collect();
        for step in panel["transformations"].as_array().unwrap() {
            let options = &step["options"];
            if step["id"] == "merge" {
                frames = vec![merged(frames)];
                continue;
            }
            assert_eq!(frames.len(), 1, "{}: several queries in a table, and no merge", panel["title"]);
            match step["id"].as_str().unwrap() {
                "filterFieldsByName" => {
                    let names = options["include"]["names"].as_array().unwrap();
                    frames[0].columns.retain(|column| names.iter().any(|name| name == column));
                }
                "sortBy" => {
                    for sort in options["sort"].as_array().unwrap() {
                        frames[0].sort(sort["field"].as_str().unwrap(), sort["desc"] == true);
                    }
                }
                "organize" => frames[0].organize(options),
                other => panic!("{}: an unknown transformation: {other}", panel["title"]),
            }
        }
        let mut table = frames.pop().unwrap();
        // What the reader could have chosen by a click on a column's head.
        for sort in panel["options"]["sortBy"].as_array().into_iter().flatten() {
            let column = sort["displayName"].as_str().unwrap();
            let shown = table.columns.iter().any(|name| name == column) || table.rows.is_empty();
            assert!(shown, "{}: sorted by a column that is not there: {column}", panel["title"]);
            table.sort(column, sort["desc"] == true);
        }
        table
    }

    fn from_answer(answer: &[Series], value: &str) -> Self {
        let rows: Vec<Row> = answer
            .iter()
            .map(|series| {
                let labels = series.labels.iter().map(|(name, text)| (name.clone(), Cell::Text(text.clone())));
                labels.chain([(value.to_owned(), Cell::Number(series.points.last().unwrap().1))]).collect()
            })
            .collect();
        let columns: BTreeSet<String> = rows.iter().flat_map(|row| row.keys().cloned()).collect();
        Table { columns: columns.into_iter().collect(), rows }
    }

    fn sort(&mut self, column: &str, descending: bool) {
        let compared = |a: &Row, b: &Row| match (a.get(column), b.get(column)) {
            (Some(Cell::Number(a)), Some(Cell::Number(b))) => a.total_cmp(b),
            (Some(Cell::Text(a)), Some(Cell::Text(b))) => a.cmp(b),
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            _ => Ordering::Equal,
        };
        self.rows.sort_by(|a, b| if descending { compared(b, a) } else { compared(a, b) });
    }

    fn organize(&mut self, options: &Value) {
        let excluded = |name: &String| options["excludeByName"][name] == true;
        self.columns.retain(|name| !excluded(name));
        self.columns.sort_by_key(|name| options["indexByName"][name].as_u64().unwrap_or(u64::MAX));
        let renamed = |name: &str| options["renameByName"][name].as_str().unwrap_or(name).to_owned();
        for row in &mut self.rows {
            *row = std::mem::take(row).into_iter().map(|(name, cell)| (renamed(&name), cell)).collect();
        }
        self.columns.iter_mut().for_each(|name| *name = renamed(name));
    }
}

/// Rows that agree in the columns which all frames have become one.
fn merged(frames: Vec<Table>) -> Table {
    let frames: Vec<Table> = frames.into_iter().filter(|frame| !frame.rows.is_empty()).collect();
    let mut all = Table::default();
    let in_all = |name: &String| frames.iter().all(|frame| frame.columns.contains(name));
    let shared: Vec<String> = frames.first().map_or(&[][..], |frame| &frame.columns).to_vec();
    let shared: Vec<String> = shared.into_iter().filter(in_all).collect();
    for frame in frames {
        for column in frame.columns {
            if !all.columns.contains(&column) {
                all.columns.push(column);
            }
        }
        for row in frame.rows {
            let agrees = |known: &&mut Row| shared.iter().all(|name| known.get(name) == row.get(name));
            let new = |known: &&mut Row| row.keys().all(|name| shared.contains(name) || !known.contains_key(name));
            match all.rows.iter_mut().find(|known| agrees(known) && new(known)) {
                Some(known) => known.extend(row),
                None => all.rows.push(row),
            }
        }
    }
    all
}
