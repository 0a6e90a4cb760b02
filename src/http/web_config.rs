//! The file of `--web.config.file`, in the format of Prometheus's exporter-toolkit (`docs/web-configuration.md` there):
//! text to plain data, without a look at any other file.
//!
//! Where this TLS library can do less than Go's, the lesser is either safe and told ([`WebConfig::warnings`]), or
//! refused.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::error::{Error, Result};

/// Certificates inlined, it has some ten kilobytes.
const LONGEST: usize = 1 << 20;
/// A check of cost 16 takes a core some five seconds, and each step doubles it.
const MOST_COST: u32 = 16;

/// Where a certificate or a key is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Inline(String),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => f.debug_tuple("File").field(path).finish(),
            Source::Inline(_) => f.write_str("Inline(…)"),
        }
    }
}

/// What is asked of clients' certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientAuth {
    #[default]
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

/// The section `tls_server_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) certificate: Source,
    pub(super) key: Source,
    pub(super) client_ca: Option<Source>,
    pub(super) client_auth: ClientAuth,
    pub(super) client_names: Option<Vec<String>>,
    /// Of TLS 1.2 and 1.3.
    pub(super) versions: (bool, bool),
    /// Of TLS 1.2, by their names in Go; not set: all.
    pub(super) cipher_suites: Option<Vec<String>>,
    /// By their names in Go; not set: all.
    pub(super) curves: Option<Vec<String>>,
    pub(super) prefer_server: bool,
}

/// A user and the bcrypt hash of the password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) hash: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One request each `interval` on the average, up to `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WebConfig {
    pub(super) tls: Option<Tls>,
    pub(super) http2: bool,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) users: Vec<User>,
    pub(super) rate: Option<Rate>,
    /// What is done otherwise than the file says.
    pub(super) warnings: Vec<String>,
}

mod file {
    use super::{BTreeMap, Deserialize};

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct File {
        pub(super) tls_server_config: Option<Tls>,
        pub(super) http_server_config: Option<Http>,
        pub(super) basic_auth_users: Option<BTreeMap<String, String>>,
        pub(super) rate_limit: Option<RateLimit>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Tls {
        pub(super) cert: Option<String>,
        pub(super) key: Option<String>,
        pub(super) client_ca: Option<String>,
        pub(super) cert_file: Option<String>,
        pub(super) key_file: Option<String>,
        pub(super) client_ca_file: Option<String>,
        pub(super) client_auth_type: Option<String>,
        pub(super) client_allowed_sans: Option<Vec<String>>,
        pub(super) min_version: Option<String>,
        pub(super) max_version: Option<String>,
        pub(super) cipher_suites: Option<Vec<String>>,
        pub(super) curve_preferences: Option<Vec<String>>,
        pub(super) prefer_server_cipher_suites: Option<bool>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Http {
        pub(super) http2: Option<bool>,
        pub(super) headers: Option<BTreeMap<String, String>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct RateLimit {
        pub(super) interval: Option<Interval>,
        pub(super) burst: Option<u32>,
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    pub(super) enum Interval {
        Nanoseconds(u64),
        Text(String),
    }
}

/// The headers that may be set, with their values where there are only these.
const HEADERS: &[(&str, &[&str])] = &[
    ("Content-Security-Policy", &[]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-XSS-Protection", &[]),
    ("Strict-Transport-Security", &[]),
];

/// Cipher suites of TLS 1.2 that both Go and this TLS library have.
pub(super) const SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// Those of TLS 1.3: no list limits them, in Go neither.
const SUITES_13: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
/// Those that Go has beside them: CBC, SHA-1.
const SUITES_OF_GO: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];
pub(super) const CURVES: [&str; 3] = ["X25519", "CurveP256", "CurveP384"];

impl WebConfig {
    /// Parses the text of a file that lies in `folder`: relative names in it are relative to that.
    ///
    /// # Errors
    /// Malformed, in words that name line and field and repeat no secret.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self> {
        if text.len() > LONGEST {
            return Err(Error::malformed(format!("is larger than {LONGEST} bytes")));
        }
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::Error, with_snippet: false };
        let mut bytes = text.as_bytes();
        let file = match serde_saphyr::read_with_options::<_, Option<file::File>>(&mut bytes, options).next() {
            None => file::File::default(),
            Some(Ok(file)) => file.unwrap_or_default(),
            Some(Err(error)) => return Err(Error::malformed(without_values(&error.to_string()))),
        };
        let mut warnings = Vec::new();
        let tls = match file.tls_server_config {
            Some(section) => {
                tls(section, folder, &mut warnings).map_err(|what| section_error("tls_server_config", &what))?
            }
            None => None,
        };
        let http = file.http_server_config.unwrap_or_default();
        let headers = headers(http.headers.unwrap_or_default())
            .map_err(|what| section_error("http_server_config.headers", &what))?;
        let users = users(file.basic_auth_users.unwrap_or_default())
            .map_err(|what| section_error("basic_auth_users", &what))?;
        let rate = match file.rate_limit {
            Some(section) => rate(section).map_err(|what| section_error("rate_limit", &what))?,
            None => None,
        };
        Ok(WebConfig { tls, http2: http.http2.unwrap_or(true), headers, users, rate, warnings })
    }

    /// The files that it names.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let sources = [Some(&tls.certificate), Some(&tls.key), tls.client_ca.as_ref()];
        let file = |source: &Source| match source {
            Source::File(path) => Some(path.clone()),
            Source::Inline(_) => None,
        };
        sources.into_iter().flatten().filter_map(file).collect()
    }
}

fn section_error(section: &str, what: &str) -> Error {
    Error::malformed(format!("{section}: {what}"))
}

/// The words of a YAML parser on one line, less the values that they quote: one may be a password.
fn without_values(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match (line.find('"'), line.rfind('"')) {
        (Some(from), Some(to)) if to > from => format!("{}\"…\"{}", &line[..from], &line[to + 1..]),
        _ => line,
    }
}

type Told<T> = std::result::Result<T, String>;

fn tls(section: file::Tls, folder: &Path, warnings: &mut Vec<String>) -> Told<Option<Tls>> {
    // As in Go, an empty string is none.
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let source = |inline: Option<String>, file: Option<String>, name: &str| match (some(inline), some(file)) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_file are both there: leave one of them out")),
        (Some(pem), None) => Ok(Some(Source::Inline(pem))),
        (None, Some(path)) => Ok(Some(Source::File(folder.join(path)))),
        (None, None) => Ok(None),
    };
    let certificate = source(section.cert, section.cert_file, "cert")?;
    let key = source(section.key, section.key_file, "key")?;
    let client_ca = source(section.client_ca, section.client_ca_file, "client_ca")?;
    let auth_type = some(section.client_auth_type);
    if certificate.is_none() && key.is_none() && client_ca.is_none() && auth_type.is_none() {
        // exporter-toolkit takes such a section for none. Whoever limits versions or suites means TLS.
        let others = section.min_version.is_some()
            || section.max_version.is_some()
            || section.cipher_suites.is_some()
            || section.curve_preferences.is_some()
            || section.client_allowed_sans.is_some();
        if others {
            warnings.push("tls_server_config names neither cert_file nor key_file: TLS stays off".to_owned());
        }
        return Ok(None);
    }
    let certificate = certificate.ok_or("names neither cert nor cert_file")?;
    let key = key.ok_or("names neither key nor key_file")?;
    let client_auth = client_auth(auth_type.as_deref())?;
    let verifies = matches!(client_auth, ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify);
    match (&client_ca, client_auth) {
        (Some(_), ClientAuth::None) => {
            return Err("client_ca is there without client_auth_type: write client_auth_type: RequireAndVerifyClientCert, or leave client_ca out".to_owned());
        }
        (None, _) if verifies => {
            return Err("client_auth_type needs client_ca or client_ca_file to verify certificates: public authorities are not trusted".to_owned());
        }
        (Some(_), _) if !verifies => warnings.push(
            "client_ca has no effect: only VerifyClientCertIfGiven and RequireAndVerifyClientCert verify".to_owned(),
        ),
        _ => {}
    }
    if matches!(client_auth, ClientAuth::Request | ClientAuth::RequireAny) {
        warnings.push(
            "this client_auth_type verifies no certificate, so it keeps nobody out: RequireAndVerifyClientCert does"
                .to_owned(),
        );
    }
    if section.client_allowed_sans.is_some()
        && !matches!(client_auth, ClientAuth::RequireAny | ClientAuth::RequireAndVerify)
    {
        return Err("client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert (or RequireAnyClientCert)"
            .to_owned());
    }
    Ok(Some(Tls {
        certificate,
        key,
        client_ca,
        client_auth,
        client_names: section.client_allowed_sans,
        versions: versions(some(section.min_version).as_deref(), some(section.max_version).as_deref(), warnings)?,
        cipher_suites: suites(section.cipher_suites.unwrap_or_default(), warnings)?,
        curves: curves(section.curve_preferences.unwrap_or_default(), warnings)?,
        prefer_server: section.prefer_server_cipher_suites.unwrap_or(true),
    }))
}

fn client_auth(text: Option<&str>) -> Told<ClientAuth> {
    Ok(match text {
        None | Some("NoClientCert") => ClientAuth::None,
        Some("RequestClientCert") => ClientAuth::Request,
        // The second is an older name of exporter-toolkit.
        Some("RequireAnyClientCert" | "RequireClientCert") => ClientAuth::RequireAny,
        Some("VerifyClientCertIfGiven") => ClientAuth::VerifyIfGiven,
        Some("RequireAndVerifyClientCert") => ClientAuth::RequireAndVerify,
        Some(other) => {
            return Err(format!(
                "client_auth_type {other:?} is none of NoClientCert, RequestClientCert, RequireAnyClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"
            ));
        }
    })
}

fn versions(min: Option<&str>, max: Option<&str>, warnings: &mut Vec<String>) -> Told<(bool, bool)> {
    let number = |field: &str, text: &str| match text {
        "TLS10" => Ok(0),
        "TLS11" => Ok(1),
        "TLS12" => Ok(2),
        "TLS13" => Ok(3),
        other => Err(format!("{field} {other:?} is neither TLS12 nor TLS13")),
    };
    let min = number("min_version", min.unwrap_or("TLS12"))?;
    let max = number("max_version", max.unwrap_or("TLS13"))?;
    if max < 2 {
        return Err("max_version: TLS 1.0 and 1.1 are not spoken here (RFC 8996): write TLS12 or TLS13".to_owned());
    }
    if min > max {
        return Err("min_version is above max_version".to_owned());
    }
    if min < 2 {
        warnings.push(
            "min_version: TLS 1.0 and 1.1 are not spoken here (RFC 8996), clients need TLS 1.2: write TLS12".to_owned(),
        );
    }
    Ok((min <= 2, max == 3))
}

fn suites(wanted: Vec<String>, warnings: &mut Vec<String>) -> Told<Option<Vec<String>>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut suites = Vec::new();
    let mut only_13 = true;
    for name in wanted {
        if SUITES.contains(&name.as_str()) {
            suites.push(name);
        } else if SUITES_OF_GO.contains(&name.as_str()) {
            only_13 = false;
            warnings.push(format!("cipher_suites: {name} (CBC) is left out; there are: {}", SUITES.join(", ")));
        } else if !SUITES_13.contains(&name.as_str()) {
            return Err(format!("cipher_suites: {name:?} is unknown; there are: {}", SUITES.join(", ")));
        }
    }
    if suites.is_empty() && !only_13 {
        return Err(format!("cipher_suites: none of these is left; there are: {}", SUITES.join(", ")));
    }
    Ok(Some(suites))
}

fn curves(wanted: Vec<String>, warnings: &mut Vec<String>) -> Told<Option<Vec<String>>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut curves = Vec::new();
    for name in wanted {
        if CURVES.contains(&name.as_str()) {
            curves.push(name);
        } else if name == "CurveP521" {
            warnings.push("curve_preferences: CurveP521 is left out".to_owned());
        } else {
            return Err(format!("curve_preferences: {name:?} is unknown; there are: {}", CURVES.join(", ")));
        }
    }
    if curves.is_empty() {
        return Err(format!("curve_preferences: none is left; there are: {}", CURVES.join(", ")));
    }
    Ok(Some(curves))
}

fn headers(wanted: BTreeMap<String, String>) -> Told<Vec<(HeaderName, HeaderValue)>> {
    let mut headers = Vec::new();
    for (name, value) in wanted {
        let Some((known, values)) = HEADERS.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = HEADERS.iter().map(|(known, _)| *known).collect();
            return Err(format!("{name:?} cannot be set; these can: {}", known.join(", ")));
        };
        if value.is_empty() {
            continue;
        }
        if !values.is_empty() && !values.contains(&value.as_str()) {
            return Err(format!("{name}: {value:?} is none of: {}", values.join(", ")));
        }
        let no_value = |_| format!("{name}: its value cannot be sent in HTTP");
        headers.push((
            HeaderName::try_from(*known).map_err(|_| format!("{name} is not the name of a header"))?,
            HeaderValue::try_from(value).map_err(no_value)?,
        ));
    }
    Ok(headers)
}

fn users(wanted: BTreeMap<String, String>) -> Told<Vec<User>> {
    let user = |(name, hash): (String, String)| {
        let cost = hash.parse::<bcrypt::HashParts>().map(|parts| parts.get_cost());
        match cost {
            Err(_) => Err(format!(
                "the value of {name:?} is not a bcrypt hash: `htpasswd -nBC 10 \"\"` makes one of a password"
            )),
            Ok(cost) if cost > MOST_COST => Err(format!(
                "the hash of {name:?} has cost {cost}, so that one check would keep a core busy for {} seconds or so: at most {MOST_COST}",
                1u64 << (cost.min(31) - 14)
            )),
            Ok(_) => Ok(User { name, hash }),
        }
    };
    wanted.into_iter().map(user).collect()
}

fn rate(section: file::RateLimit) -> Told<Option<Rate>> {
    let interval = match section.interval {
        None => Duration::ZERO,
        Some(file::Interval::Nanoseconds(number)) => Duration::from_nanos(number),
        Some(file::Interval::Text(text)) => crate::values::duration(&text)
            .map_err(|_| "interval: expected a duration such as 500ms or 1s".to_owned())?,
    };
    if interval.is_zero() {
        return Ok(None);
    }
    match section.burst.unwrap_or(0) {
        0 => {
            Err("with an interval and a burst of 0 no request would ever be answered: write burst: 1 or more"
                .to_owned())
        }
        burst => Ok(Some(Rate { interval, burst })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze";

    fn parse(text: &str) -> Result<WebConfig> {
        WebConfig::parse(text, Path::new("/etc/headroom"))
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn the_toolkits_sample_is_accepted() {
        let config = parse(&format!(
            "# comment\ntls_server_config:\n  cert_file: server.crt\n  key_file: /keys/server.key\n\
             basic_auth_users:\n  alice: {HASH}\n  bob: {HASH}\nrate_limit:\n  interval: \"1s\"\n  burst: 20\n"
        ))
        .unwrap();
        let tls = config.tls.as_ref().unwrap();
        assert_eq!(tls.certificate, Source::File("/etc/headroom/server.crt".into()));
        assert_eq!(config.files(), [Path::new("/etc/headroom/server.crt"), Path::new("/keys/server.key")]);
        assert_eq!((tls.versions, tls.client_auth, tls.prefer_server), ((true, true), ClientAuth::None, true));
        assert_eq!(config.users.iter().map(|user| &*user.name).collect::<Vec<_>>(), ["alice", "bob"]);
        assert_eq!(config.rate, Some(Rate { interval: Duration::from_secs(1), burst: 20 }));
        assert!(config.http2 && config.headers.is_empty() && config.warnings.is_empty());
    }

    #[test]
    fn every_field_is_known() {
        let config = parse(
            "tls_server_config:\n  cert: |\n    -----BEGIN\n  key: x\n  client_ca: y\n  client_auth_type: RequireAndVerifyClientCert\n  \
             client_allowed_sans: [a.example, 10.0.0.1]\n  min_version: TLS13\n  max_version: TLS13\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n  \
             prefer_server_cipher_suites: false\n  curve_preferences: [CurveP256, X25519]\nhttp_server_config:\n  http2: false\n  headers:\n    \
             Content-Security-Policy: default-src 'none'\n    X-Frame-Options: deny\n    X-Content-Type-Options: nosniff\n    X-XSS-Protection: ''\n    \
             Strict-Transport-Security: max-age=60\n",
        )
        .unwrap();
        let tls = config.tls.unwrap();
        assert_eq!((tls.client_auth, tls.versions), (ClientAuth::RequireAndVerify, (false, true)));
        assert_eq!(tls.curves.unwrap(), ["CurveP256", "X25519"]);
        assert_eq!(tls.client_names.unwrap(), ["a.example", "10.0.0.1"]);
        assert!(!config.http2 && !tls.prefer_server);
        assert_eq!(config.headers.len(), 4, "a blank one is unset");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn nothing_asks_for_nothing() {
        for text in ["", "# only a comment\n", "tls_server_config:\n", "tls_server_config: {}\nbasic_auth_users: {}\n"]
        {
            let config = parse(text).unwrap();
            assert!(config.tls.is_none() && config.users.is_empty() && config.http2, "{text:?}");
        }
        assert_eq!(parse("rate_limit: {interval: 0, burst: 0}").unwrap().rate, None);
    }

    #[test]
    fn unknown_fields_are_refused_with_line_and_name() {
        for (text, line, field) in [
            ("tls_server_config:\n  cert_fil: x\n", 2, "cert_fil"),
            ("basic_auth_users:\n  a: b\nbasic_auth: {}\n", 3, "basic_auth"),
            ("http_server_config:\n  http3: true\n", 2, "http3"),
            ("rate_limit:\n  interval: 1s\n  bursts: 2\n", 3, "bursts"),
        ] {
            let error = refused(text);
            assert!(error.contains(&format!("line {line}")) && error.contains(&format!("`{field}`")), "{error}");
        }
        assert!(refused("basic_auth_users: {}\nbasic_auth_users: {}\n").contains("line 2"));
    }

    #[test]
    fn secrets_are_not_repeated() {
        for text in ["basic_auth_users: \"alice:hunter2\"\n", "basic_auth_users: {alice: hunter2}\n", "hunter2\n"] {
            let error = refused(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let config =
            parse(&format!("tls_server_config: {{cert: a, key: hunter2}}\nbasic_auth_users: {{alice: {HASH}}}\n"));
        let shown = format!("{:?}", config.unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("$2y"), "{shown}");
    }

    #[test]
    fn what_cannot_be_done_says_what_to_write() {
        let tls = |more: &str| format!("tls_server_config: {{cert_file: c, key_file: k, {more}}}");
        for (more, what) in [
            ("max_version: TLS11", "write TLS12 or TLS13"),
            ("min_version: SSL3", "neither TLS12 nor TLS13"),
            ("min_version: TLS13, max_version: TLS12", "above max_version"),
            ("cert: x", "leave one of them out"),
            ("client_ca_file: ca", "client_auth_type: RequireAndVerifyClientCert"),
            ("client_auth_type: RequireAndVerifyClientCert", "client_ca_file"),
            ("client_auth_type: Maybe", "VerifyClientCertIfGiven"),
            ("client_auth_type: VerifyClientCertIfGiven, client_ca: x, client_allowed_sans: [a]", "RequireAndVerify"),
            ("cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]", "none of these is left"),
            ("cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]", "is unknown; there are: TLS_ECDHE"),
            ("curve_preferences: [CurveP521]", "none is left"),
            ("curve_preferences: [secp256k1]", "is unknown"),
        ] {
            let error = refused(&tls(more));
            assert!(error.contains(what) && error.starts_with("tls_server_config: "), "{more}: {error}");
        }
        for (more, what) in [
            ("min_version: TLS10", "write TLS12"),
            ("client_auth_type: RequireAnyClientCert", "keeps nobody out"),
            ("client_auth_type: RequestClientCert, client_ca: x", "client_ca has no effect"),
            ("curve_preferences: [X25519, CurveP521]", "CurveP521 is left out"),
            (
                "cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]",
                "(CBC) is left out",
            ),
        ] {
            let warnings = parse(&tls(more)).unwrap().warnings;
            assert!(warnings.iter().any(|warning| warning.contains(what)), "{more}: {warnings:?}");
        }
        for (text, what) in [
            ("tls_server_config: {cert_file: c}", "neither key nor key_file"),
            ("http_server_config: {headers: {X-Powered-By: us}}", "cannot be set; these can: Content-Security-Policy"),
            ("http_server_config: {headers: {X-Frame-Options: allow}}", "none of: deny, sameorigin"),
            ("basic_auth_users: {a: $2y$18$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze}", "cost 18"),
            ("basic_auth_users: {a: secret}", "not a bcrypt hash"),
            ("rate_limit: {interval: 1s}", "write burst: 1"),
            ("rate_limit: {interval: soon, burst: 1}", "500ms or 1s"),
        ] {
            assert!(refused(text).contains(what), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn bombs_are_refused_and_quickly() {
        let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let refs = vec![format!("*a{}", level - 1); 10].join(",");
            laughs.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        let began = std::time::Instant::now();
        assert!(parse(&laughs).is_err());
        assert!(parse(&format!("http_server_config: {}{}", "[".repeat(50_000), "]".repeat(50_000))).is_err());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
