//! Tokens and passwords.
//!
//! A token is a signed statement of the replica that issued it: who, for which project, until when. Any replica
//! verifies it without I/O, since the members' keys are replicated; what it allows follows from the state *now*, so a
//! disabled user, a changed password, a role taken away or a revoked token counts wherever it is known.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use luc_engine::entry::Member;
use luc_engine::id::{Millis, ReplicaId};
use luc_engine::record::{Assignment, Kind, NAMESPACE, Project, RecordId, Revocation, User};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::view::View;
use luc_sync::node::now;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::app::App;
use crate::http::Fault;

/// Verified tokens kept; then all are forgotten, and verified again.
const CACHE: usize = 10_000;
const PREFIX: &str = "luc1.";
/// The method of operators' tokens.
const OPERATOR: &str = "operator";

/// What a token says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub issuer: ReplicaId,
    /// For whom.
    pub user: Uuid,
    /// The user's generation then: a changed password voids older tokens.
    pub generation: u64,
    /// For which project, if any.
    pub project: Option<Uuid>,
    /// When, Unix milliseconds.
    pub issued: Millis,
    /// Until when, Unix milliseconds.
    pub expires: Millis,
    /// Names the token in revocations.
    pub audit: Uuid,
    /// `password` or `token`.
    pub method: String,
}

impl Claims {
    /// The token's name in Keystone's `audit_ids`.
    #[must_use]
    pub fn audit_id(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.audit.as_bytes())
    }
}

/// The record of a token's revocation has this id.
#[must_use]
pub fn revocation_id(audit: Uuid) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("revocation/{audit}").as_bytes())
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's claims.
    pub claims: Arc<Claims>,
    /// The user.
    pub user: Uuid,
    /// The project, if the token has one.
    pub project: Option<Uuid>,
    /// The roles there, in order.
    pub roles: Vec<String>,
    /// Has the role `admin`.
    pub is_admin: bool,
    /// Has a role that may look.
    pub may_read: bool,
    /// Has a role that may change.
    pub may_write: bool,
}

impl Caller {
    /// The project; most requests need one.
    ///
    /// # Errors
    /// 403 for unscoped tokens.
    pub fn project(&self) -> Result<Uuid, Fault> {
        self.project.ok_or_else(|| Fault::forbidden("The token has no project: ask for one that is scoped."))
    }

    /// The operator of a replica's own machine: proved by its key, needs no user.
    fn operator(claims: Arc<Claims>) -> Result<Self, Fault> {
        if claims.expires <= now() {
            return Err(Fault::unauthorized("The operator's token has expired."));
        }
        let (user, roles) = (claims.user, vec!["admin".to_owned()]);
        Ok(Self { claims, user, project: None, roles, is_admin: true, may_read: true, may_write: true })
    }

    /// What the claims amount to now.
    ///
    /// # Errors
    /// 401 if they are void.
    pub fn of(view: &View, claims: Arc<Claims>) -> Result<Self, Fault> {
        let void = || Fault::unauthorized("The request you have made requires authentication.");
        let user = view.get::<User>(claims.user).ok_or_else(void)?;
        let revoked = view.get::<Revocation>(revocation_id(claims.audit)).is_some();
        let revoked = revoked && !on(SiteMutant::RevocationIgnored);
        let ended = !user.enabled || user.generation != claims.generation || revoked;
        #[cfg(feature = "mutants")]
        let ended = ended && !crate::mutants::is_forgiven(claims.audit);
        if ended || claims.expires <= now() {
            return Err(void());
        }
        let roles = match claims.project {
            None => Vec::new(),
            Some(project) => {
                view.get::<Project>(project).filter(|project| project.enabled).ok_or_else(void)?;
                let roles = roles(view, claims.user, project);
                if roles.is_empty() {
                    return Err(void());
                }
                roles
            }
        };
        let has = |role: &str| roles.iter().any(|held| held == role);
        let (is_admin, may_write) = (has("admin"), has("member") || has("admin"));
        let may_read = may_write || has("reader");
        let (user, project) = (claims.user, claims.project);
        Ok(Self { claims, user, project, roles, is_admin, may_read, may_write })
    }
}

/// The roles of a user in a project, in order, each once.
#[must_use]
pub fn roles(view: &View, user: Uuid, project: Uuid) -> Vec<String> {
    let assigned = view.children(Kind::Assignment, user);
    let assigned = assigned.filter_map(|id| view.get::<Assignment>(id)).filter(|a| a.project == project);
    let mut roles: Vec<String> = assigned.map(|assignment| assignment.role.clone()).collect();
    roles.sort();
    roles.dedup();
    roles
}

/// Deletes revocations of tokens that have expired anyway. An hour's grace covers clocks that differ; the replica that
/// wrote one deletes it, others only a day later, when that replica seems to be gone.
///
/// # Errors
/// [`Fault`] if it cannot be written down; nothing was deleted.
pub async fn forget_expired(app: &App, now: Millis) -> Result<(), Fault> {
    const HOUR: Millis = 3_600_000;
    let (view, me) = (app.view(), app.node().me());
    let expired = |(id, revocation): (Uuid, &Revocation)| {
        let record = RecordId { kind: Kind::Revocation, id };
        let mine = view.held(record).is_some_and(|held| held.created.iter().any(|entry| entry.author == me));
        let grace = if mine { HOUR } else { 25 * HOUR };
        (revocation.expires_at.saturating_add(grace) < now).then_some(record)
    };
    let expired: Vec<RecordId> = view.all::<Revocation>().filter_map(expired).take(1000).collect();
    if expired.is_empty() {
        return Ok(());
    }
    app.transact(move |tx| {
        let live: Vec<_> = expired.into_iter().filter(|id| tx.view().get::<Revocation>(id.id).is_some()).collect();
        live.into_iter().try_for_each(|id| Ok(tx.delete(id)?))
    })
    .await
}

impl FromRequestParts<App> for Caller {
    type Rejection = Fault;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let token = parts.headers.get("x-auth-token").and_then(|token| token.to_str().ok());
        let token = token.ok_or_else(|| Fault::unauthorized("The request you have made requires authentication."))?;
        let claims = verify(app, token)?;
        // A replica's operator is one at that replica only, and only while the token is seconds old.
        if claims.method == OPERATOR && claims.issuer == app.node().me() {
            return Self::operator(claims);
        }
        let foreign = claims.issuer != app.node().me();
        if on(SiteMutant::ForeignTokenRefused) && foreign {
            return Err(Fault::unauthorized("The request you have made requires authentication."));
        }
        Self::of(&app.view(), claims)
    }
}

/// A token for whoever holds a replica's key, for LUC's own commands at that replica. It works for a minute.
#[must_use]
pub fn operator_token(key: &SigningKey) -> String {
    let issued = now();
    let claims = Claims {
        issuer: ReplicaId::of_key(&key.verifying_key().to_bytes()),
        user: Uuid::nil(),
        generation: 0,
        project: None,
        issued,
        expires: issued.saturating_add(60_000),
        audit: Uuid::new_v4(),
        method: OPERATOR.into(),
    };
    sign(key, &claims)
}

/// Issues a token.
#[must_use]
pub fn issue(app: &App, claims: &Claims) -> String {
    sign(&app.net().credentials().key, claims)
}

fn sign(key: &SigningKey, claims: &Claims) -> String {
    let body = rmp_serde::to_vec(claims).unwrap_or_default();
    let signature = key.sign(&signed(&body));
    let bytes = [&signature.to_bytes()[..], &body].concat();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Checks a token's signature: by its hash if it was checked before.
///
/// # Errors
/// 401, whatever is wrong.
pub fn verify(app: &App, token: &str) -> Result<Arc<Claims>, Fault> {
    let void = || Fault::unauthorized("The request you have made requires authentication.");
    if token.len() > 4096 {
        return Err(void());
    }
    let hash = *blake3::hash(token.as_bytes()).as_bytes();
    let view = app.view();
    let known = app.inner.verified.lock().get(&hash).cloned();
    // A site that may not govern identity cannot speak for users elsewhere either: its tokens work at itself only.
    let here = app.node().site();
    let trusted = |member: &Member| member.identity_authority || member.site == *here;
    let is_valid = |revoked: bool| !revoked || on(SiteMutant::CertificateKept);
    let issuer = |id| view.member(id).filter(|state| is_valid(state.revoked) && trusted(&state.member));
    if let Some(claims) = known {
        return if issuer(claims.issuer).is_some() { Ok(claims) } else { Err(void()) };
    }
    let bytes = token.strip_prefix(PREFIX).and_then(|body| URL_SAFE_NO_PAD.decode(body).ok()).ok_or_else(void)?;
    let (signature, body) = bytes.split_at_checked(64).ok_or_else(void)?;
    let claims: Claims = luc_engine::entry::from_untrusted(body).map_err(|_| void())?;
    let key = issuer(claims.issuer).map(|state| state.member.public_key).ok_or_else(void)?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| void())?;
    let signature = Signature::from_slice(signature).map_err(|_| void())?;
    key.verify_strict(&signed(body), &signature).map_err(|_| void())?;
    let claims = Arc::new(claims);
    let mut cache = app.inner.verified.lock();
    if cache.len() >= CACHE {
        cache.clear();
    }
    cache.insert(hash, claims.clone());
    Ok(claims)
}

fn signed(body: &[u8]) -> Vec<u8> {
    [b"luc/token/1\0", body].concat()
}

/// Hashes a password with Argon2id and a random salt.
///
/// # Errors
/// 503 if the library fails.
pub fn hash_password(password: &str) -> Result<String, Fault> {
    let salt = SaltString::generate(&mut OsRng);
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string())
        .map_err(|error| Fault::unavailable(format!("The password cannot be hashed: {error}")))
}

impl App {
    /// Hashes off the async threads, two at a time.
    ///
    /// # Errors
    /// See [`hash_password`].
    pub async fn hash(&self, password: String) -> Result<String, Fault> {
        let permit = self.inner.hashing.clone().acquire_owned().await;
        // The permit goes with the work: a client that hangs up does not make room for one more.
        let hashed = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            hash_password(&password)
        });
        hashed.await.unwrap_or_else(|error| Err(Fault::unavailable(error.to_string())))
    }

    /// Checks the password of the user that was `named`, who may not exist. An unknown user costs as much time as a
    /// wrong password, answers alike, and is throttled alike: nothing tells which names exist.
    ///
    /// # Errors
    /// 401 if it is wrong, 429 after many failures.
    pub async fn check_password(
        &self,
        named: &str,
        user: Option<(Uuid, String)>,
        from: IpAddr,
        password: String,
    ) -> Result<Uuid, Fault> {
        let key = ThrottleKey::new(user.as_ref().map(|(id, _)| *id), named, from);
        self.inner.throttle.check(key)?;
        let permit = self.inner.hashing.clone().acquire_owned().await;
        // Those that came at once with failures before them have waited beside them: the count is another now.
        self.inner.throttle.check(key)?;
        let (id, hash) = match user {
            // A user without a password: nothing matches, at the same cost.
            Some((_, hash)) if hash.is_empty() => (None, NOBODY.to_owned()),
            Some((id, hash)) => (Some(id), hash),
            None => (None, NOBODY.to_owned()),
        };
        let checked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let parsed = PasswordHash::new(&hash);
            parsed.is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        let right = checked.await.unwrap_or(false);
        match id {
            Some(id) if right => {
                self.inner.throttle.forget(key);
                Ok(id)
            }
            _ => {
                self.inner.throttle.failed(key);
                Err(Fault::unauthorized("The request you have made requires authentication."))
            }
        }
    }
}

/// Argon2id hash of nothing anybody knows: what an unknown user's password is compared with.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9i$5TzaH1qsYc1yYkfB1k2kA0VJ1dQhDqv3rVJ7rQk9hXg";

/// Who fails from where. Users that exist count under their id, so that it does not matter how they are named; others
/// under what they were called.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ThrottleKey([u8; 16], IpAddr);

impl ThrottleKey {
    fn new(user: Option<Uuid>, named: &str, from: IpAddr) -> Self {
        let name = user.unwrap_or_else(|| Uuid::new_v5(&NAMESPACE, named.as_bytes()));
        // A client has a whole /64 of IPv6 addresses.
        let from = match from {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            IpAddr::V4(_) => from,
        };
        Self(name.into_bytes(), from)
    }
}

/// Failed logins by user and address: after some, a wait that doubles.
#[derive(Default)]
pub struct Throttle(Mutex<HashMap<ThrottleKey, (u32, Instant)>>);

impl Throttle {
    const FREE: u32 = 5;
    const MOST: usize = 10_000;

    fn check(&self, key: ThrottleKey) -> Result<(), Fault> {
        let failures = self.0.lock();
        match failures.get(&key) {
            Some((count, last)) if *count > Self::FREE && last.elapsed() < Self::wait(*count) => {
                Err(Fault::too_many("Too many failed logins; wait and try again."))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, key: ThrottleKey) {
        let mut failures = self.0.lock();
        if failures.len() >= Self::MOST {
            failures.retain(|_, (count, last)| last.elapsed() < Self::wait(*count));
            if failures.len() >= Self::MOST {
                failures.clear();
            }
        }
        let entry = failures.entry(key).or_insert((0, Instant::now()));
        *entry = (entry.0.saturating_add(1), Instant::now());
    }

    fn forget(&self, key: ThrottleKey) {
        self.0.lock().remove(&key);
    }

    fn wait(count: u32) -> Duration {
        Duration::from_millis(250) * 2_u32.saturating_pow(count.saturating_sub(Self::FREE).min(8))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_unknown_user_costs_what_a_known_one_does() {
        let known = hash_password("secret").unwrap();
        let (known, nobody) = (PasswordHash::new(&known).unwrap(), PasswordHash::new(NOBODY).unwrap());
        assert_eq!((known.algorithm, known.version, &known.params), (nobody.algorithm, nobody.version, &nobody.params));
        assert_eq!(known.hash.unwrap().len(), nobody.hash.unwrap().len());
        assert!(Argon2::default().verify_password(b"", &nobody).is_err());
    }

    #[test]
    fn failures_are_counted_by_user_and_address_whether_the_user_exists_or_not() {
        let from: IpAddr = "192.0.2.1".parse().unwrap();
        for user in [None, Some(Uuid::from_u128(7))] {
            let throttle = Throttle::default();
            let key = ThrottleKey::new(user, "alice", from);
            for _ in 0..=Throttle::FREE {
                assert!(throttle.check(key).is_ok());
                throttle.failed(key);
            }
            assert!(throttle.check(key).is_err());
            assert!(throttle.check(ThrottleKey::new(None, "bob", from)).is_ok(), "others are not kept waiting");
            assert!(throttle.check(ThrottleKey::new(user, "alice", "192.0.2.2".parse().unwrap())).is_ok());
            throttle.forget(key);
            assert!(throttle.check(key).is_ok());
        }
    }

    #[test]
    fn the_memory_of_failures_is_bounded() {
        let throttle = Throttle::default();
        for n in 0..Throttle::MOST + 10 {
            throttle.failed(ThrottleKey::new(None, &n.to_string(), "192.0.2.1".parse().unwrap()));
        }
        assert!(throttle.0.lock().len() <= Throttle::MOST);
    }
}
