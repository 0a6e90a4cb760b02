//! What real Prometheus servers take of the page: the whole of it, in every format that they can be told to ask for.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::apiserver::{Act, Server};
use crate::common::prometheus::Release;
use crate::common::tls_server::Identity;
use crate::common::{Exporter, Page, eventually_within};
use crate::server::Prometheus;

/// What Prometheus 3 can be told to ask for: one job each. Without `fallback_scrape_protocol` it refuses a page whose
/// content type it does not know.
const PROTOCOLS: [&str; 7] = [
    "",
    "scrape_protocols: [OpenMetricsText1.0.0]",
    "scrape_protocols: [OpenMetricsText0.0.1]",
    "scrape_protocols: [PrometheusText1.0.0]",
    "scrape_protocols: [PrometheusText0.0.4]",
    "scrape_protocols: [PrometheusProto, OpenMetricsText1.0.0]",
    "metric_name_validation_scheme: legacy, metric_name_escaping_scheme: underscores",
];

#[test]
fn prometheus_2_takes_the_whole_page() {
    takes_the_whole_page(Release::Installed, &PROTOCOLS[..1]);
}

#[test]
fn prometheus_3_takes_the_whole_page_in_every_format() {
    takes_the_whole_page(Release::Three, &PROTOCOLS);
}

fn takes_the_whole_page(release: Release, protocols: &[&str]) {
    if !release.runs(&["prometheus"]) {
        return;
    }
    // With an apiserver that answers the probes' histograms are on the page.
    let identity = Identity::self_signed(&["127.0.0.1"]);
    let apiserver = Server::start(identity.config(None), Act::ok("ok"));
    let url = format!("--apiserver.url={}", apiserver.url());
    let exporter = Exporter::start(&[&url, "--apiserver.insecure-skip-verify"]);
    eventually_within(30, "the apiserver was probed", || exporter.get("/metrics", &[]).text().contains("_bucket{"));
    let address = exporter.address;
    let mut config = String::from("global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n");
    for (place, protocol) in protocols.iter().enumerate() {
        let comma = if protocol.is_empty() { "" } else { "," };
        config +=
            &format!("- {{job_name: job-{place}, static_configs: [{{targets: ['{address}']}}]{comma} {protocol}}}\n");
    }
    let prometheus = Prometheus::start(release, &config);
    let targets = || {
        let data = prometheus.ask("/api/v1/targets", &[]).unwrap();
        data["activeTargets"].as_array().unwrap().clone()
    };
    eventually_within(45, "every job scraped three times", || {
        let count = format!("count(count_over_time(up[1m]) >= 3) == {}", protocols.len());
        prometheus.numbers(&count, true) == Ok(1)
    });
    for target in targets() {
        assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{release:?}: {target:#}");
    }
    let page = Page::parse(&exporter.get("/metrics", &[]).text());
    let names: BTreeSet<&str> = page.0.keys().map(|series| series.split('{').next().unwrap()).collect();
    assert!(names.len() > 50 && names.iter().any(|name| name.ends_with("_bucket")), "{names:?}");
    for (place, protocol) in protocols.iter().enumerate() {
        let of = |by: &str, label: &str| {
            let query =
                format!("group by ({by}) ({{job=\"job-{place}\",__name__=~\"headroom_.+|process_.+\",{label}}})");
            let data = prometheus.ask("/api/v1/query", &[("query", &query)]).unwrap();
            data["result"].as_array().unwrap().iter().map(|row| row["metric"].clone()).collect::<Vec<Value>>()
        };
        let found = of("__name__", "");
        let found: BTreeSet<&str> = found.iter().map(|row| row["__name__"].as_str().unwrap()).collect();
        assert_eq!(found, names, "{release:?}: {protocol}");
        // Prometheus 3 writes them the same way whatever the format, and 2 as OpenMetrics does: the same again.
        let bounds = of("le", "le!=\"\"");
        let bounds: BTreeSet<&str> = bounds.iter().map(|row| row["le"].as_str().unwrap()).collect();
        assert!(bounds.contains("1.0") && !bounds.contains("1"), "{release:?}: {protocol}: {bounds:?}");
    }
}
