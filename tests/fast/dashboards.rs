//! The dashboards: each is whole and says the truth about its metrics, and each query answers on a real Prometheus.
#![allow(unreachable_pub, reason = "the parts of one test")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod query;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use headroom::modes::MODES;

use crate::common::board::{self, BOARDS, Board};
use crate::common::generated;

#[test]
fn uids_are_what_links_and_bookmarks_hold() {
    for (file, uid) in BOARDS {
        let board = Board::read(file);
        assert_eq!(board.json["uid"], uid, "{file}");
        assert!(board.json["id"].is_null(), "{file}: an id is one server's");
        assert!(board.json["tags"].as_array().unwrap().iter().any(|tag| tag == "headroom"), "{file}: no tag");
        let variables: Vec<&str> =
            board.variables().iter().map(|variable| variable["name"].as_str().unwrap()).collect();
        assert!(variables.starts_with(&["datasource", "job", "cluster"]), "{file}: {variables:?}");
        // Nobody has to choose a job. One that is called otherwise is found all the same.
        let job = &board.variables()[1];
        assert_eq!((&job["hide"], &job["allValue"], &job["includeAll"]), (&2.into(), &".+".into(), &true.into()));
        assert_eq!(job["current"]["value"], "$__all", "{file}");
        // Without a cluster label there is nothing to choose, and everything must be found all the same.
        assert_eq!(board.variables()[2]["allValue"], ".*", "{file}");
        // What is changed in Grafana is lost at the next update: it must be saved as a copy.
        assert_eq!(board.json["editable"], false, "{file}");
        assert_eq!(variables.get(3), (file != "fleet").then_some(&"node"), "{file}");
    }
    let all = std::fs::read_dir(board::project("dashboards")).unwrap();
    let files = all.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "json")).count();
    assert_eq!(files, BOARDS.len(), "a dashboard that no test knows");
}

#[test]
fn dashboards_have_what_the_modes_bring() {
    generated::file("dashboards/fleet.json", &board::assembled("fleet"));
    generated::file("dashboards/node.json", &board::assembled("node"));
}

#[test]
fn no_panel_lies_on_another() {
    for (file, _) in BOARDS {
        let board = Board::read(file);
        let mut taken = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for panel in board.panels() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{file}: {title}: its id is another's");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(w > 0 && h > 0 && x + w <= 24, "{file}: {title}: out of the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                let other = taken.insert(cell, title);
                assert!(other.is_none(), "{file}: {title} lies on {other:?}");
            }
        }
    }
}

#[test]
fn every_panel_says_what_it_is_and_where_the_runbook_stands() {
    for (file, _) in BOARDS {
        let board = Board::read(file);
        for panel in board.evidence() {
            let title = panel["title"].as_str().unwrap();
            assert!(!title.is_empty(), "{file}: a panel without a title");
            assert!(
                panel["description"].as_str().is_some_and(|words| words.len() > 60),
                "{file}: {title}: description"
            );
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{file}: {title}");
            let runbook = panel["links"][0]["url"].as_str().unwrap_or_else(|| panic!("{file}: {title}: no runbook"));
            let folder = runbook.strip_prefix(board::RUNBOOKS).and_then(|rest| rest.strip_suffix("/runbook.md"));
            let folder = folder.unwrap_or_else(|| panic!("{file}: {title}: {runbook}"));
            assert!(folder == "exporter" || MODES.iter().any(|mode| mode.id == folder), "{file}: {title}: {runbook}");
            let folder = board::project("alerts").join(folder);
            assert!(!folder.exists() || folder.join("runbook.md").exists(), "{file}: {title}: {runbook} is not there");
        }
    }
}

#[test]
fn links_lead_to_dashboards_and_variables_that_there_are() {
    for (file, _) in BOARDS {
        let board = Board::read(file);
        let urls = board::strings(&board.json, "url");
        let inner: Vec<_> = urls.iter().filter_map(|url| url.strip_prefix("/d/")).collect();
        assert!(inner.len() >= 2, "{file}: leads nowhere");
        for url in inner {
            let (path, parameters) = url.split_once('?').unwrap();
            let uid = path.split('/').next().unwrap();
            let (target, _) = BOARDS.iter().find(|(_, known)| *known == uid).unwrap_or_else(|| panic!("{file}: {url}"));
            let target = Board::read(target);
            let known = |name: &str| target.variables().iter().any(|variable| variable["name"] == name);
            for parameter in parameters.split('&').filter(|parameter| *parameter != "${__url_time_range}") {
                let name = parameter.strip_prefix("${").and_then(|rest| rest.strip_suffix(":queryparam}"));
                let name = name.or_else(|| parameter.strip_prefix("var-")?.split('=').next());
                assert!(name.is_some_and(known), "{file}: {url}: {parameter}");
            }
        }
    }
    let fleet = Board::read("fleet");
    for panel in fleet.evidence().filter(|panel| panel["type"] == "table") {
        let filled = board::strings(panel, "url").iter().any(|url| url.contains("var-node=${__value.raw}"));
        assert!(filled, "{}: no way from a node to its dashboard", panel["title"]);
    }
}

#[test]
fn every_mode_has_its_row_on_node_and_its_verdict_and_evidence_on_fleet() {
    let rows: Vec<String> = Board::read("node").panels().iter().filter_map(board::row_title).collect();
    let expected: Vec<String> = MODES.iter().map(|mode| format!("{}: {}", mode.id, mode.title)).collect();
    assert_eq!(rows[..MODES.len()], expected, "the rows of node.json, in the order of the page");
    assert!(rows.len() == MODES.len() + 1 && rows[MODES.len()].starts_with("exporter"), "{rows:?}");
    for file in ["fleet", "node"] {
        let board = Board::read(file);
        for mode in MODES.iter().map(|mode| mode.id).chain(["exporter"]) {
            let link = format!("{}{mode}/runbook.md", board::RUNBOOKS);
            let of_mode =
                |kind| board.evidence().any(|panel| panel["type"] == kind && panel["links"][0]["url"] == link);
            assert!(of_mode("stat"), "{file}: no verdict of {mode}");
            assert!(of_mode("table") || of_mode("timeseries"), "{file}: no evidence of {mode}");
        }
    }
}

#[test]
fn queries_name_only_what_is_declared_and_units_are_the_metrics_own() {
    let mut seen = 0;
    for (file, _) in BOARDS {
        let board = Board::read(file);
        for panel in board.evidence() {
            for target in board::targets(panel) {
                let what = format!("{file}: {}: {}", panel["title"], target.refid);
                query::check_names(&target.expression, target.legend).unwrap_or_else(|why| panic!("{what}: {why}"));
                let unit = query::unit(&target.expression).unwrap_or_else(|why| panic!("{what}: {why}"));
                if let Some(shown) = board::shown_unit(panel, target.refid) {
                    assert_eq!(shown, unit, "{what}: {}", target.expression);
                }
                seen += 1;
            }
        }
        for query in board.variable_queries() {
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", ")).unwrap().0;
            let inner = if inner.contains('{') { inner.to_owned() } else { format!("{inner}{{}}") };
            query::check_names(&inner, "").unwrap_or_else(|why| panic!("{file}: {query}: {why}"));
        }
    }
    assert!(seen > 80, "{seen} queries");
}

#[test]
fn no_panel_of_many_nodes_can_have_a_thousand_lines() {
    for file in ["fleet", "apiserver"] {
        for panel in Board::read(file).evidence() {
            for target in board::targets(panel) {
                let by_node = query::lines_grow_with_nodes(&target.expression);
                assert!(!by_node, "{file}: {}: {}", panel["title"], target.expression);
            }
        }
    }
}

#[test]
fn pictures_in_the_document_are_there_and_small() {
    let text = std::fs::read_to_string(board::project("docs/dashboards.md")).unwrap();
    let pictures: Vec<&str> = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    for picture in pictures.iter().filter(|link| Path::new(link).extension().is_some_and(|end| end == "png")) {
        let size =
            std::fs::metadata(board::project("docs").join(picture)).unwrap_or_else(|_| panic!("{picture}")).len();
        assert!(size < 300_000, "{picture}: {size} bytes");
    }
    for (file, _) in BOARDS {
        assert!(text.contains(&format!("dashboards/{file}.json")), "{file} is not in docs/dashboards.md");
    }
}
