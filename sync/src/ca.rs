//! The cloud's own certificate authority, and what a certificate says.
//!
//! Every replica and agent has one Ed25519 key. It is the key of its certificate and, for a replica, the key that
//! signs its entries: who speaks on a connection is who wrote the log. What it may be is in a URI among the
//! certificate's alternative names: `luc:replica:CLOUD:REPLICA:SITE` or `luc:agent:CLOUD:HOST:SITE`.
//!
//! The authority's private key lies with every replica that may admit others (a sponsor). One holder alone would be a
//! centre: lose its site, and nobody can join. The price is that each sponsor's disk must be kept as safe as the key.

use std::path::Path;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use luc_engine::id::{CloudId, HostId, ReplicaId, SiteName};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The DNS name in every certificate: peers are told apart by their URI, not by a host name.
pub const SERVER_NAME: &str = "member.luc.internal";

/// What went wrong with a certificate or a key. Nothing was issued or accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// It could not be made.
    #[error("the certificate could not be made: {0}")]
    Make(String),
    /// It does not parse.
    #[error("the certificate does not parse: {0}")]
    Parse(String),
    /// It names nobody LUC knows.
    #[error("the certificate names no replica and no agent of a cloud")]
    NoRole,
    /// The replica's id does not follow from its key.
    #[error("the certificate's key is not that of the replica it names")]
    Key,
    /// A file could not be read or written.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
}

fn made<E: std::fmt::Display>(error: E) -> CertificateError {
    CertificateError::Make(error.to_string())
}

/// Who a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A replica.
    Replica {
        /// Its id.
        replica: ReplicaId,
        /// Its site.
        site: SiteName,
    },
    /// A host's agent.
    Agent {
        /// Its host.
        host: HostId,
        /// Its site.
        site: SiteName,
    },
}

/// A peer, as its certificate names it. The chain has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its cloud.
    pub cloud: CloudId,
    /// What it is.
    pub role: Role,
    /// Its Ed25519 public key.
    pub key: [u8; 32],
}

impl PeerIdentity {
    /// Reads a certificate whose chain was verified by the handshake.
    ///
    /// # Errors
    /// [`CertificateError`] if it is none of ours.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parse = |error: String| CertificateError::Parse(error);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| parse(error.to_string()))?;
        let key = parsed.public_key().subject_public_key.data.as_ref();
        let key = <[u8; 32]>::try_from(key).map_err(|_| CertificateError::Key)?;
        let names = parsed.subject_alternative_name().map_err(|error| parse(error.to_string()))?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let uri = names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("luc:"),
            _ => None,
        });
        let (cloud, role) = uri.and_then(parse_role).ok_or(CertificateError::NoRole)?;
        if let Role::Replica { replica, .. } = &role
            && *replica != ReplicaId::of_key(&key)
        {
            return Err(CertificateError::Key);
        }
        Ok(Self { cloud, role, key })
    }
}

fn parse_role(uri: &str) -> Option<(CloudId, Role)> {
    let parts: Vec<&str> = uri.split(':').collect();
    let [kind, cloud, id, site] = parts.as_slice() else { return None };
    let site = SiteName::new(site).ok()?;
    let role = match *kind {
        "replica" => Role::Replica { replica: id.parse().ok()?, site },
        "agent" => Role::Agent { host: id.parse().ok()?, site },
        _ => return None,
    };
    Some((cloud.parse().ok()?, role))
}

fn uri(cloud: CloudId, role: &Role) -> String {
    match role {
        Role::Replica { replica, site } => format!("luc:replica:{cloud}:{replica}:{site}"),
        Role::Agent { host, site } => format!("luc:agent:{cloud}:{host}:{site}"),
    }
}

/// The authority, with its private key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// Makes a new authority for a cloud.
    ///
    /// # Errors
    /// [`CertificateError::Make`].
    pub fn create(cloud: CloudId) -> Result<Self, CertificateError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(made)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(made)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named(&format!("LUC cloud {cloud}"));
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2124, 1, 1);
        let certificate = params.self_signed(&key).map_err(made)?.der().clone();
        let key_pem = key.serialize_pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key), key_pem })
    }

    /// Puts an authority together from its certificate and its private key in PEM.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_parts(certificate: CertificateDer<'static>, key_pem: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(key_pem).map_err(made)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(made)?;
        Ok(Self { certificate, issuer, key_pem: key_pem.into() })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key, PEM: for sponsors' disks only.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Issues a certificate for a key whose possession was proved.
    ///
    /// # Errors
    /// [`CertificateError::Make`].
    pub fn issue(
        &self,
        cloud: CloudId,
        role: &Role,
        public_key: &[u8; 32],
    ) -> Result<CertificateDer<'static>, CertificateError> {
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(made)?;
        let name = uri(cloud, role);
        params.subject_alt_names.push(SanType::URI(name.clone().try_into().map_err(made)?));
        params.distinguished_name = named(&name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2124, 1, 1);
        let key = rcgen::SubjectPublicKeyInfo::from_der(&public_key_info(public_key)).map_err(made)?;
        Ok(params.signed_by(&key, &self.issuer).map_err(made)?.der().clone())
    }
}

/// The DER form of an Ed25519 public key (RFC 8410).
fn public_key_info(public_key: &[u8; 32]) -> Vec<u8> {
    let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    der.extend(public_key);
    der
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// What one member has to prove itself with, and to judge others by.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The cloud.
    pub cloud: CloudId,
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// The member's own.
    pub certificate: CertificateDer<'static>,
    /// The member's key.
    pub key: SigningKey,
}

impl Credentials {
    const FILES: [&'static str; 3] = ["ca.der", "member.der", "member.key"];

    /// Reads the credentials from a directory.
    ///
    /// # Errors
    /// [`CertificateError::File`] names the file that is missing or malformed.
    pub fn load(dir: &Path) -> Result<Self, CertificateError> {
        let [authority, certificate, key] = Self::FILES.map(|file| read(&dir.join(file)));
        let (authority, certificate) = (CertificateDer::from(authority?), CertificateDer::from(certificate?));
        let bad = |reason: &str| file_error(&dir.join("member.key"), reason);
        let key = <[u8; 32]>::try_from(key?.as_slice()).map_err(|_| bad("not 32 bytes"))?;
        let cloud = PeerIdentity::of(&certificate)?.cloud;
        Ok(Self { cloud, authority, certificate, key: SigningKey::from_bytes(&key) })
    }

    /// Writes the credentials, readable by their owner only.
    ///
    /// # Errors
    /// [`CertificateError::File`].
    pub fn save(&self, dir: &Path) -> Result<(), CertificateError> {
        write_secret(&dir.join("ca.der"), &self.authority)?;
        write_secret(&dir.join("member.der"), &self.certificate)?;
        write_secret(&dir.join("member.key"), self.key.as_bytes())
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, CertificateError> {
        let der = self.key.to_pkcs8_der().map_err(made)?;
        Ok(PrivatePkcs8KeyDer::from(der.as_bytes().to_vec()).into())
    }

    pub(crate) fn roots(&self) -> Result<Arc<RootCertStore>, CertificateError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).map_err(made)?;
        Ok(Arc::new(roots))
    }
}

/// Writes a file that only its owner reads, whole or not at all.
///
/// # Errors
/// [`CertificateError::File`].
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), CertificateError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| file_error(path, &error.to_string());
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|error| file_error(path, &error.to_string()))
}

fn file_error(path: &Path, reason: &str) -> CertificateError {
    CertificateError::File { path: path.display().to_string(), reason: reason.into() }
}

/// Accepts the server whose chain ends in the authority that a join token pins, and no other.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// BLAKE3 of the authority's certificate.
    pub(crate) pin: [u8; 32],
    pub(crate) provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|der| *blake3::hash(der).as_bytes() == self.pin);
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let mut roots = RootCertStore::empty();
        roots.add(pinned.ok_or_else(unknown)?.clone().into_owned()).map_err(|_| unknown())?;
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|_| unknown())?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
