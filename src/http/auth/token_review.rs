//! The two questions to the apiserver about a bearer token: who is it (`TokenReview`), and may that one `get` the
//! metrics path (`SubjectAccessReview`).
//!
//! What kube-rbac-proxy does beside an exporter, done here. It is asked over our own client and with our own service
//! account, which needs `create` on both (ClusterRole `system:auth-delegator`). The scraper needs `get` on the path
//! under `nonResourceURLs`. The answers are remembered in `judged.rs`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::token_cache::Verdict;
use crate::apiserver::{Client, Outcome};
use crate::error::Error;

const LARGEST_ANSWER: usize = 64 << 10;

/// Asks.
#[derive(Debug)]
pub(in crate::http) struct Reviewer {
    client: Arc<Client>,
    /// What one must be allowed to get.
    path: String,
}

impl Reviewer {
    pub(in crate::http) fn new(client: Arc<Client>, path: String) -> Self {
        Reviewer { client, path }
    }

    /// # Errors
    /// If the apiserver did not say. The words never repeat the token.
    pub(in crate::http) async fn ask(&self, token: &str) -> Result<Verdict, Error> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token },
        });
        let review: TokenStatus = self.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        let user = match review.user {
            Some(user) if review.authenticated && !user.username.is_empty() => user,
            _ => return Ok(Verdict::Unknown),
        };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.username,
                "uid": user.uid,
                "groups": user.groups,
                "extra": user.extra,
                "nonResourceAttributes": { "path": self.path, "verb": "get" },
            },
        });
        let review: AccessStatus = self.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?;
        // As the apiserver itself decides: denied wins.
        Ok(if review.allowed && !review.denied { Verdict::Admitted } else { Verdict::Forbidden(user.username) })
    }

    async fn post<T: for<'a> Deserialize<'a>>(&self, path: &str, review: &Value) -> Result<T, Error> {
        let exchange = self.client.post(path, review.to_string().as_bytes(), LARGEST_ANSWER).await?;
        if exchange.outcome != Outcome::Ok {
            let error = exchange.error.unwrap_or_else(|| Error::malformed(path));
            return Err(match exchange.outcome {
                Outcome::Unauthorized => error.context(
                    "the exporter's service account is not allowed to create tokenreviews and subjectaccessreviews: bind ClusterRole system:auth-delegator to it",
                ),
                _ => error,
            });
        }
        // Its words might repeat what was sent.
        let answer: Answer<T> = serde_json::from_slice(&exchange.body)
            .map_err(|_| Error::malformed(format!("{path}: malformed answer")))?;
        Ok(answer.status)
    }
}

#[derive(Deserialize)]
struct Answer<T> {
    status: T,
}

#[derive(Deserialize)]
struct TokenStatus {
    #[serde(default)]
    authenticated: bool,
    user: Option<User>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: Value,
}

#[derive(Deserialize)]
struct AccessStatus {
    #[serde(default)]
    allowed: bool,
    #[serde(default)]
    denied: bool,
}
