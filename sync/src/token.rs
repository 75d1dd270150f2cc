//! Join tokens: one use, a short life, and the authority pinned.
//!
//! A token tells a newcomer where its sponsor is and which authority it may believe, and proves to the sponsor that
//! an operator let it in. The sponsor's disk holds only the hash of the secret, a file each, so that `luc token` can
//! write one beside a running replica and a stolen backup admits nobody. A token is bound to the first key that
//! redeems it, on disk, *before* that key is admitted: a newcomer whose answer was lost asks again and gets it, and
//! nobody else ever does. What the token admits to is read from the sponsor's disk, never from the newcomer's copy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use luc_engine::id::{Millis, SiteName};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::ca::{CertificateError, write_secret};

/// How every token starts: its kind and version.
const PREFIX: &str = "luc1-";
/// Longest text taken for a token.
const MAX_TEXT: usize = 4096;
/// Most addresses in a token or a request.
pub const MAX_ADDRESSES: usize = 16;

/// What a token admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admits {
    /// A replica.
    Replica {
        /// May write projects, users and roles (E7).
        identity_authority: bool,
        /// May admit further members, and so gets the authority's private key.
        sponsor: bool,
    },
    /// A host's agent.
    Agent,
}

/// What the operator allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The site of the newcomer.
    pub site: SiteName,
    /// What it may be.
    pub admits: Admits,
    /// Until when, by the sponsor's clock, Unix milliseconds.
    pub expires: Millis,
}

/// A token, as the newcomer gets it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// `host:port` of the sponsor's QUIC endpoint, the best first.
    pub sponsor: Vec<String>,
    /// BLAKE3 of the authority's certificate, DER: the newcomer believes no other.
    #[serde(with = "serde_bytes")]
    pub pin: [u8; 32],
    /// What redeems it.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; 32],
    /// What it admits to, for the newcomer to see. The sponsor goes by its own copy.
    pub grant: Grant,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("sponsor", &self.sponsor).field("grant", &self.grant).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = rmp_serde::to_vec(self).unwrap_or_default();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// The text is no token. Nothing was sent to anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token (a token starts with {PREFIX} and is one word)")]
pub struct BadToken;

impl FromStr for JoinToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).filter(|_| text.len() <= MAX_TEXT).ok_or(BadToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadToken)?;
        let token: Self = rmp_serde::from_slice(&bytes).map_err(|_| BadToken)?;
        if token.sponsor.is_empty() || token.sponsor.len() > MAX_ADDRESSES { Err(BadToken) } else { Ok(token) }
    }
}

/// Why a token could not be issued or was not taken. Unless it says otherwise, the token is as it was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenError {
    /// No token has this secret. An expired one that was swept away is unknown too.
    #[error("the token is not known here, or has expired")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Another key has redeemed it.
    #[error("the token was used before")]
    Used,
    /// It admits something else.
    #[error("the token admits {0}")]
    Kind(&'static str),
    /// The sponsor's disk failed. Whether the token counts as used is unknown; the same newcomer may ask again.
    #[error("the sponsor's token store failed: {0}")]
    Disk(String),
}

impl From<CertificateError> for TokenError {
    fn from(error: CertificateError) -> Self {
        Self::Disk(error.to_string())
    }
}

/// The tokens that a sponsor has issued: a directory with a file each.
#[derive(Debug)]
pub struct TokenBook {
    dir: PathBuf,
    /// Redeeming reads, judges and writes: one at a time.
    turn: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(with = "serde_bytes")]
    secret_hash: [u8; 32],
    grant: Grant,
    used_by: Option<serde_bytes::ByteBuf>,
}

impl TokenBook {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`TokenError::Disk`].
    pub fn open(dir: &Path) -> Result<Self, TokenError> {
        std::fs::create_dir_all(dir).map_err(disk)?;
        Ok(Self { dir: dir.to_owned(), turn: Mutex::new(()) })
    }

    /// Writes a new token down. `secret` is 32 random bytes.
    ///
    /// # Errors
    /// [`TokenError::Disk`]; no token was issued.
    pub fn issue(
        &self,
        secret: [u8; 32],
        pin: [u8; 32],
        sponsor: Vec<String>,
        grant: Grant,
    ) -> Result<JoinToken, TokenError> {
        let secret_hash = *blake3::hash(&secret).as_bytes();
        self.write(&Row { secret_hash, grant: grant.clone(), used_by: None })?;
        Ok(JoinToken { sponsor, pin, secret, grant })
    }

    /// Binds the token of `secret` to `public_key`, durably, and says what it admits. The same key may come again.
    ///
    /// # Errors
    /// [`TokenError`]; unless it is `Disk`, nothing has changed.
    pub fn redeem(&self, secret: &[u8], public_key: &[u8; 32], now: Millis) -> Result<Grant, TokenError> {
        let _turn = self.turn.lock();
        let hash = blake3::hash(secret);
        let bytes = match std::fs::read(self.file(hash.as_bytes())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(TokenError::Unknown),
            other => other.map_err(disk)?,
        };
        let mut row: Row = rmp_serde::from_slice(&bytes).map_err(disk)?;
        // `blake3::Hash` compares in constant time.
        if blake3::Hash::from_bytes(row.secret_hash) != hash {
            return Err(TokenError::Unknown);
        }
        if now >= row.grant.expires {
            return Err(TokenError::Expired);
        }
        match &row.used_by {
            Some(key) if key.as_slice() == public_key => {}
            Some(_) => return Err(TokenError::Used),
            None => {
                row.used_by = Some(serde_bytes::ByteBuf::from(public_key.to_vec()));
                self.write(&row)?;
            }
        }
        Ok(row.grant)
    }

    /// Forgets tokens that have expired, used or not: an expired token is refused either way.
    ///
    /// # Errors
    /// [`TokenError::Disk`]; some may be left.
    pub fn sweep(&self, now: Millis) -> Result<(), TokenError> {
        let _turn = self.turn.lock();
        for file in std::fs::read_dir(&self.dir).map_err(disk)?.flatten() {
            let row = std::fs::read(file.path()).ok().and_then(|bytes| rmp_serde::from_slice::<Row>(&bytes).ok());
            if row.is_some_and(|row| now >= row.grant.expires) {
                std::fs::remove_file(file.path()).map_err(disk)?;
            }
        }
        Ok(())
    }

    fn write(&self, row: &Row) -> Result<(), TokenError> {
        let bytes = rmp_serde::to_vec(row).map_err(disk)?;
        Ok(write_secret(&self.file(&row.secret_hash), &bytes)?)
    }

    fn file(&self, hash: &[u8; 32]) -> PathBuf {
        self.dir.join(format!("{}.token", hex::encode(&hash[..16])))
    }
}

fn disk(error: impl fmt::Display) -> TokenError {
    TokenError::Disk(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn grant(expires: Millis) -> Grant {
        let admits = Admits::Replica { identity_authority: false, sponsor: true };
        Grant { site: SiteName::new("lyon").unwrap(), admits, expires }
    }

    fn issued(book: &TokenBook, secret: u8) -> JoinToken {
        book.issue([secret; 32], [9; 32], vec!["192.0.2.1:7000".into()], grant(1_000)).unwrap()
    }

    #[test]
    fn a_token_is_one_word_and_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let token = issued(&TokenBook::open(dir.path()).unwrap(), 1);
        let text = token.to_string();
        assert!(text.starts_with("luc1-") && !text.contains(char::is_whitespace));
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        for bad in ["", "luc1-", "luc2-AAAA", &text[..text.len() - 4], &format!("{text}A"), &"x".repeat(9999)] {
            assert_eq!(bad.parse::<JoinToken>(), Err(BadToken), "{bad}");
        }
    }

    #[test]
    fn a_token_admits_one_key_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let token = issued(&TokenBook::open(dir.path()).unwrap(), 1);
        let book = TokenBook::open(dir.path()).unwrap();
        assert_eq!(book.redeem(&token.secret, &[1; 32], 10).unwrap(), token.grant);
        let book = TokenBook::open(dir.path()).unwrap();
        assert!(matches!(book.redeem(&token.secret, &[2; 32], 11), Err(TokenError::Used)));
        assert_eq!(book.redeem(&token.secret, &[1; 32], 12).unwrap(), token.grant, "its own newcomer may ask again");
    }

    #[test]
    fn wrong_and_expired_tokens_are_refused_and_stay_unused() {
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::open(dir.path()).unwrap();
        let token = issued(&book, 1);
        assert!(matches!(book.redeem(&[2; 32], &[1; 32], 10), Err(TokenError::Unknown)));
        assert!(matches!(book.redeem(&[], &[1; 32], 10), Err(TokenError::Unknown)));
        assert!(matches!(book.redeem(&token.secret, &[1; 32], 1_000), Err(TokenError::Expired)));
        assert!(book.redeem(&token.secret, &[1; 32], 999).is_ok());
        book.sweep(1_000).unwrap();
        assert!(matches!(book.redeem(&token.secret, &[1; 32], 10), Err(TokenError::Unknown)));
    }

    #[test]
    fn the_sponsors_disk_does_not_hold_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let token = issued(&TokenBook::open(dir.path()).unwrap(), 7);
        let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(32).any(|window| window == token.secret));
    }
}
