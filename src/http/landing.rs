//! The page at `/`: which machine this is, which modes are watched, and where to go from here.

use std::fmt::Write as _;

use crate::about::VERSION;
use crate::host::Host;
use crate::modes::{MODES, Mode};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:44em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;width:100%}td,th{padding:.3em .8em .3em 0;text-align:left;border-bottom:1px solid #8884}\
    code{font-size:.95em}:root{color-scheme:light dark}";

/// The HTML. No script, no image, one request.
pub(super) fn page(telemetry_path: &str, enabled: &[&'static Mode], host: &Host) -> String {
    let mut rows = String::new();
    for mode in MODES {
        let on = enabled.iter().any(|enabled| enabled.id == mode.id);
        let name = escape(mode.id);
        let link = if on {
            format!("<a href=\"{}?collect[]={name}\"><code>{name}</code></a>", escape(telemetry_path))
        } else {
            format!("<code>{name}</code>")
        };
        let state = if on { "on" } else { "off" };
        let _ = writeln!(rows, "<tr><td>{link}</td><td>{}</td><td>{state}</td></tr>", escape(mode.title));
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>headroom-exporter</title><style>{STYLE}</style></head><body>\n\
         <h1>headroom-exporter</h1>\n\
         <p>How far this node is from the failures that take nodes down while every dashboard is green.</p>\n\
         <p><a href=\"{path}\">Metrics</a> · <a href=\"/healthz\">health</a> · <a href=\"/readyz\">readiness</a></p>\n\
         <table><tr><th>collector</th><th>what fails</th><th></th></tr>\n{rows}</table>\n\
         <p><small>{machine}<br>headroom-exporter {VERSION}</small></p>\n</body></html>\n",
        path = escape(telemetry_path),
        machine = escape(&machine(host)),
    )
}

/// Facts about the machine that help to tell nodes apart. sysinfo knows them; it has no notion of another root, so the
/// kernel comes from the observed procfs and only the rest from our own surroundings.
fn machine(host: &Host) -> String {
    let name = sysinfo::System::host_name().unwrap_or_else(|| "unknown host".to_owned());
    let kernel = host.kernel().map_or_else(|_| "unknown kernel".to_owned(), |kernel| kernel.release);
    let up = sysinfo::System::uptime();
    format!("{name}, Linux {kernel}, up {} d {} h", up / 86_400, up / 3_600 % 24)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    #[test]
    fn every_mode_is_listed_and_odd_paths_are_escaped() {
        let page = page("/\"><script>", &[MODES[0]], &Host::new(Roots::default()));
        assert!(MODES.iter().all(|mode| page.contains(mode.id)));
        assert!(!page.contains("<script>"));
        assert!(page.contains("<td>on</td>") && page.contains("<td>off</td>"));
    }
}
