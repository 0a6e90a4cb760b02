//! A kubeconfig file, as far as we need it: where the server of the current context is, whom to believe, who we are.
//!
//! As client-go reads it: `…-data` (base64) wins over the file of the same name, `tokenFile` over `token`, a relative
//! path is relative to the kubeconfig's folder. What we cannot do (`exec`, `auth-provider`, passwords, impersonation,
//! proxies) is an error that names it, and not a probe that fails for a reason nobody sees.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::Address;
use crate::client::credentials::Token;
use crate::client::host_port::{self, HostPort};
use crate::error::{Error, Result};

/// With three certificates inlined a kubeconfig has some ten kilobytes.
const LONGEST: usize = 1 << 20;

/// Where a certificate or a key is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// In a file.
    File(PathBuf),
    /// In the kubeconfig itself, as PEM.
    Inline(Vec<u8>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => f.debug_tuple("File").field(path).finish(),
            // It may be a private key.
            Source::Inline(_) => f.write_str("Inline(…)"),
        }
    }
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bearer {
    File(PathBuf),
    Inline(Token),
}

/// What the current context says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kubeconfig {
    pub(super) server: Address,
    pub(super) server_name: Option<String>,
    pub(super) insecure_skip_verify: bool,
    pub(super) ca: Option<Source>,
    /// Our certificate and its key.
    pub(super) client: Option<(Source, Source)>,
    pub(super) token: Option<Bearer>,
}

impl Kubeconfig {
    /// Parses the text of a kubeconfig that lies in `folder`.
    ///
    /// # Errors
    /// Malformed, in words that repeat no secret.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self> {
        let document = document(text)?;
        let current = string(&document, "current-context")
            .ok_or_else(|| Error::malformed("has no current-context: `kubectl config use-context` sets it"))?;
        let context = entry(&document, "contexts", current, "context")?;
        let cluster_name = string(context, "cluster")
            .ok_or_else(|| Error::malformed(format!("context {current:?} names no cluster")))?;
        let cluster = entry(&document, "clusters", cluster_name, "cluster")?;
        let nobody = Value::Null;
        let user = match string(context, "user") {
            Some(name) => entry(&document, "users", name, "user")?,
            None => &nobody,
        };
        refuse(cluster, "cluster", &[("proxy-url", "a proxy")])?;
        refuse(
            user,
            "user",
            &[
                ("exec", "a program that fetches credentials"),
                ("auth-provider", "an authentication plugin"),
                ("username", "a password"),
                ("password", "a password"),
                ("as", "impersonation"),
            ],
        )?;
        let certificate = source(user, "client-certificate", folder)?;
        let key = source(user, "client-key", folder)?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(Error::malformed("has a client-certificate but no client-key")),
            (None, Some(_)) => return Err(Error::malformed("has a client-key but no client-certificate")),
        };
        let token = match (string(user, "tokenFile"), string(user, "token")) {
            (Some(path), _) => Some(Bearer::File(folder.join(path))),
            (None, Some(token)) => {
                Some(Bearer::Inline(Token::new(token).map_err(|error| error.context("the user's token"))?))
            }
            (None, None) => None,
        };
        Ok(Kubeconfig {
            server: address(cluster, cluster_name)?,
            server_name: string(cluster, "tls-server-name").map(str::to_owned),
            insecure_skip_verify: cluster.get("insecure-skip-tls-verify") == Some(&Value::Bool(true)),
            ca: source(cluster, "certificate-authority", folder)?,
            client,
            token,
        })
    }
}

/// Where somebody else's client connects to, by its own kubeconfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TheirServer {
    /// `https://`, else `http://`.
    pub tls: bool,
    /// Where it listens.
    pub place: HostPort,
    /// `proxy-url`, as it is written.
    pub proxy: Option<String>,
}

/// The server of the current context: all that is wanted of a kubeconfig that is somebody else's. Whatever else is in
/// it does not matter.
///
/// Without a scheme it is as client-go takes it (`DefaultServerURL` in k8s.io/client-go/rest/url_utils.go): `https` if
/// the file has anything of TLS, else `http`. Without a current context client-go finds no server, and neither do we.
///
/// # Errors
/// Malformed if it is no kubeconfig or does not say it.
pub fn server(text: &str) -> Result<TheirServer> {
    let document = document(text)?;
    let current = string(&document, "current-context")
        .ok_or_else(|| Error::malformed("has no current-context: a client that reads it finds no server"))?;
    let context = entry(&document, "contexts", current, "context")?;
    let name =
        string(context, "cluster").ok_or_else(|| Error::malformed(format!("context {current:?} names no cluster")))?;
    let cluster = entry(&document, "clusters", name, "cluster")?;
    let user = string(context, "user").and_then(|name| entry(&document, "users", name, "user").ok());
    let given = |value: &Value, keys: &[&str]| keys.iter().any(|key| string(value, key).is_some());
    let tls = given(cluster, &["certificate-authority", "certificate-authority-data"])
        || cluster.get("insecure-skip-tls-verify") == Some(&Value::Bool(true))
        || user.is_some_and(|user| given(user, &["client-certificate", "client-certificate-data"]));
    let server =
        string(cluster, "server").ok_or_else(|| Error::malformed(format!("cluster {name:?} has no server")))?;
    let (tls, place) = their_url(server, tls)
        .ok_or_else(|| Error::malformed(format!("the server of cluster {name:?} is not [https://]HOST[:PORT]")))?;
    Ok(TheirServer { tls, place, proxy: string(cluster, "proxy-url").map(str::to_owned) })
}

fn their_url(url: &str, tls: bool) -> Option<(bool, HostPort)> {
    let url: Uri = host_port::with_scheme(url, if tls { "https" } else { "http" }).parse().ok()?;
    let (tls, default) = match url.scheme_str()? {
        "https" => (true, 443),
        "http" => (false, 80),
        _ => return None,
    };
    let is_bare = !url.authority()?.as_str().contains('@');
    HostPort::of_url(&url, default).filter(|_| is_bare).map(|place| (tls, place))
}

fn document(text: &str) -> Result<Value> {
    if text.len() > LONGEST {
        return Err(Error::malformed(format!("is larger than {LONGEST} bytes")));
    }
    let value = if text.trim_start().starts_with('{') {
        // Only the place: the words of a parser may repeat what it read.
        serde_json::from_str(text).map_err(|error| format!("line {}, column {}", error.line(), error.column()))
    } else {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::LastWins,
            with_snippet: false,
        };
        let mut bytes = text.as_bytes();
        match serde_saphyr::read_with_options::<_, Value>(&mut bytes, options).next() {
            None => Ok(Value::Null),
            Some(value) => value.map_err(|error| match error.location() {
                Some(place) => format!("line {}, column {}", place.line(), place.column()),
                None => "somewhere".to_owned(),
            }),
        }
    };
    match value {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(Value::Null) => Err(Error::malformed("is empty")),
        Ok(_) => Err(Error::malformed("is not a kubeconfig: it is not a mapping")),
        Err(place) => Err(Error::malformed(format!("is neither YAML nor JSON ({place})"))),
    }
}

/// The value of a key, if it is text and not empty.
fn string<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// `{name: …, cluster: {…}}` of this name in one of the three lists.
fn entry<'a>(document: &'a Value, list: &str, name: &str, what: &str) -> Result<&'a Value> {
    let entries = document.get(list).and_then(Value::as_array).into_iter().flatten();
    entries
        .filter(|entry| string(entry, "name") == Some(name))
        .find_map(|entry| entry.get(what))
        .ok_or_else(|| Error::malformed(format!("has no {what} {name:?}")))
}

fn address(cluster: &Value, name: &str) -> Result<Address> {
    let server =
        string(cluster, "server").ok_or_else(|| Error::malformed(format!("cluster {name:?} has no server")))?;
    Address::apiserver(server).map_err(|error| Error::malformed(format!("the server of cluster {name:?}: {error}")))
}

fn source(value: &Value, key: &str, folder: &Path) -> Result<Option<Source>> {
    if let Some(data) = string(value, &format!("{key}-data")) {
        let compact: String = data.split_whitespace().collect();
        let pem = STANDARD.decode(compact);
        return match pem {
            Ok(pem) => Ok(Some(Source::Inline(pem))),
            Err(_) => Err(Error::malformed(format!("{key}-data is not base64"))),
        };
    }
    Ok(string(value, key).map(|path| Source::File(folder.join(path))))
}

fn refuse(value: &Value, whose: &str, unsupported: &[(&str, &str)]) -> Result<()> {
    for (key, what) in unsupported {
        if value.get(*key).is_some_and(|value| !value.is_null() && value.as_str() != Some("")) {
            return Err(Error::malformed(format!(
                "its {whose} has {key:?}: {what}, which is not supported; a token (token, tokenFile, --apiserver.token-file) or a client certificate is"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
