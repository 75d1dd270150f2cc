//! Carries out single steps: blocking calls on threads for that, tools as processes, several at once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use luc_engine::agent::{Order, Wanted};
use luc_engine::record::{Server, ServerImage};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::config::AgentConfig;
use crate::configdrive::{self, ConfigDriveError};
use crate::console;
use crate::disk::{self, DiskError, Disks};
use crate::image_check;
use crate::libvirt::{Hypervisor, HypervisorError, Node};
use crate::link::Images;
use crate::plan::{Action, Files, Seen, base_name};
use crate::store::Identity;
use crate::tool::Limits;
use crate::world::Outcome;
use crate::xml::{self, DomainSpec, DomainType, Label};

/// Calls to libvirt at once.
const CALLS: usize = 8;
/// Disks and config-drives made at once.
const MAKERS: usize = 4;

/// How work ended.
pub(crate) enum Report {
    /// A step of a server.
    Step(StepReport),
    /// A look at a domain.
    Look { server: Uuid, moment: u64, seen: Result<Seen, HypervisorError>, connection: u64 },
    /// A new connection to libvirt, with all its domains.
    Connected { moment: u64, result: Result<(Node, BTreeMap<Uuid, Seen>), HypervisorError> },
    /// All domains.
    Listed { moment: u64, result: Result<BTreeMap<Uuid, Seen>, HypervisorError>, connection: u64 },
    /// A base image.
    Fetched { base: String, outcome: Outcome },
    /// A console.
    Console { request: u64, output: Result<String, String> },
}

/// How a step ended.
pub(crate) struct StepReport {
    pub(crate) server: Uuid,
    pub(crate) action: Action,
    pub(crate) outcome: Outcome,
    /// What libvirt says afterwards, if it does.
    pub(crate) seen: Option<Seen>,
    pub(crate) files: Files,
    /// The connection to libvirt, by number, that turned out to be broken.
    pub(crate) broken: Option<u64>,
}

/// Fetches under way: base image, and (blob, bytes done, bytes in all).
type Transfers = Mutex<BTreeMap<String, (String, u64, u64)>>;

/// What workers need.
pub(crate) struct Workshop {
    pub(crate) config: AgentConfig,
    pub(crate) identity: Identity,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) disks: Disks,
    domain_type: DomainType,
    images: Arc<dyn Images>,
    transfers: Transfers,
    sizes: Mutex<HashMap<String, u64>>,
    calls: Semaphore,
    makers: Semaphore,
    reports: mpsc::UnboundedSender<Report>,
}

impl Workshop {
    /// `reports` holds at most a report for each server and console that is under way.
    pub(crate) fn new(
        config: AgentConfig,
        identity: Identity,
        disks: Disks,
        images: Arc<dyn Images>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Arc<Self> {
        Arc::new(Self {
            hypervisor: Hypervisor::new(&config.libvirt_uri, config.cloud, identity.host),
            domain_type: crate::host::domain_type(&config),
            config,
            identity,
            disks,
            images,
            transfers: Mutex::default(),
            sizes: Mutex::default(),
            calls: Semaphore::new(CALLS),
            makers: Semaphore::new(MAKERS),
            reports,
        })
    }

    pub(crate) fn transfers(&self) -> Vec<(String, u64, u64)> {
        self.transfers.lock().values().cloned().collect()
    }

    /// Carries out a step, then looks.
    pub(crate) fn step(self: &Arc<Self>, server: Uuid, action: Action, order: Option<Order>, connection: u64) {
        let shop = self.clone();
        tokio::spawn(async move {
            let result = match action {
                Action::MakeDisks => shop.make_disks(server, order.as_ref()).await,
                Action::MakeDrive => shop.make_drive(server, order.as_ref()).await,
                _ => Ok(()),
            };
            let _permit = shop.calls.acquire().await;
            let worker = shop.clone();
            let report = move || worker.call(server, action, order.as_ref(), connection, result);
            if let Ok(report) = tokio::task::spawn_blocking(report).await {
                let _ = shop.reports.send(report);
            }
        });
    }

    fn call(
        &self,
        server: Uuid,
        action: Action,
        order: Option<&Order>,
        connection: u64,
        made: Result<(), Outcome>,
    ) -> Report {
        let mut broken = None;
        let mut note = |error: &HypervisorError| {
            if matches!(error, HypervisorError::Unreachable(_)) {
                broken = Some(connection);
            }
        };
        let outcome = match made {
            Err(outcome) => outcome,
            Ok(()) => match self.act(server, &action, order) {
                Ok(()) => Outcome::Done,
                Err(StepError::Hypervisor(error)) => {
                    note(&error);
                    match error {
                        HypervisorError::Unreachable(_) => Outcome::Later(error.to_string()),
                        HypervisorError::Refused(message) => Outcome::Failed(message),
                    }
                }
                Err(StepError::Files(error)) => Outcome::Later(format!("the host's disk cannot be used: {error}")),
                Err(StepError::NoOrder) => Outcome::Failed("there is no order for this server any more".to_owned()),
            },
        };
        let seen = self.hypervisor.look(server).inspect_err(note).ok();
        let files = self.files(server);
        Report::Step(StepReport { server, action, outcome, seen, files, broken })
    }

    fn files(&self, server: Uuid) -> Files {
        if self.hypervisor.is_simulated() { Files::default() } else { self.disks.files(server) }
    }

    fn act(&self, server: Uuid, action: &Action, order: Option<&Order>) -> Result<(), StepError> {
        let label = |order: &Order| Label {
            cloud: self.config.cloud,
            host: self.identity.host,
            server,
            claim: order.claim,
            epoch: order.epoch,
        };
        match action {
            Action::FetchImage | Action::MakeDisks | Action::MakeDrive => Ok(()),
            Action::RemoveFiles => self.disks.remove(server).map_err(StepError::Files),
            Action::Define => {
                let (order, (record, _)) = order.zip(order.and_then(present)).ok_or(StepError::NoOrder)?;
                let xml = self.domain_xml(label(order), record).map_err(StepError::Files)?;
                self.hypervisor.define(&xml).map_err(StepError::Hypervisor)
            }
            Action::Label => {
                let order = order.ok_or(StepError::NoOrder)?;
                self.hypervisor.label(&label(order)).map_err(StepError::Hypervisor)
            }
            action => self.hypervisor.act(server, action).map_err(StepError::Hypervisor),
        }
    }

    fn domain_xml(&self, label: Label, server: &Server) -> std::io::Result<String> {
        let simulated = self.hypervisor.is_simulated();
        let paths = if simulated { Vec::new() } else { self.disks.paths(label.server) };
        let disks: Vec<_> = paths.iter().map(|path| disk::describe(path)).collect();
        let console = self.disks.console(label.server);
        xml::domain(&DomainSpec {
            label,
            server,
            domain_type: self.domain_type,
            machine: &self.config.machine,
            disks: &disks,
            console: (!simulated).then_some(console.as_path()),
        })
    }

    async fn make_disks(&self, id: Uuid, order: Option<&Order>) -> Result<(), Outcome> {
        let Some((server, _)) = order.and_then(present) else { return Ok(()) };
        let _permit = self.makers.acquire().await;
        let size = server.image.as_ref().and_then(|image| self.sizes.lock().get(&base_name(image)).copied());
        self.disks.make(id, server, size).await.map_err(|error| match error {
            error if error.is_final() => Outcome::Hopeless(error.to_string()),
            DiskError::Tool(ref tool) if !tool.is_missing() => Outcome::Failed(error.to_string()),
            error => Outcome::Later(error.to_string()),
        })
    }

    async fn make_drive(&self, id: Uuid, order: Option<&Order>) -> Result<(), Outcome> {
        let Some((server, project)) = order.and_then(present) else { return Ok(()) };
        let _permit = self.makers.acquire().await;
        let seed: Vec<u8> = (0..8).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
        let made = match configdrive::files(id, server, project, self.config.site.as_str(), &seed) {
            Ok(files) => configdrive::make(&self.disks.drive(id), files).await,
            Err(error) => Err(error),
        };
        made.map_err(|error| match error {
            ConfigDriveError::UserData => Outcome::Hopeless(error.to_string()),
            ConfigDriveError::Tool(ref tool) if !tool.is_missing() => Outcome::Failed(error.to_string()),
            ConfigDriveError::Tool(_) | ConfigDriveError::Disk(_) => Outcome::Later(error.to_string()),
        })
    }

    /// Brings an image's data into the cache, once for all that wait for it.
    pub(crate) fn fetch(self: &Arc<Self>, image: ServerImage) {
        let base = base_name(&image);
        match self.transfers.lock().entry(base.clone()) {
            Entry::Occupied(_) => return,
            Entry::Vacant(entry) => entry.insert((image.data.blob.clone(), 0, image.data.size)),
        };
        let shop = self.clone();
        tokio::spawn(async move {
            let outcome = shop.bring(&image, &base).await;
            shop.transfers.lock().remove(&base);
            let _ = shop.reports.send(Report::Fetched { base, outcome });
        });
    }

    async fn bring(self: &Arc<Self>, image: &ServerImage, base: &str) -> Outcome {
        // The name becomes part of a path.
        let hex = |c: char| c.is_ascii_hexdigit();
        if image.data.blob.is_empty() || !image.data.blob.chars().all(hex) || image.data.blob.len() > 128 {
            return Outcome::Hopeless("the server's image has no data".to_owned());
        }
        if !matches!(image.disk_format.as_str(), "qcow2" | "raw") {
            return Outcome::Hopeless(image_check::CheckError::Format(image.disk_format.clone()).to_string());
        }
        let cached = self.disks.base_of(image);
        if self.disks.has_base(image) {
            return self.check(image, base, &cached).await;
        }
        let (shop, key) = (self.clone(), base.to_owned());
        let progress = Arc::new(move |done, size| {
            if let Some(entry) = shop.transfers.lock().get_mut(&key) {
                (entry.1, entry.2) = (done, size);
            }
        });
        let data = match self.images.fetch(&image.data.blob, image.data.size, &image.data.site, progress).await {
            Ok(data) => data,
            Err(error) if error.retrying => return Outcome::Later(error.message),
            Err(error) => return Outcome::Hopeless(error.message),
        };
        let checked = self.check(image, base, &data).await;
        if checked != Outcome::Done {
            return checked;
        }
        let (disks, image) = (self.disks.clone(), image.clone());
        match tokio::task::spawn_blocking(move || disks.take_base(&image, &data)).await {
            Ok(Ok(())) => Outcome::Done,
            Ok(Err(error)) => Outcome::Later(format!("the image cannot be kept: {error}")),
            Err(error) => Outcome::Later(error.to_string()),
        }
    }

    async fn check(&self, image: &ServerImage, base: &str, data: &Path) -> Outcome {
        match image_check::check(data, &image.disk_format, self.config.max_image_size, Limits::STANDARD).await {
            Ok(checked) => {
                self.sizes.lock().insert(base.to_owned(), checked.virtual_size);
                Outcome::Done
            }
            Err(error) if error.may_pass_later() => Outcome::Later(error.to_string()),
            Err(error) => Outcome::Hopeless(error.to_string()),
        }
    }

    /// Looks at one domain.
    pub(crate) fn look(self: &Arc<Self>, server: Uuid, moment: u64, connection: u64) {
        self.blocking(move |shop| Report::Look { server, moment, seen: shop.hypervisor.look(server), connection });
    }

    /// Lists all domains.
    pub(crate) fn list(self: &Arc<Self>, moment: u64, connection: u64) {
        self.blocking(move |shop| Report::Listed { moment, result: shop.hypervisor.list(), connection });
    }

    /// Opens a new connection after a while, and lists.
    pub(crate) fn connect(self: &Arc<Self>, moment: u64, wait: std::time::Duration) {
        let shop = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            shop.blocking(move |shop| {
                let hypervisor = &shop.hypervisor;
                let result = hypervisor.connect().and_then(|node| Ok((node, hypervisor.list()?)));
                if result.is_err() {
                    hypervisor.disconnect();
                }
                Report::Connected { moment, result }
            });
        });
    }

    /// Reads a console.
    pub(crate) fn console(self: &Arc<Self>, request: u64, server: Uuid, lines: Option<u64>) {
        self.blocking(move |shop| {
            let output = if shop.hypervisor.is_simulated() {
                Err("the simulated hypervisor has no console".to_owned())
            } else {
                let text = console::tail(&shop.disks.console(server), lines);
                text.map_err(|error| format!("the console cannot be read: {error}"))
            };
            Report::Console { request, output }
        });
    }

    /// Keeps consoles within bounds.
    pub(crate) fn bound_consoles(self: &Arc<Self>) {
        let shop = self.clone();
        tokio::task::spawn_blocking(move || {
            for server in shop.disks.servers().unwrap_or_default() {
                if let Err(error) = console::bound(&shop.disks.console(server)) {
                    tracing::warn!(%server, %error, "the console cannot be bounded");
                }
            }
        });
    }

    fn blocking(self: &Arc<Self>, call: impl FnOnce(&Arc<Self>) -> Report + Send + 'static) {
        let shop = self.clone();
        tokio::task::spawn_blocking(move || {
            let report = call(&shop);
            let _ = shop.reports.send(report);
        });
    }
}

enum StepError {
    Hypervisor(HypervisorError),
    Files(std::io::Error),
    NoOrder,
}

/// What an order wants present.
pub(crate) fn present(order: &Order) -> Option<(&Arc<Server>, &str)> {
    match &order.wanted {
        Wanted::Present { server, project_name } => Some((server, project_name)),
        Wanted::Absent => None,
    }
}
