//! A panel as Grafana lays it out: its box of the grid, its head, and what is in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};
use serde_json::Value;

use super::field::{self, Field, formatted};
use super::table::{Cell, Table};
use super::{Series, Span};

/// The page's width, and the grid that Grafana puts into it.
pub(super) const WIDTH: f64 = 1280.0;
const MARGIN: f64 = 16.0;
const GAP: f64 = 8.0;
const ROW: f64 = 30.0;
const HEAD: f64 = 32.0;
const PADDING: f64 = 8.0;
/// Of a table with `cellHeight: sm`.
const CELL: f64 = 36.0;
/// The part of a panel that a legend at the bottom may take; the rest of it scrolls.
const LEGEND: f64 = 0.35;
const LEGEND_ROW: f64 = 20.0;

/// `palette-classic`.
const PALETTE: [&str; 12] = [
    "#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a",
    "#447ebc", "#c15c17",
];

/// What the test asks of a picture.
#[derive(Default)]
pub(super) struct Seen {
    /// Titles of panels that have nothing to show.
    pub(super) empty: Vec<String>,
    /// Every formatted number, with its panel.
    pub(super) numbers: Vec<(String, String)>,
    /// The first cell of each table.
    pub(super) first_rows: Vec<(String, String)>,
}

struct Size {
    width: f64,
    height: f64,
}

/// Bottom of the grid, in pixels.
pub(super) fn height(panels: &[Value]) -> f64 {
    let bottom = |panel: &Value| panel["gridPos"]["y"].as_f64().unwrap() + panel["gridPos"]["h"].as_f64().unwrap();
    panels.iter().map(bottom).fold(0.0, f64::max) * (ROW + GAP)
}

pub(super) fn panel(panel: &Value, answers: &[Vec<Series>], span: &Span, seen: &mut Seen) -> Markup {
    let at = |key: &str| panel["gridPos"][key].as_f64().unwrap();
    let column = (WIDTH - 2.0 * MARGIN - 23.0 * GAP) / 24.0;
    let (width, height) = (at("w") * (column + GAP) - GAP, at("h") * (ROW + GAP) - GAP);
    let (left, top) = (MARGIN + at("x") * (column + GAP), at("y") * (ROW + GAP));
    let place = format!("left:{left:.1}px;top:{top:.0}px;width:{width:.1}px;height:{height:.0}px");
    let title = panel["title"].as_str().unwrap();
    if panel["type"] == "row" {
        return html! { h2.row.fits style=(place) { "▾ " (title) } };
    }
    let inside = Size { width: width - 2.0 - 2.0 * PADDING, height: height - 2.0 - HEAD - PADDING };
    let content = match panel["type"].as_str().unwrap() {
        "stat" => stat(panel, &answers[0], &inside, seen),
        "table" => table(panel, &Table::of(panel, answers), &inside, seen),
        kind => {
            let lines = named(panel, answers);
            match kind {
                _ if lines.is_empty() => None,
                "timeseries" => Some(lines_or_bars(panel, &lines, span, &inside)),
                "state-timeline" => Some(states(panel, &lines, span, &inside)),
                "heatmap" => Some(heatmap(panel, &lines, span, &inside)),
                _ => panic!("{title}: an unknown type of panel: {kind}"),
            }
        }
    };
    if content.is_none() {
        seen.empty.push(title.to_owned());
    }
    html! {
        section style=(place) {
            header { h3.fits { (title) } @if !panel["description"].is_null() { i { "i" } } }
            div.inside {
                @match content {
                    Some(content) => (content),
                    None => p.nothing { (Field::of(panel, "").no_value()) },
                }
            }
        }
    }
}

fn stat(panel: &Value, answer: &[Series], size: &Size, seen: &mut Seen) -> Option<Markup> {
    assert_eq!(panel["options"]["colorMode"], "background");
    let value = answer.first()?.points.last()?.1;
    let field = Field::of(panel, "Value");
    let (text, color) = (field.text(value), field.color(value));
    seen.numbers.push((panel["title"].to_string(), text.clone()));
    // As large as there is room for it.
    let font = (size.height * 0.65).min(size.width * 0.9 / (0.74 * text.chars().count() as f64));
    let style = format!("background:{color};color:{};font-size:{font:.0}px", ink(color));
    Some(html! { div.stat.fits style=(style) { (text) } })
}

/// Dark on a bright ground, bright on a dark one.
fn ink(ground: &str) -> &'static str {
    let channel = |at: usize| f64::from(u8::from_str_radix(&ground[at..at + 2], 16).unwrap());
    let brightness = 0.299 * channel(1) + 0.587 * channel(3) + 0.114 * channel(5);
    if brightness > 180.0 { "#202226" } else { "#f7f8fa" }
}

fn table(panel: &Value, table: &Table, size: &Size, seen: &mut Seen) -> Option<Markup> {
    let title = panel["title"].as_str().unwrap();
    let first = table.rows.first()?;
    if let Some(Cell::Text(text)) = table.columns.first().and_then(|column| first.get(column)) {
        seen.first_rows.push((title.to_owned(), text.clone()));
    }
    let fields: Vec<Field<'_>> = table.columns.iter().map(|column| Field::of(panel, column)).collect();
    let widths = column_widths(&fields, size.width);
    let is_number = |column: &String| table.rows.iter().any(|row| matches!(row.get(column), Some(Cell::Number(_))));
    let shown = ((size.height - CELL) / CELL).floor() as usize;
    let style = |width: f64, column: &String| {
        format!("width:{width:.1}px;text-align:{}", if is_number(column) { "right" } else { "left" })
    };
    let content = html! {
        div.table.fits {
            div.tr.th {
                @for (column, width) in table.columns.iter().zip(&widths) {
                    span.fits style=(style(*width, column)) { (column) }
                }
            }
            @for row in table.rows.iter().take(shown) {
                div.tr {
                    @for ((column, width), field) in table.columns.iter().zip(&widths).zip(&fields) {
                        span.fits style=(style(*width, column)) { (cell(title, row.get(column), field, seen)) }
                    }
                }
            }
        }
        @if table.rows.len() > shown {
            b.scroll style=(format!("height:{:.0}px", size.height * shown as f64 / table.rows.len() as f64)) {}
        }
    };
    Some(content)
}

fn cell(title: &str, cell: Option<&Cell>, field: &Field<'_>, seen: &mut Seen) -> Markup {
    let number = match cell {
        None => return html! { (field.no_value()) },
        Some(Cell::Text(text)) => {
            let link = field.get("links").is_some();
            return html! { span.link[link] { (text) } };
        }
        Some(Cell::Number(number)) => *number,
    };
    let (text, color) = (field.text(number), field.color(number));
    seen.numbers.push((title.to_owned(), text.clone()));
    match field.get("custom.cellOptions").unwrap()["type"].as_str().unwrap() {
        "auto" => html! { (text) },
        "color-text" => html! { span style=(format!("color:{color}")) { (text) } },
        "gauge" => {
            let (least, most) = (field.number("min").unwrap(), field.number("max").unwrap());
            let full = ((number - least) / (most - least)).clamp(0.0, 1.0) * 100.0;
            html! {
                span.gauge { b style=(format!("width:{full:.1}%;background:{color}")) {} }
                span.of style=(format!("color:{color}")) { (text) }
            }
        }
        other => panic!("{title}: an unknown type of cell: {other}"),
    }
}

/// Equal shares, but no column is narrower than its minimum, which is 150 pixels unless the panel says otherwise:
/// Grafana then lets the reader scroll sideways.
fn column_widths(fields: &[Field<'_>], available: f64) -> Vec<f64> {
    let mut widths: Vec<Option<f64>> = fields.iter().map(|field| field.number("custom.width")).collect();
    let share = |widths: &[Option<f64>]| {
        let free = widths.iter().filter(|width| width.is_none()).count().max(1);
        (available - widths.iter().flatten().sum::<f64>()) / free as f64
    };
    for _ in 0..fields.len() {
        for (at, field) in fields.iter().enumerate() {
            let least = field.number("custom.minWidth").unwrap_or(150.0);
            if widths[at].is_none() && least > share(&widths) {
                widths[at] = Some(least);
            }
        }
    }
    let rest = share(&widths);
    widths.into_iter().map(|width| width.unwrap_or(rest)).collect()
}

/// A line's name, and its points in the order of time.
struct Line<'a> {
    name: String,
    points: &'a [(f64, f64)],
}

fn named<'a>(panel: &Value, answers: &'a [Vec<Series>]) -> Vec<Line<'a>> {
    let targets = panel["targets"].as_array().unwrap().iter().zip(answers);
    let lines = targets.flat_map(|(target, answer)| {
        let legend = target["legendFormat"].as_str().unwrap();
        answer.iter().map(move |series| Line { name: series.named(legend), points: &series.points })
    });
    lines.collect()
}

/// The room for a graph, and where a time and a value are in it.
struct Plot<'a> {
    span: &'a Span,
    left: f64,
    width: f64,
    height: f64,
    least: f64,
    most: f64,
}

impl Plot<'_> {
    fn x(&self, time: f64) -> f64 {
        self.left + (time - self.span.start) / (self.span.end - self.span.start) * self.width
    }

    fn y(&self, value: f64) -> f64 {
        4.0 + (1.0 - (value - self.least) / (self.most - self.least)) * self.height
    }

    fn times(&self, svg: &mut String) {
        let every = 600.0;
        let mut time = (self.span.start / every).ceil() * every;
        while time <= self.span.end {
            let (x, bottom) = (self.x(time), self.height + 4.0);
            let _ = write!(svg, "<path class=grid d='M{x:.1},4V{bottom:.1}'/>");
            if x > self.left + 16.0 && x < self.left + self.width - 16.0 {
                let minutes = (time / 60.0) as u64 % 1440;
                let text = format!("{:02}:{:02}", minutes / 60, minutes % 60);
                let _ = write!(svg, "<text x={x:.1} y={:.1} text-anchor=middle>{text}</text>", bottom + 16.0);
            }
            time += every;
        }
    }
}

fn svg(size: &Size, content: &str) -> Markup {
    let Size { width, height } = size;
    PreEscaped(format!("<svg width={width:.1} height={height:.1}>{content}</svg>"))
}

fn lines_or_bars(panel: &Value, lines: &[Line<'_>], span: &Span, size: &Size) -> Markup {
    let title = &panel["title"];
    let defaults = &panel["fieldConfig"]["defaults"];
    let custom = &defaults["custom"];
    let stacked = match (custom["drawStyle"].as_str(), custom["stacking"]["mode"].as_str()) {
        (Some("line"), Some("none")) => false,
        (Some("bars"), Some("normal")) => true,
        other => panic!("{title}: an unknown style: {other:?}"),
    };
    let most_rows = (size.height * LEGEND / LEGEND_ROW).floor();
    let legend_height = (legend_rows(lines, size.width) as f64).min(most_rows) * LEGEND_ROW;
    // Stacked values, so that a bar begins where the one below it ends.
    let mut tops: BTreeMap<u64, f64> = BTreeMap::new();
    let mut most = custom["axisSoftMax"].as_f64().unwrap_or(0.0);
    let mut least = defaults["min"].as_f64().unwrap_or(0.0);
    for (time, value) in lines.iter().flat_map(|line| line.points).filter(|point| point.1.is_finite()) {
        let top = tops.entry(*time as u64).or_default();
        *top = if stacked { *top + value } else { *value };
        most = most.max(*top);
        least = least.min(*top);
    }
    let unit = defaults["unit"].as_str().unwrap();
    let step = tick(most - least, unit);
    let most = if most > least { (most / step - 1e-9).ceil() * step } else { least + step };
    let least = (least / step).floor() * step;
    let ticks = (0..).map(|number| least + step * f64::from(number)).take_while(|value| *value <= most + step * 0.01);
    let ticks = on_axis(ticks.collect(), unit);
    let left = ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(1) as f64 * 6.7 + 10.0;
    let height = size.height - legend_height - 4.0 - 22.0;
    let plot = Plot { span, left, width: size.width - left - 4.0, height, least, most };
    let mut content = String::new();
    plot.times(&mut content);
    for (value, text) in &ticks {
        let (y, right) = (plot.y(*value), left + plot.width);
        let _ = write!(content, "<path class=grid d='M{left:.1},{y:.1}H{right:.1}'/>");
        let _ = write!(content, "<text x={:.1} y={:.1} text-anchor=end>{text}</text>", left - 6.0, y + 4.0);
    }
    if custom["thresholdsStyle"]["mode"] == "dashed" {
        for step in Field::of(panel, "").steps() {
            let at = step["value"].as_f64().filter(|value| (plot.least..=plot.most).contains(value));
            let Some(value) = at else { continue };
            let (y, right, color) = (plot.y(value), left + plot.width, field::color(step["color"].as_str().unwrap()));
            let _ = write!(content, "<path class=threshold stroke={color} d='M{left:.1},{y:.1}H{right:.1}'/>");
        }
    }
    tops.clear();
    let colors: Vec<&str> = lines.iter().enumerate().map(|(at, line)| line_color(panel, line, at)).collect();
    let fill = custom["fillOpacity"].as_f64().unwrap() / 100.0;
    for (line, color) in lines.iter().zip(&colors) {
        if stacked {
            let bar = plot.width * span.step / (span.end - span.start) * 0.9;
            for (time, value) in line.points {
                let bottom = tops.entry(*time as u64).or_default();
                let (x, y) = (plot.x(*time) - bar, plot.y(*bottom + value));
                let tall = plot.y(*bottom) - y;
                *bottom += value;
                let place = format!("x={:.1} y={y:.1} width={bar:.1} height={tall:.1}", x.max(left));
                let _ = write!(content, "<rect {place} fill={color} fill-opacity={fill} />");
            }
            continue;
        }
        let width = Field::of(panel, &line.name).number("custom.lineWidth").unwrap_or(1.0);
        // A gap in time is a gap in the line.
        for piece in line.points.chunk_by(|a, b| b.0 - a.0 < span.step * 1.5) {
            let path: Vec<String> =
                piece.iter().map(|(time, value)| format!("{:.1},{:.1}", plot.x(*time), plot.y(*value))).collect();
            let (path, base) = (path.join("L"), plot.y(plot.least.max(0.0)));
            let ends = (plot.x(piece[0].0), plot.x(piece.last().unwrap().0));
            let area = format!("M{path}L{:.1},{base:.1}L{:.1},{base:.1}Z", ends.1, ends.0);
            let _ = write!(content, "<path d='{area}' fill={color} fill-opacity={fill} />");
            let _ = write!(content, "<path class=line d='M{path}' stroke={color} stroke-width={width} />");
        }
    }
    html! {
        (svg(&Size { width: size.width, height: size.height - legend_height }, &content))
        div.legend.fits style=(format!("height:{legend_height:.0}px")) {
            @for (line, color) in lines.iter().zip(&colors) {
                span { b style=(format!("background:{color}")) {} (line.name) }
            }
        }
    }
}

fn line_color(panel: &Value, line: &Line<'_>, at: usize) -> &'static str {
    let color = Field::of(panel, &line.name).get("color").unwrap();
    match color["mode"].as_str() {
        Some("fixed") => field::color(color["fixedColor"].as_str().unwrap()),
        Some("palette-classic") => PALETTE[at % PALETTE.len()],
        other => panic!("{}: an unknown mode of colours: {other:?}", panel["title"]),
    }
}

/// How many rows the legend takes, by the width of usual letters.
fn legend_rows(lines: &[Line<'_>], width: f64) -> usize {
    let (mut rows, mut used) = (1, 0.0);
    for line in lines {
        let own = line.name.chars().count() as f64 * 6.8 + 30.0;
        if used + own > width && used > 0.0 {
            (rows, used) = (rows + 1, 0.0);
        }
        used += own;
    }
    rows
}

/// A round step, so that there are three to six of them.
fn tick(range: f64, unit: &str) -> f64 {
    let least = if range > 0.0 { range / 5.0 } else { 0.2 };
    let base: f64 = if unit == "bytes" { 2.0 } else { 10.0 };
    let power = base.powf(least.log(base).floor());
    let steps: &[f64] = if unit == "bytes" { &[1.0, 2.0] } else { &[1.0, 2.0, 2.5, 5.0, 10.0] };
    steps.iter().map(|step| step * power).find(|step| *step >= least * 0.999).unwrap()
}

/// All with as many decimals as the exact one needs.
fn on_axis(values: Vec<f64>, unit: &str) -> Vec<(f64, String)> {
    let number = |text: &str| text.split([' ', '%']).next().unwrap().parse::<f64>().unwrap();
    let read = |value: f64, decimals: usize| number(&formatted(value, unit, Some(decimals)));
    let exact = |decimals: usize| values.iter().all(|value| (read(*value, decimals) - read(*value, 6)).abs() < 1e-6);
    let decimals = (0..6).find(|decimals| exact(*decimals));
    values.into_iter().map(|value| (value, formatted(value, unit, decimals))).collect()
}

fn states(panel: &Value, lines: &[Line<'_>], span: &Span, size: &Size) -> Markup {
    let label = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0) as f64 * 6.8 + 10.0;
    let height = (size.height - 22.0) / lines.len() as f64;
    let plot = Plot { span, left: label, width: size.width - label, height: size.height - 26.0, least: 0.0, most: 1.0 };
    let field = Field::of(panel, "");
    let mut times = String::new();
    plot.times(&mut times);
    html! {
        (svg(size, &times))
        @for (at, line) in lines.iter().enumerate() {
            @let top = height * at as f64;
            p.label.fits style=(format!("top:{top:.1}px;width:{label:.0}px;line-height:{height:.1}px")) { (line.name) }
            @for piece in line.points.chunk_by(|a, b| field.text(a.1) == field.text(b.1)) {
                @let (text, color) = (field.text(piece[0].1), field.color(piece[0].1));
                @let end = (piece.last().unwrap().0 + span.step).min(span.end);
                @let (left, width) = (plot.x(piece[0].0), plot.x(end) - plot.x(piece[0].0));
                @let place = format!("left:{left:.1}px;width:{width:.1}px;top:{:.1}px", top + height * 0.075);
                @let rest = format!("height:{0:.1}px;line-height:{0:.1}px;background:{color}c0", height * 0.85);
                b.state style=(format!("{place};{rest}")) {
                    @if width > 10.0 + 7.0 * text.chars().count() as f64 { (text) }
                }
            }
        }
    }
}

/// How often each bucket counted, step by step. Prometheus' buckets contain the smaller ones.
fn heatmap(panel: &Value, lines: &[Line<'_>], span: &Span, size: &Size) -> Markup {
    assert_eq!(panel["options"]["color"]["scheme"], "Oranges");
    let bound = |line: &Line<'_>| line.name.parse::<f64>().expect("a legend of {{le}}");
    let mut buckets: Vec<&Line<'_>> = lines.iter().collect();
    buckets.sort_by(|a, b| bound(a).total_cmp(&bound(b)));
    let mut below: BTreeMap<u64, f64> = BTreeMap::new();
    let mut cells = Vec::new();
    for (row, bucket) in buckets.iter().enumerate() {
        for (time, count) in bucket.points {
            let before = below.insert(*time as u64, *count).unwrap_or(0.0);
            cells.push((row, *time, count - before));
        }
    }
    let most = cells.iter().map(|cell| cell.2).fold(0.0, f64::max);
    let unit = panel["options"]["yAxis"]["unit"].as_str().unwrap();
    let (left, height) = (56.0, size.height - 26.0);
    let plot = Plot { span, left, width: size.width - left - 4.0, height, least: 0.0, most: buckets.len() as f64 };
    let mut content = String::new();
    plot.times(&mut content);
    let every = (buckets.len() as f64 * 14.0 / height).ceil() as usize;
    for (row, bucket) in buckets.iter().enumerate().step_by(every) {
        let text = if bound(bucket).is_finite() { formatted(bound(bucket), unit, None) } else { "+Inf".to_owned() };
        let y = plot.y(row as f64 + 1.0) + 4.0;
        let _ = write!(content, "<text x={:.1} y={y:.1} text-anchor=end>{text}</text>", left - 6.0);
    }
    let (wide, tall) = (plot.width * span.step / (span.end - span.start), height / buckets.len() as f64);
    for (row, time, count) in cells.into_iter().filter(|cell| cell.2 > 1e-9) {
        let (x, y) = ((plot.x(time) - wide).max(left), plot.y(row as f64 + 1.0));
        let place = format!("x={x:.1} y={y:.1} width={:.1} height={:.1}", wide + 0.3, tall - 1.0);
        let _ = write!(content, "<rect {place} fill='{}' />", orange((count / most).sqrt()));
    }
    svg(size, &content)
}

/// From dark, which is next to nothing on a dark ground, to bright.
fn orange(share: f64) -> String {
    const STOPS: [[f64; 3]; 4] = [[102.0, 37.0, 6.0], [217.0, 72.0, 1.0], [253.0, 174.0, 107.0], [255.0, 245.0, 235.0]];
    let at = share.clamp(0.0, 1.0) * 3.0;
    let (from, part) = ((at as usize).min(2), at - (at as usize).min(2) as f64);
    let channel = |number: usize| STOPS[from][number] + (STOPS[from + 1][number] - STOPS[from][number]) * part;
    format!("rgb({:.0},{:.0},{:.0})", channel(0), channel(1), channel(2))
}
