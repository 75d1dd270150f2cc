//! A small HTTP client, for the commands that talk to a running site.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// A client of one site.
#[derive(Clone)]
pub(super) struct Client {
    http: Hyper<HttpConnector, Full<Bytes>>,
    base: String,
    token: Option<String>,
}

impl Client {
    /// A client without a token.
    pub(super) fn new(base: &str) -> Self {
        let http = Hyper::builder(TokioExecutor::new()).build_http();
        Self { http, base: base.trim_end_matches('/').into(), token: None }
    }

    pub(super) fn with_token(mut self, token: String) -> Self {
        self.token = Some(token);
        self
    }

    /// Logs in as a user of a project in domain `Default`.
    pub(super) async fn login(base: &str, user: &str, password: &str, project: &str) -> Result<Self> {
        let client = Self::new(base);
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {"name": user, "domain": domain, "password": password}}},
            "scope": {"project": {"name": project, "domain": domain}},
        }});
        let (status, headers, answer) = client.send(Method::POST, "/identity/v3/auth/tokens", json_body(&body)).await?;
        let token = headers.get("x-subject-token").and_then(|token| token.to_str().ok());
        match token {
            Some(token) if status.is_success() => Ok(client.clone().with_token(token.to_owned())),
            _ => bail!("login at {base} failed: {status} {}", String::from_utf8_lossy(&answer)),
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(super) async fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::PATCH, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    pub(super) async fn put_bytes(&self, path: &str, body: Vec<u8>) -> Result<()> {
        let content = Some(("application/octet-stream", Bytes::from(body)));
        let (status, _, answer) = self.send(Method::PUT, path, content).await?;
        if status.is_success() { Ok(()) } else { bail!("PUT {path}: {status} {}", String::from_utf8_lossy(&answer)) }
    }

    /// A request and its JSON answer; an answer that is no success is an error with its text.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, _, answer) = self.send(method.clone(), path, body.and_then(json_body)).await?;
        if !status.is_success() {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
        }
        if answer.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_slice(&answer).context("the answer is not JSON")
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(StatusCode, hyper::HeaderMap, Bytes)> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("x-auth-token", token);
        }
        // Servers without networks need a microversion that can say so.
        request = request.header("openstack-api-version", "compute 2.90");
        let body = match body {
            Some((kind, body)) => {
                request = request.header("content-type", kind);
                body
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body))?;
        let answer = tokio::time::timeout(Duration::from_secs(60), self.http.request(request)).await;
        let answer = answer.map_err(|_| anyhow!("{} does not answer", self.base))?;
        let answer = answer.with_context(|| format!("{} cannot be reached", self.base))?;
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.context("the answer broke off")?.to_bytes();
        Ok((parts.status, parts.headers, bytes))
    }
}

fn json_body(value: &Value) -> Option<(&'static str, Bytes)> {
    Some(("application/json", Bytes::from(value.to_string())))
}
