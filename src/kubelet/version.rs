//! Which Kubernetes a program says that it is: what kubelets and apiservers do depends on the minor version.

use std::fmt;
use std::str::FromStr;

/// A version of Kubernetes 1, such as `v1.32.13` or `v1.31.4+k3s1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    minor: u32,
    text: String,
}

/// No program of Kubernetes calls itself anything longer.
const LONGEST: usize = 64;

impl Version {
    /// The version of this text (`gitVersion`, `kubeletVersion`; the `v` may be missing); `None` if it is none of
    /// Kubernetes 1. What distributions append (`+k3s1`, `-gke.1234`, `-eks-1a2b`) stays in the text.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let number = text.strip_prefix('v').unwrap_or(text).strip_prefix("1.")?;
        let digits = number.find(|byte: char| !byte.is_ascii_digit()).unwrap_or(number.len());
        let (minor, rest) = number.split_at(digits);
        let fits = text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
        let ends = rest.is_empty() || rest.starts_with(['.', '+', '-']);
        (fits && ends).then(|| Some(Version { minor: minor.parse().ok()?, text: text.to_owned() })).flatten()
    }

    /// The second number: 32 of 1.32.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// True if it is 1.`minor` or later.
    pub fn is_at_least(&self, minor: u32) -> bool {
        self.minor >= minor
    }
}

/// True if the version is known, and older than 1.`minor`: what is unknown is taken for new.
pub fn before(version: Option<&Version>, minor: u32) -> bool {
    version.is_some_and(|version| !version.is_at_least(minor))
}

/// As on a command line.
impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Version::parse(text).ok_or_else(|| "expected a version of Kubernetes such as v1.28.15".to_owned())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say() {
        let minor = |text| Version::parse(text).map(|version| version.minor());
        for (text, expected) in [
            ("v1.32.13", 32),
            ("1.28.15", 28),
            ("v1.31.4+k3s1", 31),
            ("v1.27.3-gke.100", 27),
            ("v1.30.0-eks-036c24b", 30),
            ("v1.37.0-alpha.1.45+0123abcd", 37),
            ("v1.29", 29),
            (" v1.9.6\n", 9),
        ] {
            assert_eq!(minor(text), Some(expected), "{text}");
        }
        for text in ["", "v1", "v1.", "v2.1.0", "v1.x.3", "1.28a", "v1.32.0 and more", "v0.19.3", "vv1.32.0", "1..3"] {
            assert_eq!(minor(text), None, "{text:?}");
        }
        assert_eq!(minor(&format!("v1.32.0+{}", "x".repeat(99))), None);
        assert_eq!(Version::parse(" v1.31.4+k3s1\n").unwrap().to_string(), "v1.31.4+k3s1");
    }

    #[test]
    fn they_are_compared_as_numbers() {
        let version = Version::parse("v1.9.0").unwrap();
        assert!(version.is_at_least(9) && version.is_at_least(8) && !version.is_at_least(10));
        assert!(before(Some(&version), 10) && !before(Some(&version), 9) && !before(None, 10));
    }
}
