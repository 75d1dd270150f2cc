//! `luc init`, `luc token`, `luc join`: how a cloud begins and grows.
//!
//! Each leaves a data directory that is whole, or none: what is made is made beside it and renamed at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use luc_engine::entry::Member;
use luc_engine::id::ReplicaId;
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::RedbStore;
use luc_engine::tx::Refusal;
use luc_sync::ca::{Authority, Credentials, Role, write_secret};
use luc_sync::join::{Grant, Newcomer, Token, TokenKind, Tokens};
use luc_sync::node::now;
use luc_sync::rpc::{self, new_key, take_snapshot};
use uuid::Uuid;

use super::config::{Config, TEMPLATE};
use super::{Init, Join, TokenArgs};
use crate::bootstrap;

/// Files in a data directory.
pub(super) const STORE: &str = "store.redb";
const AUTHORITY_KEY: &str = "ca.key";

pub(super) fn init(args: &Init) -> Result<()> {
    let config = configuration(&args.configured.config, &args.advertise)?;
    if config.advertise.is_empty() {
        bail!(
            "others must know where to reach this replica: give --advertise host:port, or set advertise in {}",
            args.configured.config.display()
        );
    }
    let password = match &args.password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            text.trim_end_matches('\n').to_owned()
        }
        None => random_password(),
    };
    if password.is_empty() {
        bail!("the administrator's password is empty");
    }
    in_new_dir(&config.data_dir, |dir| {
        let key = new_key(rand::random());
        let public_key = key.verifying_key().to_bytes();
        let cloud = founded_by(&public_key);
        let authority = Authority::create(cloud)?;
        let replica = ReplicaId::of_key(&public_key);
        let role = Role::Replica { replica, site: args.site.clone() };
        let certificate = authority.issue(cloud, &role, &public_key)?;
        let credentials =
            Credentials { cloud, authority: authority.certificate().clone(), certificate, key: key.clone() };
        credentials.save(dir)?;
        write_secret(&dir.join(AUTHORITY_KEY), authority.key_pem().as_bytes())?;
        let member = Member {
            replica,
            public_key,
            site: args.site.clone(),
            addresses: config.advertise.clone(),
            identity_authority: true,
            sponsor: true,
            index: 0,
        };
        let store = Box::new(RedbStore::open(&dir.join(STORE))?);
        let mut replica = Replica::found(Identity { cloud, key }, store, member, now())?;
        let hash = crate::auth::hash_password(&password).map_err(|fault| anyhow::anyhow!(fault.message))?;
        // The operators' own project is theirs to limit.
        let quota = bootstrap::project_quota(1_000, 4_000, 16 << 20, 1_000);
        let endpoint = config.endpoint();
        let ids = std::array::from_fn(|_| Uuid::new_v4());
        replica.transact::<_, Refusal>(now(), |tx| bootstrap::found(tx, hash, &endpoint, &quota, &ids))?;
        replica.flush()?;
        Ok(cloud)
    })
    .map(|cloud| {
        println!("Founded cloud {cloud}, with its first site {}.", args.site);
        println!("Data: {}", config.data_dir.display());
        println!("Keep {} as safe as the cloud: it admits members.", config.data_dir.join(AUTHORITY_KEY).display());
        if args.password_file.is_none() {
            println!(
                "\nThe administrator, shown once:\n  user admin, project admin, domain Default\n  password {password}"
            );
        }
        println!("\nNext: luc serve --config {}", args.configured.config.display());
    })
}

pub(super) fn token(args: &TokenArgs) -> Result<()> {
    let config = Config::load(&args.configured.config)?;
    let credentials = Credentials::load(&config.data_dir)?;
    if authority(&config.data_dir, &credentials)?.is_none() {
        bail!("this replica may not admit members: it has no {AUTHORITY_KEY}");
    }
    let kind = if args.agent {
        TokenKind::Agent
    } else {
        TokenKind::Replica { identity_authority: !args.without_identity, sponsor: !args.without_sponsor }
    };
    let expires = now().saturating_add(args.minutes.saturating_mul(60_000));
    let grant = Grant { site: args.site.clone(), kind, expires };
    let tokens = Tokens::of(&config.data_dir);
    let token = tokens.issue(&credentials.authority, config.advertise.clone(), grant, rand::random())?;
    println!("{token}");
    Ok(())
}

pub(super) fn join(args: &Join) -> Result<()> {
    let token: Token = args.token.parse()?;
    let config = configuration(&args.configured.config, &args.advertise)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match token.grant.kind {
        TokenKind::Replica { .. } => runtime.block_on(join_as_replica(&config, &token, args.replace))?,
        TokenKind::Agent => runtime.block_on(join_as_agent(&config, &token))?,
    }
    let command = if token.grant.kind == TokenKind::Agent { "agent" } else { "serve" };
    println!("Joined as a member of site {}.", token.grant.site);
    println!("Next: luc {command} --config {}", args.configured.config.display());
    Ok(())
}

async fn join_as_replica(config: &Config, token: &Token, replace: bool) -> Result<()> {
    if config.advertise.is_empty() {
        bail!("others must know where to reach this replica: give --advertise host:port");
    }
    if replace {
        // Held while it is open: nobody runs on it.
        drop(
            RedbStore::open(&config.data_dir.join(STORE))
                .context("is there a replica to replace, and is it stopped?")?,
        );
    } else {
        refuse_existing(&config.data_dir)?;
    }
    let kept = config.data_dir.with_extension("joining.key");
    let newcomer = Newcomer { key: joining_key(&kept)?, addresses: config.advertise.clone(), host: None };
    let admission = rpc::join(token, newcomer).await?;
    let beside = beside(&config.data_dir);
    make_private(&beside)?;
    admission.credentials.save(&beside)?;
    if let Some(key) = &admission.authority_key {
        write_secret(&beside.join(AUTHORITY_KEY), key.as_bytes())?;
    }
    let mut store = RedbStore::open(&beside.join(STORE))?;
    Replica::prepare(&mut store)?;
    take_snapshot(&admission.credentials, &token.addresses, &mut store).await?;
    let identity = Identity { cloud: admission.credentials.cloud, key: admission.credentials.key.clone() };
    Replica::open(identity, Box::new(store)).context("the snapshot does not open")?;
    if replace {
        put_aside(&config.data_dir, &beside)?;
    }
    std::fs::rename(&beside, &config.data_dir)?;
    std::fs::remove_file(&kept)?;
    Ok(())
}

/// The key that an earlier try began with, or a new one. A token is bound to the first key that redeems it, so the key is
/// on the disk before it is shown: who lost the answer tries again.
fn joining_key(path: &Path) -> Result<ed25519_dalek::SigningKey> {
    if let Ok(bytes) = std::fs::read(path)
        && let Ok(bytes) = bytes.try_into()
    {
        return Ok(ed25519_dalek::SigningKey::from_bytes(&bytes));
    }
    let key = new_key(rand::random());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    write_secret(path, key.as_bytes())?;
    Ok(key)
}

/// Puts a replica's files aside, and takes what belongs to the machine over: its host, whose servers run on, and images.
fn put_aside(dir: &Path, beside: &Path) -> Result<()> {
    let replica = ReplicaId::of_key(&Credentials::load(dir)?.key.verifying_key().to_bytes());
    let aside = dir.with_extension(format!("was-{replica}"));
    std::fs::rename(dir, &aside).with_context(|| format!("cannot put {} aside", dir.display()))?;
    for kept in ["agent", "images"] {
        if aside.join(kept).exists() {
            std::fs::rename(aside.join(kept), beside.join(kept))?;
        }
    }
    println!("The files of replica {replica} are at {}. If it is not retired yet, retire it.", aside.display());
    Ok(())
}

async fn join_as_agent(config: &Config, token: &Token) -> Result<()> {
    std::fs::create_dir_all(&config.data_dir)?;
    let (store, loaded) = luc_compute::store::Store::open(&config.agent_dir())?;
    let (host, key) = (loaded.identity.host, loaded.identity.key);
    drop(store);
    let admission = rpc::join(token, Newcomer { key, addresses: Vec::new(), host: Some(host) }).await?;
    admission.credentials.save(&config.data_dir)?;
    Ok(())
}

/// The authority, where this replica may admit others.
pub(super) fn authority(data_dir: &Path, credentials: &Credentials) -> Result<Option<Authority>> {
    let path = data_dir.join(AUTHORITY_KEY);
    if !path.exists() {
        return Ok(None);
    }
    let key = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(Authority::from_parts(credentials.authority.clone(), &key)?))
}

/// The configuration; a new file from the template where there is none yet.
fn configuration(path: &Path, advertise: &[String]) -> Result<Config> {
    if !path.exists() {
        let list = format!("advertise = {advertise:?}");
        let text = TEMPLATE.replace("advertise = []", &list);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("Wrote {}: look it over.", path.display());
    }
    let mut config = Config::load(path)?;
    if !advertise.is_empty() {
        config.advertise = advertise.to_vec();
    }
    Ok(config)
}

fn refuse_existing(dir: &Path) -> Result<()> {
    if dir.join(STORE).exists() {
        bail!("{} already holds a replica: choose another data_dir, or remove it", dir.display());
    }
    Ok(())
}

fn beside(dir: &Path) -> PathBuf {
    dir.with_extension("new")
}

fn make_private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.join("agent").exists() {
        bail!("{} holds the memory of this machine's agent: an earlier try broke off; move it back", dir.display());
    }
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Makes a data directory beside its place, and puts it there once it is whole.
fn in_new_dir<T>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    refuse_existing(dir)?;
    let beside = beside(dir);
    make_private(&beside)?;
    let filled = fill(&beside)?;
    std::fs::rename(&beside, dir).with_context(|| format!("cannot put the data directory at {}", dir.display()))?;
    Ok(filled)
}

fn random_password() -> String {
    let bytes: [u8; 18] = rand::random();
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes)
}
