//! The file of `--web.config.file` and the files it names, looked at again and again, so that a new certificate or
//! password needs no restart.
//!
//! A look is one `stat(2)` of each, at most once a second and only when somebody connects or asks; what has changed is
//! read. Reading happens off the workers and is waited for a second at the most: a file system that hangs costs one
//! thread, and the configuration stays as it was. So it does when the new one is broken, or when it would take a
//! protection away: a file that is being written is empty for a moment, and that must not open the door.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;

use super::tls::{Material, Serving};
use super::web_config::{ClientAuth, Source, WebConfig};
use crate::error::{Error, Reason, Result};
use crate::host::{FileVersion, Host};

const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
/// The first look is worth more patience.
const AT_START: Duration = Duration::from_secs(10);

/// The configuration, ready to use.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) config: WebConfig,
    pub(super) tls: Option<Serving>,
    /// Of each file that it was made of, before it was read.
    stamps: Vec<(PathBuf, Option<FileVersion>)>,
}

/// It, kept up to date.
#[derive(Debug)]
pub(super) struct Watched {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    host: Arc<Host>,
    looking: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    looked: Instant,
    /// How the files were when they were found broken.
    broken: Option<Broken>,
    read: SystemTime,
}

#[derive(Debug)]
struct Broken {
    stamps: Vec<(PathBuf, Option<FileVersion>)>,
}

impl Watched {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// Whatever is wrong with it or with a file that it names.
    pub(super) async fn start(path: PathBuf, host: Arc<Host>) -> Result<Self> {
        let load = {
            let (path, host) = (path.clone(), Arc::clone(&host));
            tokio::task::spawn_blocking(move || load(&path, &host).0)
        };
        let loaded = match timeout(AT_START, load).await {
            Ok(Ok(loaded)) => loaded?,
            _ => return Err(Error::new(Reason::Timeout, format!("{}: not read before the deadline", path.display()))),
        };
        tell(&loaded.config);
        let state = State { loaded: Arc::new(loaded), looked: Instant::now(), broken: None, read: SystemTime::now() };
        let shared = Shared { path, host, looking: AtomicBool::new(false), state: Mutex::new(state) };
        Ok(Watched { shared: Arc::new(shared) })
    }

    /// As it is now, or as it was while the file is broken or cannot be read.
    pub(super) async fn current(&self) -> Arc<Loaded> {
        if self.shared.state().looked.elapsed() >= BETWEEN_LOOKS && !self.shared.looking.swap(true, Ordering::AcqRel) {
            let looking = Looking(Arc::clone(&self.shared));
            let look = tokio::task::spawn_blocking(move || looking.0.look());
            if timeout(PATIENCE, look).await.is_err() {
                self.shared.hangs();
            }
        }
        Arc::clone(&self.shared.state().loaded)
    }

    /// Whether the last look found the files in order, and when they were last read with success.
    pub(super) fn last_reload(&self) -> (bool, SystemTime) {
        let state = self.shared.state();
        (state.broken.is_none(), state.read)
    }

    /// As the last look left it.
    pub(super) fn last(&self) -> Arc<Loaded> {
        Arc::clone(&self.shared.state().loaded)
    }
}

/// Whoever looks; nobody else does meanwhile.
struct Looking(Arc<Shared>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        let (before, known) = {
            let state = self.state();
            let known = state.broken.as_ref().map_or(&state.loaded.stamps, |broken| &broken.stamps);
            (Arc::clone(&state.loaded), known.clone())
        };
        let unchanged = !known.is_empty() && known.iter().all(|(path, stamp)| self.host.stamp(path).ok() == *stamp);
        if unchanged {
            self.state().looked = Instant::now();
            return;
        }
        let (loaded, stamps) = load(&self.path, &self.host);
        let loaded = loaded.and_then(|loaded| match taken_away(&before, &loaded) {
            None => Ok(loaded),
            Some(what) => Err(Error::malformed(format!(
                "{}: {what}, as a half-written file would: if it is meant, restart the exporter",
                self.path.display()
            ))),
        });
        let mut state = self.state();
        state.looked = Instant::now();
        match loaded {
            Ok(loaded) => {
                tracing::info!(file = %self.path.display(), "web configuration reloaded");
                tell(&loaded.config);
                state.loaded = Arc::new(loaded);
                state.broken = None;
                state.read = SystemTime::now();
            }
            Err(error) => {
                tracing::error!(%error, "web configuration is invalid; the previous one stays in use until the file is corrected");
                state.broken = Some(Broken { stamps });
            }
        }
    }

    fn hangs(&self) {
        let mut state = self.state();
        state.looked = Instant::now();
        if state.broken.is_none() {
            tracing::error!(file = %self.path.display(), "web configuration cannot be read, its file system hangs; the previous one stays in use");
            // Without stamps: read anew as soon as that is possible.
            state.broken = Some(Broken { stamps: Vec::new() });
        }
    }
}

fn tell(config: &WebConfig) {
    for warning in &config.warnings {
        tracing::warn!("web configuration: {warning}");
    }
}

fn taken_away(before: &Loaded, after: &Loaded) -> Option<&'static str> {
    let auth = |loaded: &Loaded| loaded.config.tls.as_ref().map_or(ClientAuth::None, |tls| tls.client_auth);
    if before.tls.is_some() != after.tls.is_some() {
        return Some("it would switch TLS on or off");
    }
    if !before.config.users.is_empty() && after.config.users.is_empty() {
        return Some("it would let everybody in without a password");
    }
    if auth(after) < auth(before) {
        return Some("it would check clients' certificates less");
    }
    None
}

/// What was read, and of which files.
fn load(path: &Path, host: &Host) -> (Result<Loaded>, Vec<(PathBuf, Option<FileVersion>)>) {
    // Before it is read: what changes in between is seen at the next look.
    let mut stamps = vec![(path.to_owned(), host.stamp(path).ok())];
    let loaded = read(path, host, &mut stamps);
    (loaded.map(|loaded| Loaded { stamps: stamps.clone(), ..loaded }), stamps)
}

fn read(path: &Path, host: &Host, stamps: &mut Vec<(PathBuf, Option<FileVersion>)>) -> Result<Loaded> {
    let text = host.read(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let named = |error: Error| error.context(path.display());
    let config = WebConfig::parse(&text, folder).map_err(named)?;
    stamps.extend(config.files().into_iter().map(|file| {
        let stamp = host.stamp(&file).ok();
        (file, stamp)
    }));
    let tls = match &config.tls {
        None => None,
        Some(section) => {
            let text = |source: &Source| match source {
                Source::Inline(pem) => Ok(pem.clone()),
                Source::File(file) => host.read(file).map_err(named),
            };
            let material = Material {
                certificate: text(&section.certificate)?,
                key: text(&section.key)?,
                client_ca: section.client_ca.as_ref().map(text).transpose()?,
            };
            let serving = Serving::new(section, &material, config.http2);
            Some(serving.map_err(|what| named(Error::malformed(format!("tls_server_config: {what}"))))?)
        }
    };
    Ok(Loaded { config, tls, stamps: Vec::new() })
}
