//! A thin executor on libvirt. What to do is decided in [`crate::plan`].
//!
//! All calls block, and belong on threads for that. A [`Hypervisor`] keeps one connection, which several threads use at
//! once, and opens a new one when asked to; an error says whether it was the connection. The URI decides what is
//! driven: `qemu:///system` or `qemu+unix:///system?socket=…` for real machines, `test:///…` for libvirt's simulated
//! hypervisor.

use std::collections::BTreeMap;
use std::sync::Arc;

use luc_engine::agent::DomainState;
use luc_engine::id::{CloudId, HostId};
use parking_lot::Mutex;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt::domain::DomainState as Raw;
use virt::domain::{DomainShutoffReason, DomainShutoffReasonEnum, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::{ErrorDomain, ErrorNumber};
use virt::sys;

use crate::events::{self, Signals, Subscription};
use crate::plan::{Action, Domain, Seen};
use crate::xml::{Label, NAMESPACE, PREFIX};

/// Why libvirt did not do what it was asked. What it did before, it has done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HypervisorError {
    /// libvirt is out of reach; whether the call did something is unknown.
    #[error("libvirt is out of reach: {0}")]
    Unreachable(String),
    /// libvirt refused.
    #[error("{0}")]
    Refused(String),
}

/// What libvirt says of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Processors.
    pub cpus: u64,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The hypervisor's version, as libvirt numbers it.
    pub version: u64,
}

/// See the module.
pub struct Hypervisor {
    uri: String,
    cloud: CloudId,
    host: HostId,
    connect: Mutex<Option<(Connect, Subscription)>>,
    signals: Arc<Signals>,
}

impl Hypervisor {
    /// A hypervisor that is not connected yet.
    #[must_use]
    pub fn new(uri: &str, cloud: CloudId, host: HostId) -> Self {
        Self { uri: uri.to_owned(), cloud, host, connect: Mutex::new(None), signals: Arc::default() }
    }

    /// Whether this is libvirt's simulated hypervisor.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.uri.starts_with("test:")
    }

    /// Where changes are told of.
    #[must_use]
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Opens a new connection in place of any old one.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`]; then there is none.
    pub fn connect(&self) -> Result<Node, HypervisorError> {
        let unreachable = |error: virt::error::Error| HypervisorError::Unreachable(text(&error));
        events::start_loop().map_err(unreachable)?;
        let old = self.connect.lock().take();
        drop(old);
        let connect = Connect::open(Some(&self.uri)).map_err(unreachable)?;
        // Not every driver has a connection to keep alive; those that have close it after 5 missed answers.
        let _ = connect.set_keep_alive(5, 3);
        let subscription = events::subscribe(&connect, &self.signals).map_err(unreachable)?;
        // What was told of an older connection means nothing now: a whole list follows.
        let _ = self.signals.take();
        let info = connect.node_info().map_err(unreachable)?;
        let version = connect.hyp_version().unwrap_or(0);
        *self.connect.lock() = Some((connect, subscription));
        Ok(Node { cpus: u64::from(info.cpus), memory_mib: info.memory / 1024, version: u64::from(version) })
    }

    /// Closes the connection.
    pub fn disconnect(&self) {
        let old = self.connect.lock().take();
        drop(old);
    }

    fn connection(&self) -> Result<Connect, HypervisorError> {
        let unreachable = || HypervisorError::Unreachable("not connected".to_owned());
        self.connect.lock().as_ref().map(|(connect, _)| connect.clone()).ok_or_else(unreachable)
    }

    /// All domains; those that are not of this cloud as [`Seen::Foreign`].
    ///
    /// # Errors
    /// [`HypervisorError`].
    pub fn list(&self) -> Result<BTreeMap<Uuid, Seen>, HypervisorError> {
        let connect = self.connection()?;
        let mut all = BTreeMap::new();
        for domain in connect.list_all_domains(0).map_err(error)? {
            let id = domain.uuid().map_err(error)?;
            all.insert(id, self.see(&domain)?);
        }
        Ok(all)
    }

    /// One domain.
    ///
    /// # Errors
    /// [`HypervisorError`].
    pub fn look(&self, server: Uuid) -> Result<Seen, HypervisorError> {
        match self.connection()?.lookup_domain_by_uuid(server) {
            Ok(domain) => self.see(&domain),
            Err(e) if is_gone(&e) => Ok(Seen::Missing),
            Err(e) => Err(error(e)),
        }
    }

    fn see(&self, domain: &Handle) -> Result<Seen, HypervisorError> {
        let kind = i32::try_from(sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or(2);
        let label = match domain.metadata(kind, Some(NAMESPACE), 0) {
            Ok(element) => Label::parse(&element),
            Err(e) if is_gone(&e) => return Ok(Seen::Missing),
            Err(e) if matches!(e.code(), Enum::Known(ErrorNumber::NoDomainMetadata)) => None,
            Err(e) => return Err(error(e)),
        };
        // All agents of a process share one simulated hypervisor.
        let ours = |label: &Label| label.cloud == self.cloud && (!self.is_simulated() || label.host == self.host);
        let Some(label) = label.filter(ours) else { return Ok(Seen::Foreign) };
        match state(domain).and_then(|state| Ok((state, domain.info()?))) {
            Ok((state, info)) => Ok(Seen::Here(Domain {
                state,
                claim: label.claim,
                epoch: label.epoch,
                size: (u64::from(info.nr_virt_cpu), info.max_mem / 1024),
            })),
            Err(e) if is_gone(&e) => Ok(Seen::Missing),
            Err(e) => Err(error(e)),
        }
    }

    /// Defines a domain.
    ///
    /// # Errors
    /// [`HypervisorError`]. A domain of this id that is not of this cloud has another name, and libvirt refuses.
    pub fn define(&self, xml: &str) -> Result<(), HypervisorError> {
        self.connection()?.define_domain_xml(xml).map(drop).map_err(error)
    }

    /// Writes a label into a domain that exists.
    ///
    /// # Errors
    /// [`HypervisorError`].
    pub fn label(&self, label: &Label) -> Result<(), HypervisorError> {
        let element = label.to_element().map_err(|error| HypervisorError::Refused(error.to_string()))?;
        self.with(label.server, |domain| {
            let live = if domain.is_active()? { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 };
            let kind = i32::try_from(sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or(2);
            let flags = live | sys::VIR_DOMAIN_AFFECT_CONFIG;
            domain.set_metadata(kind, Some(&element), Some(PREFIX), Some(NAMESPACE), flags)
        })
    }

    /// Does one of the steps that are a single call on a domain of ours. Says whether it is known to be over: a guest
    /// that is asked may take its time.
    ///
    /// # Errors
    /// [`HypervisorError`].
    pub fn act(&self, server: Uuid, action: &Action) -> Result<(), HypervisorError> {
        if !matches!(self.look(server)?, Seen::Here(_)) {
            return Err(HypervisorError::Refused("there is no such domain of this cloud".to_owned()));
        }
        let simulated = self.is_simulated();
        self.with(server, |domain| match action {
            Action::Start { paused, fresh } => {
                if *fresh && domain.has_managed_save(0)? {
                    domain.managed_save_remove(0)?;
                }
                domain.create_with_flags(if *paused { sys::VIR_DOMAIN_START_PAUSED } else { 0 })
            }
            Action::Restore => domain.create(),
            Action::Shutdown => domain.shutdown(),
            Action::Destroy => domain.destroy(),
            Action::Suspend => domain.suspend(),
            Action::Resume => domain.resume(),
            Action::ManagedSave => domain.managed_save(0),
            // The simulated hypervisor has no reset button, and its reboots take no time.
            Action::Reset if simulated => domain.reboot(0),
            Action::Reset => domain.reset(),
            Action::Reboot => domain.reboot(0),
            Action::Undefine => undefine(domain),
            Action::FetchImage
            | Action::MakeDisks
            | Action::MakeDrive
            | Action::Define
            | Action::Label
            | Action::RemoveFiles => Ok(()),
        })
    }

    fn with(
        &self,
        server: Uuid,
        call: impl FnOnce(&Handle) -> Result<(), virt::error::Error>,
    ) -> Result<(), HypervisorError> {
        let domain = self.connection()?.lookup_domain_by_uuid(server).map_err(error)?;
        call(&domain).map_err(error)
    }
}

fn undefine(domain: &Handle) -> Result<(), virt::error::Error> {
    let all = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
    // Drivers that know fewer flags refuse them all.
    let fewer = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
    domain.undefine_flags(all).or_else(|_| domain.undefine_flags(fewer)).or_else(|_| domain.undefine())
}

fn state(domain: &Handle) -> Result<DomainState, virt::error::Error> {
    let (state, reason) = domain.state()?;
    let off = |crashed| {
        let saved = domain.has_managed_save(0).unwrap_or(false);
        match (saved, crashed) {
            (true, _) => DomainState::Saved,
            (false, true) => DomainState::Crashed,
            (false, false) => DomainState::Shutoff,
        }
    };
    Ok(match state {
        Enum::Known(Raw::Paused) => DomainState::Paused,
        Enum::Known(Raw::Shutoff) => {
            let crashed =
                [DomainShutoffReason::Crashed, DomainShutoffReason::Failed].map(DomainShutoffReasonEnum::from);
            off(matches!(reason, Enum::Known(DomainStateReason::Shutoff(reason)) if crashed.contains(&reason)))
        }
        Enum::Known(Raw::Crashed) => off(true),
        // A guest that sleeps, or is about to go down, holds all it held.
        _ => DomainState::Running,
    })
}

fn is_gone(error: &virt::error::Error) -> bool {
    matches!(error.code(), Enum::Known(ErrorNumber::NoDomain))
}

fn error(error: virt::error::Error) -> HypervisorError {
    let connection = [ErrorDomain::Rpc, ErrorDomain::Remote, ErrorDomain::Net];
    let broken = matches!(error.domain(), Enum::Known(domain) if connection.contains(&domain));
    let code = matches!(error.code(), Enum::Known(ErrorNumber::NoConnect | ErrorNumber::InvalidConn));
    let text = text(&error);
    if broken || code { HypervisorError::Unreachable(text) } else { HypervisorError::Refused(text) }
}

fn text(error: &virt::error::Error) -> String {
    error.message().trim().to_owned()
}
