//! Arguments → machine and modes → serve → bounded shutdown.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use headroom::check_config;
use headroom::config::{Config, Invocation};
use headroom::doctor;
use headroom::heap;
use headroom::host::Host;
use headroom::http::{self, App, Security};
use headroom::log;
use headroom::printable::printable_lines;
use headroom::probes::Probes;
use headroom::report;
use headroom::scrape::Scraper;
use headroom::services::Services;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

fn main() -> ExitCode {
    heap::share();
    match Invocation::from_process() {
        Invocation::Serve(config) => serve(*config),
        Invocation::Doctor(options, config) => examine(&options, *config),
        Invocation::CheckConfig(options) => {
            let (text, code) = check_config::run(&options);
            print(&text, code)
        }
        Invocation::Print(text) => print(&text, 0),
    }
}

/// A reader that has seen enough, such as `head`, is no error.
fn print(text: &str, code: u8) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("headroom-exporter: cannot write: {error}");
            ExitCode::from(2)
        }
        _ => ExitCode::from(code),
    }
}

fn examine(options: &doctor::Options, config: Config) -> ExitCode {
    log::to_stderr(config.log_level, config.log_format, config.journal_stream.as_deref());
    let runtime = match threads() {
        Ok(runtime) => runtime,
        Err(error) => return fail("cannot start threads", &error),
    };
    let subject = doctor::Subject {
        host: Host::new(config.roots).in_a_pod(config.in_a_pod),
        modes: config.modes,
        services: config.services,
        settings: config.settings,
    };
    let progress = |lasted: Duration| {
        if options.progress {
            eprint!("\r\x1b[Ksampling, {:.0} of {} s", lasted.as_secs_f64(), options.time.as_secs());
        }
    };
    let report = runtime.block_on(doctor::examine(subject, options, progress));
    runtime.shutdown_timeout(Duration::from_millis(100));
    if options.progress {
        eprint!("\r\x1b[K");
    }
    let text = if options.json { report::json::render(&report) } else { report::text::render(&report, options.color) };
    print(&text, report.exit_code())
}

/// By hand, because dropping a runtime waits for its blocked threads, and one may hang in the kernel for ever.
///
/// The threads of collectors wait for the next scrape: to start and to end a dozen of them each time costs more than
/// what they hold.
fn threads() -> io::Result<tokio::runtime::Runtime> {
    const KEEP_ALIVE: Duration = Duration::from_secs(150);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.thread_keep_alive(KEEP_ALIVE).enable_all().build()
}

fn serve(config: Config) -> ExitCode {
    log::to_stderr(config.log_level, config.log_format, config.journal_stream.as_deref());
    let runtime = match threads() {
        Ok(runtime) => runtime,
        Err(error) => return fail("cannot start threads", &error),
    };
    let code = runtime.block_on(run(config));
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

async fn run(config: Config) -> ExitCode {
    // Before anything else: a signal that comes while we start must end us as orderly as any later one.
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail("cannot handle signals", &error),
    };
    let host = Arc::new(Host::new(config.roots).in_a_pod(config.in_a_pod));
    let services = Services::new(config.services);
    let security = match Security::start(&config.http, &host, &services.apiserver).await {
        Ok(security) => security,
        Err(error) => return fail("the web side cannot be as secure as it is asked to be", &error),
    };
    let mut listeners = Vec::new();
    for address in &config.listen {
        match address.bind().await {
            Ok(listener) => listeners.push(listener),
            Err(error) => return fail(&format!("cannot listen on {address}"), &error),
        }
    }
    let bound: Vec<String> =
        listeners.iter().filter_map(|listener| listener.local_addr().ok()).map(|bound| bound.to_string()).collect();
    let modes: Vec<_> = config.modes.iter().map(|mode| (*mode, (mode.build)(&config.settings, &services))).collect();
    let collectors: Vec<&str> = config.modes.iter().map(|mode| mode.id).collect();
    tracing::info!(
        version = headroom::self_metrics::VERSION,
        revision = headroom::self_metrics::REVISION,
        listening = bound.join(","),
        collectors = collectors.join(","),
        "headroom-exporter starts"
    );

    let mut probes = Probes::default();
    for (_, collector) in &modes {
        probes.start(&host, &**collector);
    }
    let kubelet = services.kubelet.clone();
    let scraper = Scraper::new(host, services, modes);
    let app = App::new(scraper, config.http, Arc::clone(&security), kubelet);
    let (stop, stopped) = watch::channel(false);
    let serving =
        tokio::spawn(http::serve(listeners, Arc::clone(&app).router(), security, stopped, config.shutdown_grace));
    let warming = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.warm_up().await }
    });

    let name = signals.next().await;
    tracing::info!(signal = name, "shutting down");
    warming.abort();
    drop(probes);
    app.set_ready(false);
    let _ = stop.send(true);
    tokio::select! {
        _ = serving => {}
        _ = signals.next() => tracing::warn!("second signal: not waiting any longer"),
    }
    ExitCode::SUCCESS
}

/// The two signals that ask for an orderly end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn fail(what: &str, error: &dyn std::error::Error) -> ExitCode {
    tracing::error!(%error, "{what}");
    eprintln!("headroom-exporter: {what}: {}", printable_lines(&error.to_string()));
    ExitCode::FAILURE
}
