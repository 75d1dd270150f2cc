//! `luc agent`: the agent of a further host. It speaks to any replica of its site, over QUIC.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use luc_compute::link::{Fetch, FetchError, Images, LinkHandle, Progress, link};
use luc_sync::blob::Blobs;
use luc_sync::ca::{Credentials, PeerIdentity, Role};
use luc_sync::rpc::{AgentConnection, AgentFetch};
use tokio::sync::watch;

use super::config::Config;
use super::run::{asked_to_stop, fetch_error, told};

pub(super) fn agent(path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    config.start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ran = runtime.block_on(run(&config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ran
}

async fn run(config: &Config) -> Result<()> {
    let credentials = Credentials::load(&config.data_dir).context("is this an agent's data directory? (luc join)")?;
    let Role::Agent { site, .. } = PeerIdentity::of(&credentials.certificate)?.role else {
        bail!("{} belongs to a replica: run luc serve", config.data_dir.display());
    };
    if config.replicas.is_empty() {
        bail!("replicas must name the replicas of site {site}, host:port");
    }
    let blobs = Blobs::open(&config.data_dir.join("images"))?;
    let (fetcher, fetches) = watch::channel(None);
    // What servers use of them lies with their disks.
    let fetched = blobs.clone();
    tokio::spawn(async move { crate::image::keep_removing_idle(&fetched, |_| false).await });
    let images = Arc::new(RemoteImages { blobs, fetches });
    let (handle, link) = link();
    tokio::spawn(keep_connected(handle, credentials.clone(), config.replicas.clone(), fetcher));
    let agent_config = config.agent_config(site, credentials.cloud);
    luc_compute::agent::run(agent_config, link, images, asked_to_stop()).await.context("the agent stopped")?;
    tracing::info!("stopped; servers run on");
    Ok(())
}

/// Joins the agent to one replica after another, for ever.
async fn keep_connected(
    handle: LinkHandle,
    credentials: Credentials,
    replicas: Vec<String>,
    fetcher: watch::Sender<Option<AgentFetch>>,
) {
    loop {
        match AgentConnection::connect(&credentials, &replicas).await {
            Err(error) => tracing::warn!(%error, "no replica of the site can be reached"),
            Ok(mut connection) => {
                fetcher.send_replace(Some(connection.fetcher()));
                let (to, mut from) = handle.attach().await;
                loop {
                    let passed = tokio::select! {
                        message = connection.from.recv() => match message {
                            Some(message) => to.send(message).await.is_ok(),
                            None => false,
                        },
                        message = from.recv() => match message {
                            Some(message) => connection.to.send(message).await.is_ok(),
                            None => false,
                        },
                    };
                    if !passed {
                        break;
                    }
                }
                fetcher.send_replace(None);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Image data through the replica that the agent is connected to.
struct RemoteImages {
    blobs: Blobs,
    fetches: watch::Receiver<Option<AgentFetch>>,
}

impl Images for RemoteImages {
    fn fetch<'a>(&'a self, blob: &'a str, _size: u64, site: &'a str, progress: Progress) -> Fetch<'a> {
        Box::pin(async move {
            if let Some(path) = self.blobs.path(blob) {
                return Ok(path);
            }
            let fetcher = self.fetches.borrow().clone();
            let none = || FetchError {
                message: format!("The image (from site {site}) cannot be had: no replica can be reached."),
                retrying: true,
            };
            let fetcher = fetcher.ok_or_else(none)?;
            let fetched = told(&self.blobs, blob, &progress, fetcher.fetch(&self.blobs, blob)).await;
            fetched.map_err(|error| fetch_error(&error))
        })
    }
}
