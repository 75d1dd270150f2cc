//! Transport: the QUIC endpoints of members and newcomers, and what they demand of the other end.
//!
//! TLS 1.3 only, with the cloud's own authority as the only root. Limits that hold for every connection are set here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::crypto::CryptoProvider;

use crate::ca::{Credentials, Pinned};
use crate::net::NetError;

/// The protocol of members, and that of newcomers.
pub(crate) const MEMBER: &[u8] = b"luc/1";
pub(crate) const JOIN: &[u8] = b"luc-join/1";
/// Without a sign of life for so long, a connection is given up.
const IDLE: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_millis(400);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport.initial_rtt(Duration::from_millis(100));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(64));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    Arc::new(transport)
}

pub(crate) fn server_config(credentials: &Credentials) -> Result<ServerConfig, NetError> {
    let roots = credentials.roots()?;
    // Newcomers have no certificate yet; members without one are turned away after the handshake.
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(tls)?;
    let chain = vec![credentials.certificate.clone(), credentials.authority.clone()];
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, credentials.private_key()?)
        .map_err(tls)?;
    config.alpn_protocols = vec![MEMBER.to_vec(), JOIN.to_vec()];
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).map_err(tls)?));
    server.transport_config(transport());
    Ok(server)
}

pub(crate) fn client_config(credentials: &Credentials) -> Result<ClientConfig, NetError> {
    let chain = vec![credentials.certificate.clone()];
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_root_certificates(credentials.roots()?)
        .with_client_auth_cert(chain, credentials.private_key()?)
        .map_err(tls)?;
    config.alpn_protocols = vec![MEMBER.to_vec()];
    quic_client(config)
}

fn quic_client(config: rustls::ClientConfig) -> Result<ClientConfig, NetError> {
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).map_err(tls)?));
    client.transport_config(transport());
    Ok(client)
}

/// An endpoint of a member that only dials (an agent, a newcomer taking its snapshot).
pub(crate) fn client_endpoint(credentials: &Credentials) -> Result<Endpoint, NetError> {
    let config = client_config(credentials)?;
    dialing_endpoint(config)
}

/// An endpoint of a newcomer: no certificate, and only the pinned authority is trusted.
pub(crate) fn join_endpoint(pin: [u8; 32]) -> Result<Endpoint, NetError> {
    let verifier = Arc::new(Pinned { pin, provider: provider() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN.to_vec()];
    dialing_endpoint(quic_client(config)?)
}

fn dialing_endpoint(config: ClientConfig) -> Result<Endpoint, NetError> {
    let address = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut endpoint = Endpoint::client(address).map_err(|source| NetError::Bind { address, source })?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

fn tls<E: std::fmt::Display>(error: E) -> NetError {
    NetError::Tls(error.to_string())
}
