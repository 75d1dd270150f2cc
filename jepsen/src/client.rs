//! A client of one site's REST APIs, as any user's: it keeps no connection over a fault, waits a bounded time, and knows
//! what a failure says: refused (it did not happen) or silence (nobody knows).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

/// Why there is no good answer.
#[derive(Debug, Error)]
pub enum Trouble {
    /// The site answered that it does not do it: it did not happen.
    #[error("{status} {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The fault's message.
        message: String,
    },
    /// No connection came about, so nothing was sent: it did not happen.
    #[error("not connected: {0}")]
    Unsent(String),
    /// The request was sent, and there was no answer, or a 5xx that does not say: nobody knows.
    #[error("no answer: {0}")]
    Silence(String),
}

/// A client of one site.
#[derive(Clone)]
pub struct Client {
    /// The site's name.
    pub site: String,
    /// Where its APIs are.
    pub base: String,
    /// The network namespace from which it is reached.
    pub namespace: Option<PathBuf>,
    /// The token, once logged in.
    pub token: Option<String>,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Client {
    /// A request with a JSON body, whose answer is JSON.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let _ = (method, path, body);
        Err(Trouble::Unsent("not connected".into()))
    }
}
