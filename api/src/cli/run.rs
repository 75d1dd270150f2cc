//! `luc serve`: a replica, its network, its APIs, and an agent for this machine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use luc_compute::link::{Fetch, FetchError, Images, LinkHandle, Progress, link};
use luc_engine::entry::MemberOp;
use luc_engine::replica::{Identity, Replica};
use luc_engine::store::RedbStore;
use luc_engine::tx::{Fence, Refusal};
use luc_sync::agents;
use luc_sync::blob::{BlobError, Blobs};
use luc_sync::ca::Credentials;
use luc_sync::join::Tokens;
use luc_sync::net::Net;
use luc_sync::node::Node;
use tokio::sync::oneshot;

use super::config::Config;
use super::found::{STORE, authority};
use crate::app::App;
use crate::bootstrap::describe_site;

pub(super) fn serve(path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    config.start_logging();
    // Views are shared; a few threads serve all there is, and each costs memory.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(run(&config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn run(config: &Config) -> Result<()> {
    let dir = &config.data_dir;
    let credentials = Credentials::load(dir).context("is this a replica's data directory? (luc init, luc join)")?;
    let authority = authority(dir, &credentials)?;
    let identity = Identity { cloud: credentials.cloud, key: credentials.key.clone() };
    let path = dir.join(STORE);
    let mut store = RedbStore::open(&path)?;
    let in_place = Replica::settle(&mut store, &super::place::of(&path)?)?;
    let mut replica = Replica::open(identity, Box::new(store))?;
    replica.limit_log(config.replica.log_max_bytes);
    if !in_place {
        replica.put_up(Fence::Copy);
    }
    let node = Node::start(replica)?;
    let blobs = Blobs::open(&dir.join("images"))?;
    let listener = tokio::net::TcpListener::bind(config.api.listen).await;
    let listener = listener.with_context(|| format!("api.listen: cannot listen on {}", config.api.listen))?;
    let net = Net::start(node.clone(), credentials, authority, Tokens::of(dir), blobs, config.listen)?;
    let (stop, stopped) = oneshot::channel();
    // Before anything is written: the agent may know that this disk is an old copy, and it is waited for.
    let agent = config.agent.enabled.then(|| start_agent(&net, config, stopped));
    introduce(&node, config).await?;
    let app = App::new(net, config.settings());
    tracing::info!(site = %node.site(), replica = %node.me(), api = %config.api.listen, quic = %config.listen, "serving");
    crate::app::serve(app, listener, asked_to_stop()).await;
    tracing::info!("stopping; servers run on");
    let _ = stop.send(());
    if let Some(agent) = agent {
        let _ = tokio::time::timeout(Duration::from_secs(5), agent).await;
    }
    Ok(())
}

/// Writes down what has changed about this replica: its addresses, and where its site's API is.
async fn introduce(node: &Node, config: &Config) -> Result<()> {
    let (advertise, endpoint) = (config.advertise.clone(), config.endpoint());
    let me = node.me();
    let written = node.transact::<_, Refusal, _>(move |tx| {
        let moved = tx.view().member(me).is_some_and(|state| state.member.addresses != advertise);
        if moved && !advertise.is_empty() {
            tx.membership(MemberOp::Readdress { addresses: advertise })?;
        }
        describe_site(tx, &endpoint)
    });
    match written.await {
        Err(Refusal::Fenced(fence)) => tracing::error!(%fence, "this replica answers reads only"),
        written => written.context("the replica could not introduce itself")?,
    }
    Ok(())
}

/// Ends when the process is asked to.
pub(super) async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Runs the local agent, joined to this replica by channels.
fn start_agent(net: &Net, config: &Config, stopped: oneshot::Receiver<()>) -> tokio::task::JoinHandle<()> {
    let site = net.node().site().clone();
    let agent_config = config.agent_config(site, net.credentials().cloud);
    let (handle, link) = link();
    let node = net.node().clone();
    tokio::spawn(attach(handle, node));
    let images = Arc::new(ReplicaImages(net.clone()));
    let stop = async move {
        let _ = stopped.await;
    };
    let running = luc_compute::agent::run(agent_config, link, images, stop);
    tokio::spawn(async move {
        if let Err(error) = running.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the agent of this machine stopped");
        }
    })
}

/// Keeps the agent attached to the replica in this process.
async fn attach(handle: LinkHandle, node: Node) {
    loop {
        let (to, from) = handle.attach().await;
        match agents::serve(node.clone(), from, to, None).await {
            Ok(()) | Err(agents::AgentError::Gone | agents::AgentError::NoHello | agents::AgentError::Again) => {}
            Err(agents::AgentError::Refused(Refusal::Fenced(fence))) => {
                tracing::error!(%fence, "servers run on, but nobody gives orders to the agent of this machine");
                return;
            }
            Err(error) => tracing::error!(%error, "the agent of this machine was turned away"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Image data through the replica's own store.
struct ReplicaImages(Net);

impl Images for ReplicaImages {
    fn fetch<'a>(&'a self, blob: &'a str, _size: u64, site: &'a str, progress: Progress) -> Fetch<'a> {
        Box::pin(async move {
            let fetched = told(self.0.blobs(), blob, &progress, self.0.fetch_blob(blob, site)).await;
            fetched.map_err(|error| fetch_error(&error))
        })
    }
}

/// Runs a fetch, and tells now and then how far it has come.
pub(super) async fn told<T>(blobs: &Blobs, blob: &str, progress: &Progress, fetch: impl Future<Output = T>) -> T {
    let mut fetch = std::pin::pin!(fetch);
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            fetched = &mut fetch => return fetched,
            _ = tick.tick() => {
                let transfer = blobs.transfers().into_iter().find(|(name, _, _)| name == blob);
                transfer.into_iter().for_each(|(_, done, size)| progress(done, size));
            }
        }
    }
}

/// What a user is told, and whether another try may do.
pub(super) fn fetch_error(error: &BlobError) -> FetchError {
    let retrying = !matches!(error, BlobError::Name(_));
    FetchError { message: format!("The image cannot be had: {error}."), retrying }
}
