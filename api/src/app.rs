//! What every handler shares.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use luc_engine::ledger::Amount;
use luc_engine::tx::{Refusal, Tx};
use luc_engine::view::View;
use luc_sync::net::Net;
use luc_sync::node::Node;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::auth::{Claims, Throttle};
use crate::http::{Fault, Metrics};

/// What an operator sets about the APIs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a token works.
    pub token_lifetime: Duration,
    /// How long a request that carries `X-LUC-Frontier` may wait.
    pub frontier_wait: Duration,
    /// Largest image taken, bytes; also the largest disk that an image may describe.
    pub max_image: u64,
    /// Quota of a new project.
    pub default_quota: Amount,
    /// Base URL that clients reach this site under; from the request's `Host` if none.
    pub public_url: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token_lifetime: Duration::from_secs(3600),
            frontier_wait: Duration::from_secs(5),
            max_image: 64 << 30,
            default_quota: crate::bootstrap::project_quota(10, 20, 51_200, 10),
            public_url: None,
        }
    }
}

/// Shared by all handlers. Clones are the same one.
#[derive(Clone)]
pub struct App {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) net: Net,
    pub(crate) settings: Settings,
    pub(crate) verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
    /// Argon2 needs 19 MiB a hash: two at a time bound what a burst of logins costs.
    pub(crate) hashing: Arc<Semaphore>,
    pub(crate) throttle: Throttle,
    pub(crate) metrics: Metrics,
}

impl App {
    /// Puts an app together.
    #[must_use]
    pub fn new(net: Net, settings: Settings) -> Self {
        let inner = Inner {
            net,
            settings,
            verified: Mutex::default(),
            hashing: Arc::new(Semaphore::new(2)),
            throttle: Throttle::default(),
            metrics: Metrics::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.inner.net
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.inner.net.node()
    }

    /// The durable state.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        #[cfg(feature = "mutants")]
        if luc_engine::site_mutant::on(luc_engine::site_mutant::SiteMutant::StaleRead) {
            return crate::mutants::stale(self);
        }
        self.node().view()
    }

    /// What the operator set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Runs a transaction; refusals become faults.
    pub(crate) async fn transact<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.node().transact::<T, Fault, _>(f).await
    }

    /// All routes of all services.
    pub fn router(&self) -> Router {
        let routes = Router::new()
            .nest("/identity", crate::identity::routes())
            .nest("/compute", crate::compute::routes())
            .nest("/image", crate::image::routes())
            .nest("/luc/v1", crate::luc::routes())
            .merge(crate::discovery::routes())
            .fallback(crate::http::unknown_path);
        self.wrap(routes)
    }

    /// Routes with what runs around every request: versions, frontiers, request ids, and errors in each service's form.
    pub fn wrap(&self, routes: Router<Self>) -> Router {
        routes.layer(axum::middleware::from_fn_with_state(self.clone(), crate::http::around)).with_state(self.clone())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(id) => Self::not_found(format!("{:?} {} could not be found.", id.kind, id.id)),
            Refusal::Exists(_) | Refusal::NameTaken { .. } => Self::conflict(refusal.to_string()),
            Refusal::Shortage(_) => Self::forbidden(refusal.to_string()),
            Refusal::Invalid(_) => Self::forbidden(refusal.to_string()),
            Refusal::Document { .. } | Refusal::Store(_) | Refusal::Fenced(_) => Self::unavailable(refusal.to_string()),
        }
    }
}

/// Serves until `stop` is done, then lets open requests end for at most two seconds.
///
/// # Errors
/// What the system says when the address cannot be used.
pub async fn serve(app: App, listener: tokio::net::TcpListener, stop: impl Future<Output = ()>) {
    use hyper_util::rt::{TokioIo, TokioTimer};
    let service = app.router();
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    // A client that never finishes its request headers must not hold a connection for ever.
    http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    let housekeeping = [
        tokio::spawn(forget_expired(app.clone())),
        tokio::spawn(crate::compute::quotas::tend(app.clone())),
        tokio::spawn(crate::image::keep_swept(app)),
    ];
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, from)) = accepted else {
            // Out of file descriptors, most likely: some will be closed.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ClientAddress(from));
            tower_service::Service::call(&mut service.clone(), request.map(axum::body::Body::new))
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a client's connection ended");
            }
        });
    }
    housekeeping.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = tokio::time::timeout(Duration::from_secs(2), graceful.shutdown()).await;
}

async fn forget_expired(app: App) {
    let mut every = tokio::time::interval(Duration::from_secs(600));
    loop {
        every.tick().await;
        if let Err(fault) = crate::auth::forget_expired(&app, luc_sync::node::now()).await {
            tracing::warn!(reason = fault.message, "revocations of expired tokens stay for now");
        }
    }
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub SocketAddr);
