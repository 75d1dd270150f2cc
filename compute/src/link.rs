//! How an agent is joined to what it does not own: a replica that gives orders, and image data.
//!
//! One way for all: the replica of the own process, over channels, and one across a network. Connections come and go;
//! the agent lives through them.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use luc_engine::agent::{FromAgent, ToAgent};
use tokio::sync::mpsc;

/// Messages on the way, each direction.
const CHANNEL: usize = 1024;

/// What happens on the way to a replica. Connections are numbered upwards: when a newer one has been made, an older one
/// has nothing to say any more, and its end means nothing.
#[derive(Debug)]
pub enum LinkEvent {
    /// A replica is reached. The agent introduces itself, and speaks through this sender until the next event of this
    /// kind, or [`LinkEvent::Lost`].
    Connected(u64, mpsc::Sender<FromAgent>),
    /// It said something.
    Message(u64, ToAgent),
    /// It is gone. What it ordered stands; nothing is stopped.
    Lost(u64),
}

/// The agent's end.
pub type Link = mpsc::Receiver<LinkEvent>;

/// The other end: joins an agent to one replica after another.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    events: mpsc::Sender<LinkEvent>,
    connections: Arc<AtomicU64>,
}

/// Makes a link that is not connected yet.
#[must_use]
pub fn link() -> (LinkHandle, Link) {
    let (events, link) = mpsc::channel(CHANNEL);
    (LinkHandle { events, connections: Arc::default() }, link)
}

impl LinkHandle {
    /// Connects the agent, in place of any earlier connection: what is sent to the sender reaches the agent, what the
    /// agent says comes out of the receiver. The connection ends when the sender is dropped, or the agent ends.
    pub async fn attach(&self) -> (mpsc::Sender<ToAgent>, mpsc::Receiver<FromAgent>) {
        let (to, mut from_replica) = mpsc::channel(CHANNEL);
        let (to_replica, from) = mpsc::channel(CHANNEL);
        let events = self.events.clone();
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if events.send(LinkEvent::Connected(connection, to_replica)).await.is_ok() {
            tokio::spawn(async move {
                while let Some(message) = from_replica.recv().await {
                    if events.send(LinkEvent::Message(connection, message)).await.is_err() {
                        return;
                    }
                }
                let _ = events.send(LinkEvent::Lost(connection)).await;
            });
        }
        (to, from)
    }
}

/// Why image data is not here. What was fetched is kept for the next attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// For the user: what is missing, and which site has it.
    pub message: String,
    /// Whether it may work later: a site is out of reach. Otherwise the data is nowhere, or is not what it should be.
    pub retrying: bool,
}

/// A fetch under way.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<PathBuf, FetchError>> + Send + 'a>>;

/// Where image data comes from. A blob is named by its content; the file that a fetch gives is whole and verified, and
/// is only read.
pub trait Images: Send + Sync + 'static {
    /// Brings a blob of `size` bytes here, if it is not, from the site `site` first. `progress` is told of bytes done
    /// and bytes in all. The agent asks once for all servers that wait for a blob.
    fn fetch<'a>(&'a self, blob: &'a str, size: u64, site: &'a str, progress: Progress) -> Fetch<'a>;
}

/// Told how far a fetch has come: bytes done, bytes in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;
