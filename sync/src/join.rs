//! Joining: one-time, expiring tokens that pin the authority.
//!
//! A token is a sponsor's word that whoever shows it may become a member of a site. It carries the sponsor's addresses
//! and the BLAKE3 hash of the authority's certificate, so the newcomer knows whom it talks to; and a random secret, of
//! which the sponsor keeps only the hash. The sponsor removes its note of the token before it admits anybody: whatever
//! breaks afterwards, a token never admits two.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use luc_engine::entry::{Member, MemberOp, Subject};
use luc_engine::id::{CloudId, HostId, Millis, ReplicaId, SiteName};
use luc_engine::ledger::Amount;
use luc_engine::tx::{Refusal, Tx};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::ca::{Authority, CertificateError, Credentials, Role};
use crate::node::{Node, now};
use crate::wire::{JoinAnswer, JoinRequest};

/// The label under which a join connection's keying material is exported and signed.
const PROOF: &[u8] = b"luc join proof 1";
const PREFIX: &str = "luc1-";

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
    /// Unknown, used before, or expired: which of them is not told.
    #[error("the token is not valid: it was used, has expired, or is not this cloud's")]
    Invalid,
    /// The newcomer did not prove that it has its key.
    #[error("the newcomer does not hold the key that it named")]
    Proof,
    /// This replica is no sponsor.
    #[error("this replica may not admit members")]
    NotSponsor,
    /// See [`CertificateError`].
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The admission could not be written down. The token is spent.
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
        let note = rmp_serde::to_vec(&grant).map_err(std::io::Error::other)?;
        crate::ca::write_secret(&self.note(&secret), &note)?;
        Ok(Token { pin: *blake3::hash(authority).as_bytes(), secret, addresses, grant })
    }

    /// Takes a token out of the notes: it works once.
    fn spend(&self, secret: &[u8], now: Millis) -> Result<Grant, JoinError> {
        let note = self.note(secret);
        let bytes = std::fs::read(&note).map_err(|_| JoinError::Invalid)?;
        std::fs::remove_file(&note)?;
        std::fs::File::open(&self.dir)?.sync_all()?;
        let grant: Grant = rmp_serde::from_slice(&bytes).map_err(|_| JoinError::Invalid)?;
        if grant.expires <= now { Err(JoinError::Invalid) } else { Ok(grant) }
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
    let grant = tokens.spend(&request.secret, now())?;
    let (role, is_sponsor) = match grant.kind {
        TokenKind::Agent => {
            let host = request.host.ok_or(JoinError::Malformed)?;
            (Role::Agent { host, site: grant.site.clone() }, false)
        }
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
            node.transact::<_, Refusal, _>(move |tx| admit_replica(tx, member)).await?;
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
        .map(|(id, pool)| (*id, share(&pool.subject, &pool.capacity(), members).min(&pool.free(me))))
        .filter(|(_, share)| !share.is_zero())
        .collect();
    shares.into_iter().try_for_each(|(pool, share)| tx.grant(pool, newcomer, share))
}

/// Quotas are shared evenly. Of a host, its own site keeps three quarters.
fn share(subject: &Subject, capacity: &Amount, members: u64) -> Amount {
    match subject {
        Subject::Quota { .. } => capacity.divided_by(members),
        // Made where they are needed first, and handed over when they are asked for; votes are shared as members come.
        Subject::Group { .. } | Subject::Votes => Amount::default(),
        Subject::Host(_) => capacity.divided_by(4).divided_by(members.saturating_sub(1)),
    }
}

/// Makes a project's quota, spread evenly over the members, so that a site that is cut off goes on with its share.
///
/// # Errors
/// [`Refusal::Invalid`] if this site is no identity authority.
pub fn mint_quota(tx: &mut Tx<'_>, project: uuid::Uuid, amount: &Amount) -> Result<(), Refusal> {
    let pool = tx.mint(Subject::Quota { project }, amount.clone())?;
    let others = crate::agents::others(tx.view(), tx.me());
    let share = amount.divided_by(u64::try_from(others.len()).unwrap_or(u64::MAX).saturating_add(1));
    for to in others {
        if !share.is_zero() {
            tx.grant(pool, to, share.clone())?;
        }
    }
    Ok(())
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
