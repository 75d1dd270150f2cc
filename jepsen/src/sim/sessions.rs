//! Clients that look: each carries what it was told last (`X-LUC-Frontier`) from site to site, so whatever one site has
//! acknowledged or shown to it, every site shows that answers it at all. Reading needs no message (local-autonomy): it is
//! answered from the view that is on the disk, or not before that has caught up.

use luc_engine::entry::Frontier;
use luc_engine::record::{Kind, Server};
use luc_sync::node::awaited;
use uuid::Uuid;

use super::net::Micros;
use super::sometimes::State;
use super::world::{Event, World};

/// How many clients there are.
const CLIENTS: usize = 6;
/// How long a site lets a client wait for what it lacks, and how often it looks whether that has come.
const PATIENCE: Micros = 1_000_000;
const SOON: Micros = 40_000;

/// What each client was told last.
#[derive(Debug)]
pub(super) struct Sessions([Frontier; CLIENTS]);

impl Default for Sessions {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Frontier::default()))
    }
}

impl Sessions {
    fn of(&mut self, client: u64) -> Option<&mut Frontier> {
        let at = usize::try_from(client).ok()? % CLIENTS;
        self.0.get_mut(at)
    }
}

/// A client looks a server up at a site.
#[derive(Clone, Debug)]
pub(super) struct Look {
    at: usize,
    client: u64,
    server: Uuid,
    /// What the client was told before it asked.
    wanted: Frontier,
    /// When it is told to come again.
    until: Micros,
}

impl World {
    /// A client begins to look a server up.
    pub(super) fn begin_to_look(&mut self, at: usize, client: u64, server: u64) {
        let until = self.now + PATIENCE;
        let wanted = self.sessions.of(client).cloned();
        if let Some((server, wanted)) = self.known.any_server(server).zip(wanted) {
            self.look(Look { at, client, server, wanted, until });
        }
    }

    /// It is answered, if the view has caught up with what the client was told.
    pub(super) fn look(&mut self, look: Look) {
        let Some(view) = self.process(look.at).map(|process| process.view.clone()) else { return };
        if awaited(&view, view.frontier(), &look.wanted).next().is_some() {
            if look.until <= self.now {
                return self.sometimes.saw(State::LookedTooEarly);
            }
            return self.at(SOON, Event::Look(Box::new(look)));
        }
        let server = view.get::<Server>(look.server);
        let listed = |project: Uuid| view.children(Kind::Server, project).any(|child| child == look.server);
        let is_listed = server.is_none_or(|server| listed(server.project));
        let checked = self.rules.looked(look.at, &view, look.server, server.is_some(), is_listed);
        self.check(checked);
        self.told(look.at, look.client);
    }

    /// An answer carries the frontier of whoever gives it.
    pub(super) fn told(&mut self, at: usize, client: u64) {
        let Some(frontier) = self.process(at).map(|process| process.view.frontier().clone()) else { return };
        let Some(session) = self.sessions.of(client) else { return };
        for (replica, tip) in frontier.0.iter() {
            if session.number(*replica) < tip.number {
                session.set(*replica, *tip);
            }
        }
    }
}
