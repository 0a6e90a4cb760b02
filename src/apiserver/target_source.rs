//! What is needed to ask: address, trust, credentials. Read again for each request, because all of it rotates.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::kubeconfig::{Bearer, Kubeconfig, Source};
use super::{Ask, Settings};
use crate::client::blocking::SingleBlockingCall;
use crate::client::credentials::{Token, present, service_account};
use crate::client::target::{Material, Target, Tls};
use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};

/// Reads it.
#[derive(Debug)]
pub(super) struct TargetSource {
    reader: Arc<Reader>,
    reading: SingleBlockingCall,
}

#[derive(Debug)]
struct Reader {
    settings: Settings,
    host: Arc<Host>,
    /// Made of the files as they were last time.
    last: Mutex<Option<Arc<Tls>>>,
    /// What the kubeconfig said last time, and what that means.
    parsed: Mutex<Option<(String, Arc<Kubeconfig>)>>,
}

impl TargetSource {
    /// `None`: there is no apiserver to ask.
    pub(super) fn new(settings: Settings, host: Arc<Host>) -> Option<Self> {
        let asked = match &settings.ask {
            Ask::Never => false,
            Ask::At(_) => true,
            Ask::IfConfigured { .. } if settings.kubeconfig.is_some() => true,
            Ask::IfConfigured { in_cluster: None } => false,
            Ask::IfConfigured { in_cluster: Some(_) } => {
                let named = settings.token_file.is_some() || settings.ca_file.is_some();
                // A pod without a service account (`automountServiceAccountToken: false`) is not meant to ask. A file
                // that is there and cannot be read is another thing, and told at each attempt.
                let has = |name| !matches!(host.read_some(service_account(name)), Ok(None));
                named || has("token") || has("ca.crt")
            }
        };
        let reader = Reader { settings, host, last: Mutex::default(), parsed: Mutex::default() };
        asked.then(|| TargetSource { reader: Arc::new(reader), reading: SingleBlockingCall::default() })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.reader.settings
    }

    /// Off the runtime's workers: a file may lie on a file system that hangs.
    pub(super) async fn target(&self, deadline: Deadline) -> Result<Target> {
        let reader = Arc::clone(&self.reader);
        self.reading.run(deadline, move || reader.target()).await.unwrap_or_else(|| {
            Err(Error::new(
                Reason::Timeout,
                "the files with the credentials for the apiserver were not read before the deadline",
            ))
        })
    }
}

impl Reader {
    fn target(&self) -> Result<Target> {
        let told = self.kubeconfig()?;
        let told = told.as_deref();
        let settings = &self.settings;
        let address = match (&settings.ask, told) {
            (Ask::At(address), _) => address.clone(),
            (_, Some(kubeconfig)) => kubeconfig.server.clone(),
            (Ask::IfConfigured { in_cluster: Some(address) }, None) => address.clone(),
            (Ask::IfConfigured { in_cluster: None } | Ask::Never, None) => {
                return Err(Error::absent("no apiserver to ask: set --apiserver.url or --kubeconfig"));
            }
        };
        let name = settings.server_name.clone().or_else(|| told.and_then(|told| told.server_name.clone()));
        let material = Material {
            names: vec![name.unwrap_or_else(|| address.host().to_owned())],
            ca: self.ca(told)?,
            pinned: Vec::new(),
            client: told.and_then(|told| told.client.as_ref()).map(|client| self.client(client)).transpose()?,
            address: address.clone(),
        };
        Ok(Target { address, token: self.token(told)?, tls: self.tls(material)? })
    }

    fn kubeconfig(&self) -> Result<Option<Arc<Kubeconfig>>> {
        let Some(path) = &self.settings.kubeconfig else { return Ok(None) };
        let text = self.read(path, "--kubeconfig")?;
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kubeconfig)) = parsed.as_ref().filter(|(last, _)| *last == text) {
            return Ok(Some(Arc::clone(kubeconfig)));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let kubeconfig = Kubeconfig::parse(&text, folder)
            .map_err(|error| error.context(format_args!("{} (--kubeconfig)", path.display())))?;
        Ok(Some(Arc::clone(&parsed.insert((text, Arc::new(kubeconfig))).1)))
    }

    /// A file that was named.
    fn read(&self, path: &Path, flag: &str) -> Result<String> {
        self.host.read(path).map_err(|error| present(error).context(format_args!("for the apiserver ({flag})")))
    }

    fn source(&self, source: &Source, what: &str) -> Result<(String, Vec<u8>)> {
        match source {
            Source::Inline(pem) => Ok((format!("the kubeconfig's {what}-data"), pem.clone())),
            Source::File(path) => {
                Ok((path.display().to_string(), self.read(path, &format!("{what} of --kubeconfig"))?.into_bytes()))
            }
        }
    }

    fn ca(&self, told: Option<&Kubeconfig>) -> Result<Option<(String, Vec<u8>)>> {
        if self.settings.insecure_skip_verify {
            return Ok(None);
        }
        if let Some(path) = &self.settings.ca_file {
            return Ok(Some((path.display().to_string(), self.read(path, "--apiserver.ca-file")?.into_bytes())));
        }
        match told {
            Some(Kubeconfig { insecure_skip_verify: true, .. }) => Ok(None),
            Some(Kubeconfig { ca: Some(source), .. }) => self.source(source, "certificate-authority").map(Some),
            Some(_) => Err(Error::malformed(
                "the kubeconfig's cluster names no certificate-authority, and public ones are not trusted: set --apiserver.ca-file",
            )),
            None => {
                let path = service_account("ca.crt");
                Ok(Some((path.display().to_string(), self.read(&path, "--apiserver.ca-file")?.into_bytes())))
            }
        }
    }

    /// Of one file for both, as the kubelet's `kubelet-client-current.pem`, one state is read.
    fn client(&self, (certificate, key): &(Source, Source)) -> Result<(String, Vec<u8>, Vec<u8>)> {
        let (place, chain) = self.source(certificate, "client-certificate")?;
        if certificate == key {
            return Ok((place, chain.clone(), chain));
        }
        let (_, key) = self.source(key, "client-key")?;
        Ok((place, chain, key))
    }

    fn token(&self, told: Option<&Kubeconfig>) -> Result<Option<Token>> {
        let parse = |path: &Path, text: &str| Token::new(text).map(Some).map_err(|error| error.context(path.display()));
        if let Some(path) = &self.settings.token_file {
            return parse(path, &self.read(path, "--apiserver.token-file")?);
        }
        match told.map(|told| &told.token) {
            Some(None) => Ok(None),
            Some(Some(Bearer::Inline(token))) => Ok(Some(token.clone())),
            Some(Some(Bearer::File(path))) => parse(path, &self.read(path, "tokenFile of --kubeconfig")?),
            None => {
                let path = service_account("token");
                match self.host.read_some(&path)? {
                    Some(text) => parse(&path, &text),
                    // Health paths are for everybody.
                    None => Ok(None),
                }
            }
        }
    }

    fn tls(&self, material: Material) -> Result<Arc<Tls>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tls) = last.as_ref().filter(|last| last.material == material) {
            return Ok(Arc::clone(tls));
        }
        let generation = last.as_ref().map_or(0, |last| last.generation + 1);
        Ok(Arc::clone(last.insert(Arc::new(Tls::of(material, generation)?))))
    }
}
