//! Joining: one-time, expiring tokens that pin the authority.
//!
//! A token is a sponsor's word that whoever shows it may become a member of a site. It carries the sponsor's addresses
//! and the BLAKE3 hash of the authority's certificate, so the newcomer knows whom it talks to; and a random secret, of
//! which the sponsor keeps only the hash. The first public key that redeems a token is **bound** to it on the sponsor's
//! disk before anybody is admitted: whatever breaks afterwards, a token never admits two, and a newcomer that lost the
//! answer asks again with the same key, until the token expires.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use luc_engine::entry::{Member, MemberOp, Subject};
use luc_engine::id::{CloudId, HostId, Millis, PoolId, ReplicaId, SiteName};
use luc_engine::ledger::{Amount, Dimension, Pool};
use luc_engine::tx::{Refusal, Tx};
use luc_engine::view::View;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::ca::{Authority, CertificateError, Credentials, Role};
use crate::node::{Node, now};
use crate::wire::{JoinAnswer, JoinRequest};

/// The label under which a join connection's keying material is exported and signed.
const PROOF: &[u8] = b"luc join proof 1";
const PREFIX: &str = "luc1-";
/// How long who is asked to admit somebody, or for its state, waits for the others' word on that: two heartbeats and more.
pub(crate) const ATTESTED: Duration = Duration::from_secs(5);
/// The file beside a token's note that holds the key that redeemed it.
const BOUND: &str = "bound";

/// What a token admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// To this site.
    pub site: SiteName,
    /// As a replica or as an agent.
    pub kind: TokenKind,
    /// When it stops working, Unix milliseconds.
    pub expires: Millis,
}

/// As what a token admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    /// A replica.
    Replica {
        /// It may write users, projects and roles.
        identity_authority: bool,
        /// It may admit others, and so holds the authority's key.
        sponsor: bool,
    },
    /// A host's agent.
    Agent,
}

/// A token, as it is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// BLAKE3 of the authority's certificate.
    #[serde(with = "serde_bytes")]
    pub pin: [u8; 32],
    /// The secret.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; 32],
    /// Where the sponsor is reached.
    pub addresses: Vec<String>,
    /// What it admits: for the newcomer to show; the sponsor trusts its own note only.
    pub grant: Grant,
}

/// Why somebody could not join. Nobody was admitted, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Not a token.
    #[error("this is not a join token (it starts with {PREFIX:?} and is copied whole)")]
    Malformed,
    /// Unknown, used by another key, or expired: which of them is not told.
    #[error("the token is not valid: it was used, has expired, or is not this cloud's")]
    Invalid,
    /// The newcomer did not prove that it has its key.
    #[error("the newcomer does not hold the key that it named")]
    Proof,
    /// This replica is no sponsor.
    #[error("this replica may not admit members")]
    NotSponsor,
    /// Whatever is wrong with the state of who was asked, the newcomer would have it too (R14). The token is this newcomer's until
    /// it expires.
    #[error(
        "the state of this replica was given to it, and the others have not shown the same yet: try another member, or later"
    )]
    OnTrust,
    /// See [`CertificateError`].
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The admission could not be written down. The token is this newcomer's until it expires.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The notes of tokens could not be read or written.
    #[error("the token store failed: {0}")]
    Store(#[from] std::io::Error),
    /// The sponsor said no, or could not be reached.
    #[error("{0}")]
    Sponsor(String),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = rmp_serde::to_vec(self).unwrap_or_default();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl std::str::FromStr for Token {
    type Err = JoinError;
    fn from_str(text: &str) -> Result<Self, JoinError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(JoinError::Malformed)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| JoinError::Malformed)?;
        rmp_serde::from_slice(&bytes).map_err(|_| JoinError::Malformed)
    }
}

/// A sponsor's notes of the tokens that it has given: one file each, named by the hash of the secret.
#[derive(Clone, Debug)]
pub struct Tokens {
    dir: PathBuf,
}

impl Tokens {
    /// The notes below a replica's data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("tokens") }
    }

    /// Notes a new token, and gives it.
    ///
    /// # Errors
    /// [`JoinError::Store`].
    pub fn issue(
        &self,
        authority: &CertificateDer<'_>,
        addresses: Vec<String>,
        grant: Grant,
        secret: [u8; 32],
    ) -> Result<Token, JoinError> {
        std::fs::create_dir_all(&self.dir)?;
        self.sweep(now())?;
        let note = rmp_serde::to_vec(&grant).map_err(std::io::Error::other)?;
        crate::ca::write_secret(&self.note(&secret), &note)?;
        Ok(Token { pin: *blake3::hash(authority).as_bytes(), secret, addresses, grant })
    }

    /// What a token admits, if it has not expired and no other key has redeemed it: from now on, none can.
    fn redeem(&self, secret: &[u8], key: &[u8; 32], now: Millis) -> Result<Grant, JoinError> {
        let note = self.note(secret);
        let grant = Self::read(&note).ok_or(JoinError::Invalid)?;
        if grant.expires <= now {
            return Err(JoinError::Invalid);
        }
        // Written whole under a name of its own, then linked: of two keys at once one gets the name.
        let bound = note.with_extension(BOUND);
        let mine = note.with_extension(hex::encode(key));
        let mut file = std::fs::File::create(&mine)?;
        file.write_all(key).and_then(|()| file.sync_all())?;
        let linked = std::fs::hard_link(&mine, &bound);
        std::fs::remove_file(&mine)?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => std::fs::File::open(&self.dir)?.sync_all()?,
        }
        if std::fs::read(&bound)? == key { Ok(grant) } else { Err(JoinError::Invalid) }
    }

    /// Forgets tokens that have expired.
    fn sweep(&self, now: Millis) -> std::io::Result<()> {
        for file in std::fs::read_dir(&self.dir)?.flatten() {
            let note = file.path();
            if note.extension().is_none() && Self::read(&note).is_some_and(|grant| grant.expires <= now) {
                std::fs::remove_file(&note)?;
                let _ = std::fs::remove_file(note.with_extension(BOUND));
            }
        }
        Ok(())
    }

    fn read(note: &Path) -> Option<Grant> {
        rmp_serde::from_slice(&std::fs::read(note).ok()?).ok()
    }

    /// The hash is looked up as a file name: no comparison of secrets takes a time that tells anything.
    fn note(&self, secret: &[u8]) -> PathBuf {
        self.dir.join(blake3::hash(secret).to_hex().as_str())
    }
}

/// Signs the keying material of a join connection.
pub(crate) fn prove(key: &SigningKey, exported: &[u8; 32]) -> Vec<u8> {
    key.sign(&proof_bytes(exported)).to_bytes().to_vec()
}

fn proof_bytes(exported: &[u8; 32]) -> Vec<u8> {
    [PROOF, exported.as_slice()].concat()
}

fn is_proved(public_key: &[u8; 32], proof: &[u8], exported: &[u8; 32]) -> bool {
    let key = VerifyingKey::from_bytes(public_key).ok();
    let signature = Signature::from_slice(proof).ok();
    key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(&proof_bytes(exported), &signature).is_ok())
}

/// Admits a newcomer.
pub(crate) async fn admit(
    node: &Node,
    credentials: &Credentials,
    authority: Option<&Authority>,
    tokens: &Tokens,
    request: JoinRequest,
    exported: &[u8; 32],
) -> Result<JoinAnswer, JoinError> {
    let authority = authority.ok_or(JoinError::NotSponsor)?;
    if !is_proved(&request.public_key, &request.proof, exported) {
        return Err(JoinError::Proof);
    }
    // A host's id follows from its agent's key, so nobody is given a certificate for another's host.
    if request.host.is_some_and(|host| host != HostId::of_key(&request.public_key)) {
        return Err(JoinError::Proof);
    }
    let grant = tokens.redeem(&request.secret, &request.public_key, now())?;
    let (role, is_sponsor) = match grant.kind {
        TokenKind::Agent => {
            let host = request.host.ok_or(JoinError::Malformed)?;
            (Role::Agent { host, site: grant.site.clone() }, false)
        }
        TokenKind::Replica { .. } if !node.attested(ATTESTED).await => return Err(JoinError::OnTrust),
        TokenKind::Replica { identity_authority, sponsor } => {
            let replica = ReplicaId::of_key(&request.public_key);
            let member = Member {
                replica,
                public_key: request.public_key,
                site: grant.site.clone(),
                addresses: request.addresses,
                identity_authority,
                sponsor,
                index: 0,
            };
            if !node.transact::<_, Refusal, _>(move |tx| admit_once(tx, member)).await? {
                return Err(JoinError::Invalid);
            }
            (Role::Replica { replica, site: grant.site.clone() }, sponsor)
        }
    };
    let certificate = authority.issue(credentials.cloud, &role, &request.public_key)?;
    Ok(JoinAnswer {
        cloud: credentials.cloud,
        site: grant.site,
        authority: credentials.authority.to_vec(),
        certificate: certificate.to_vec(),
        authority_key: is_sponsor.then(|| authority.key_pem().to_owned()),
    })
}

/// Admits a replica, unless its admission stands and only the answer was lost. False if it is known otherwise.
fn admit_once(tx: &mut Tx<'_>, member: Member) -> Result<bool, Refusal> {
    let Some(state) = tx.view().member(member.replica) else { return admit_replica(tx, member).map(|()| true) };
    let powers = |member: &Member| (member.site.clone(), member.identity_authority, member.sponsor);
    Ok(!state.revoked && powers(&state.member) == powers(&member))
}

/// One entry: the member, and its share of every pool that this replica has rights of.
///
/// # Errors
/// [`Refusal::Invalid`] if this replica is no sponsor.
pub fn admit_replica(tx: &mut Tx<'_>, mut member: Member) -> Result<(), Refusal> {
    let me = tx.me();
    let admitted = tx.view().members().filter(|(_, state)| state.joined.author == me).count();
    member.index = u32::try_from(admitted).unwrap_or(u32::MAX);
    let newcomer = member.replica;
    tx.membership(MemberOp::Join(member))?;
    let members = u64::try_from(crate::agents::others(tx.view(), me).len()).unwrap_or(u64::MAX).saturating_add(1);
    let shares: Vec<_> = tx
        .view()
        .ledger()
        .pools()
        // A host's pool that its agent has not taken may be surplus: it stays with its root.
        .filter(|(id, pool)| match &pool.subject {
            Subject::Host(host) => tx.view().host_pool(host.host).is_some_and(|(served, _)| served == **id),
            _ => true,
        })
        .filter(|(_, pool)| !tx.view().is_closed(pool))
        .map(|(id, pool)| (*id, share(*id, pool, me, members).min(&pool.free(me))))
        .filter(|(_, share)| !share.is_zero())
        .collect();
    shares.into_iter().try_for_each(|(pool, share)| tx.grant(pool, newcomer, share))
}

/// Most replicas among which a quota is spread before anybody has asked for it: sites by the ten share evenly; in a cloud of
/// hundreds, where most projects never go to most sites, the others ask the first time, and ahead of need from then on.
pub const SPREAD: usize = 32;

/// Among how many of `members` an amount is spread: no more than each of whom can start a server, or whatever it counts.
fn holders(amount: &Amount, members: u64) -> u64 {
    let most = amount.iter().map(|(_, n)| n).max().unwrap_or(1);
    let instances = amount.get(Dimension::Instances);
    let useful = if instances > 0 { instances } else { most };
    members.min(u64::try_from(SPREAD).unwrap_or(u64::MAX)).min(useful).max(1)
}

/// Quotas are shared evenly. Of a host, its own site keeps half, however many come; and so does whoever else admits one,
/// of what it has.
fn share(id: PoolId, pool: &Pool, me: ReplicaId, members: u64) -> Amount {
    let capacity = pool.capacity();
    match &pool.subject {
        Subject::Quota { .. } => {
            let holding = pool.accounts().filter(|(_, free)| !free.is_zero()).count();
            let of = holders(&capacity, members);
            if u64::try_from(holding).is_ok_and(|n| n < of) { capacity.divided_by(of) } else { Amount::default() }
        }
        // Made where they are needed first, and handed over when they are asked for; votes are shared as members come.
        // Addresses too: a share that is not used is a hole in somebody's block.
        Subject::Group { .. } | Subject::Addresses { .. } | Subject::Votes => Amount::default(),
        Subject::Host(_) => {
            let free = pool.free(me);
            let kept = if id.entry.author == me { capacity.divided_by(2) } else { free.divided_by(2) };
            capacity.divided_by(4).divided_by(members.saturating_sub(1)).min(&free.saturating_sub(&kept))
        }
    }
}

/// Makes a project's quota, or adds a pool to it: confirmed if one that it has is. See [`mint_quota_as`].
///
/// # Errors
/// [`Refusal::Invalid`] if this site is no identity authority.
pub fn mint_quota(tx: &mut Tx<'_>, project: uuid::Uuid, amount: &Amount) -> Result<(), Refusal> {
    let confirmed = tx.view().ledger().quota_pools(project).any(|(_, pool)| pool.confirmed);
    mint_quota_as(tx, project, amount, confirmed)
}

/// Makes a pool of a project's quota, spread evenly over the members (or [`SPREAD`] of them), so that a site that is cut off
/// goes on with its share. If it is confirmed, what moves on from there is spent only once this replica has countersigned it (A5).
///
/// # Errors
/// [`Refusal::Invalid`] if this site is no identity authority.
pub fn mint_quota_as(tx: &mut Tx<'_>, project: uuid::Uuid, amount: &Amount, confirmed: bool) -> Result<(), Refusal> {
    let subject = Subject::Quota { project };
    let pool = if confirmed { tx.mint_confirmed(subject, amount.clone())? } else { tx.mint(subject, amount.clone())? };
    let others = spread(tx.view(), tx.me(), &project);
    let of = holders(amount, u64::try_from(others.len()).unwrap_or(u64::MAX).saturating_add(1));
    let share = amount.divided_by(of);
    let some = usize::try_from(of.saturating_sub(1)).unwrap_or(usize::MAX);
    others.into_iter().take(some).filter(|_| !share.is_zero()).try_for_each(|to| tx.grant(pool, to, share.clone()))
}

/// The other members in the order in which they get a share of what is `of` something: a replica of each site first; and
/// other sites first of other things, so that in a large cloud each site has some.
pub(crate) fn spread(view: &View, me: ReplicaId, of: &uuid::Uuid) -> Vec<ReplicaId> {
    let place = |id: &ReplicaId| *blake3::hash(&[of.as_bytes().as_slice(), id.0.as_bytes()].concat()).as_bytes();
    let mut others = crate::agents::others(view, me);
    others.sort_by_cached_key(place);
    let site = |id: &ReplicaId| view.member(*id).map(|state| state.member.site.clone());
    let mut seen = std::collections::BTreeSet::from([site(&me)]);
    let (mut first, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|id| seen.insert(site(id)));
    first.extend(rest);
    first
}

/// A newcomer's part, once it has been admitted: what it keeps on its disk.
#[derive(Debug)]
pub struct Admission {
    /// Its credentials.
    pub credentials: Credentials,
    /// Its site.
    pub site: SiteName,
    /// The authority's private key, PEM, if it may admit others.
    pub authority_key: Option<String>,
}

impl Admission {
    pub(crate) fn of(answer: JoinAnswer, key: SigningKey, pin: &[u8; 32]) -> Result<Self, JoinError> {
        let authority = CertificateDer::from(answer.authority);
        let certificate = CertificateDer::from(answer.certificate);
        if blake3::hash(&authority).as_bytes() != pin {
            return Err(JoinError::Sponsor("the sponsor answered with another authority than the token's".into()));
        }
        let cloud: CloudId = answer.cloud;
        Ok(Self {
            credentials: Credentials { cloud, authority, certificate, key },
            site: answer.site,
            authority_key: answer.authority_key,
        })
    }
}

/// What a newcomer offers.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Its new key.
    pub key: SigningKey,
    /// Where others will reach it (replicas).
    pub addresses: Vec<String>,
    /// Its host (agents).
    pub host: Option<HostId>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn issued(tokens: &Tokens, secret: u8, expires: Millis) {
        let grant = Grant { site: SiteName::new("lyon").unwrap(), kind: TokenKind::Agent, expires };
        tokens.issue(&CertificateDer::from(vec![1]), Vec::new(), grant, [secret; 32]).unwrap();
    }

    #[test]
    fn a_token_is_the_first_keys_that_redeems_it_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::of(dir.path());
        let expires = now() + 60_000;
        issued(&tokens, 1, expires);
        assert!(tokens.redeem(&[1; 32], &[7; 32], now()).is_ok());
        // As after a restart of the sponsor.
        let tokens = Tokens::of(dir.path());
        assert!(tokens.redeem(&[1; 32], &[7; 32], now()).is_ok());
        assert!(matches!(tokens.redeem(&[1; 32], &[8; 32], now()), Err(JoinError::Invalid)));
        assert!(matches!(tokens.redeem(&[1; 32], &[7; 32], expires), Err(JoinError::Invalid)));
        assert!(matches!(tokens.redeem(&[2; 32], &[7; 32], now()), Err(JoinError::Invalid)));
        tokens.sweep(expires).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("tokens")).unwrap().count(), 0);
    }

    #[test]
    fn of_many_keys_at_once_one_gets_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::of(dir.path());
        issued(&tokens, 1, now() + 60_000);
        let redeem = &|key: u8| tokens.redeem(&[1; 32], &[key; 32], now()).is_ok();
        let got = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|key| scope.spawn(move || redeem(key))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|got| *got).count()
        });
        assert_eq!(got, 1);
    }
}
