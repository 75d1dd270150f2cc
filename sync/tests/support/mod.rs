//! Replicas for tests: founded, joined, running over QUIC on loopback.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::pkcs8::EncodePrivateKey;
use luc_engine::entry::Member;
use luc_engine::id::{HostId, ReplicaId, SiteName};
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::{RedbStore, Store};
use luc_sync::blob::Blobs;
use luc_sync::ca::{Authority, Credentials, Role};
use luc_sync::join::{Admission, Grant, Newcomer, TokenKind, Tokens};
use luc_sync::net::Net;
use luc_sync::node::{Node, now};
use luc_sync::rpc::{join, new_key, take_snapshot};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The protocol of members.
pub(crate) const MEMBER: &[u8] = b"luc/1";

pub(crate) fn free_address() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub(crate) fn found(dir: &Path, address: SocketAddr) -> Net {
    let key = new_key(rand::random());
    let public_key = key.verifying_key().to_bytes();
    let cloud = founded_by(&public_key);
    let authority = Authority::create(cloud).unwrap();
    let site = SiteName::new("paris").unwrap();
    let replica = ReplicaId::of_key(&public_key);
    let role = Role::Replica { replica, site: site.clone() };
    let certificate = authority.issue(cloud, &role, &public_key).unwrap();
    let credentials = Credentials { cloud, authority: authority.certificate().clone(), certificate, key: key.clone() };
    let member = Member {
        replica,
        public_key,
        site,
        addresses: vec![address.to_string()],
        identity_authority: true,
        sponsor: true,
        index: 0,
    };
    let store = RedbStore::open(&dir.join("store")).unwrap();
    let replica = Replica::found(Identity { cloud, key }, Box::new(store), member, now()).unwrap();
    run(dir, replica, credentials, Some(authority), address)
}

pub(crate) fn run(
    dir: &Path,
    replica: Replica,
    credentials: Credentials,
    authority: Option<Authority>,
    at: SocketAddr,
) -> Net {
    let blobs = Blobs::open(&dir.join("blobs")).unwrap();
    Net::start(Node::start(replica).unwrap(), credentials, authority, Tokens::of(dir), blobs, at).unwrap()
}

/// Joins as a replica, and shows that the token is this newcomer's alone.
pub(crate) async fn admitted(sponsor: &Net, sponsor_dir: &Path, site: &str, address: SocketAddr) -> Admission {
    let kind = TokenKind::Replica { identity_authority: true, sponsor: false };
    let newcomer = Newcomer { key: new_key(rand::random()), addresses: vec![address.to_string()], host: None };
    redeemed(sponsor, sponsor_dir, site, kind, newcomer).await
}

/// Joins as an agent.
pub(crate) async fn admitted_agent(sponsor: &Net, sponsor_dir: &Path, site: &str) -> Admission {
    let key = new_key(rand::random());
    let host = Some(HostId::of_key(&key.verifying_key().to_bytes()));
    redeemed(sponsor, sponsor_dir, site, TokenKind::Agent, Newcomer { key, addresses: Vec::new(), host }).await
}

async fn redeemed(sponsor: &Net, dir: &Path, site: &str, kind: TokenKind, newcomer: Newcomer) -> Admission {
    let grant = Grant { site: SiteName::new(site).unwrap(), kind, expires: now() + 60_000 };
    let at = vec![sponsor.local_addr().unwrap().to_string()];
    let authority = sponsor.credentials().authority.clone();
    let token = Tokens::of(dir).issue(&authority, at, grant, rand::random()).unwrap();
    let admission = join(&token, newcomer.clone()).await.unwrap();
    let again = join(&token, newcomer.clone()).await.unwrap();
    assert_eq!(again.site, admission.site, "who lost the answer asks again");
    let key = new_key(rand::random());
    let host = newcomer.host.map(|_| HostId::of_key(&key.verifying_key().to_bytes()));
    let other = join(&token, Newcomer { key, host, ..newcomer }).await;
    assert!(other.is_err(), "a token works for one");
    admission
}

pub(crate) async fn joined(sponsor: &Net, sponsor_dir: &Path, dir: &Path, site: &str) -> Net {
    let address = free_address();
    let admission = admitted(sponsor, sponsor_dir, site, address).await;
    let replica = opened(sponsor, &admission, stored(dir)).await;
    run(dir, replica, admission.credentials, None, address)
}

pub(crate) fn stored(dir: &Path) -> Box<dyn Store> {
    Box::new(RedbStore::open(&dir.join("store")).unwrap())
}

/// A newcomer with its sponsor's snapshot, that does not run yet.
pub(crate) async fn opened(sponsor: &Net, admission: &Admission, mut store: Box<dyn Store>) -> Replica {
    Replica::prepare(store.as_mut()).unwrap();
    let at = [sponsor.local_addr().unwrap().to_string()];
    take_snapshot(&admission.credentials, &at, store.as_mut()).await.unwrap();
    let identity = Identity { cloud: admission.credentials.cloud, key: admission.credentials.key.clone() };
    Replica::open(identity, store).unwrap()
}

pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

/// An endpoint that says what it likes, with a member's certificate.
pub(crate) fn endpoint(credentials: &Credentials, protocol: &[u8]) -> Endpoint {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(credentials.authority.clone()).unwrap();
    let key = PrivatePkcs8KeyDer::from(credentials.key.to_pkcs8_der().unwrap().as_bytes().to_vec());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![credentials.certificate.clone()], PrivateKeyDer::from(key))
        .unwrap();
    tls.alpn_protocols = vec![protocol.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(400)));
    config.transport_config(Arc::new(transport));
    let mut endpoint = Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

pub(crate) async fn dial(endpoint: &Endpoint, to: &Net) -> Connection {
    endpoint.connect(to.local_addr().unwrap(), luc_sync::ca::SERVER_NAME).unwrap().await.unwrap()
}
