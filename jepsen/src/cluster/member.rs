//! What an operator does with members: admit, retire, put another in a replica's place.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use super::node::{Node, Role};
use super::process::eventually;

impl Cluster {
    /// Lets a prepared node join, through the first replica that runs, and starts it.
    ///
    /// # Errors
    /// What `luc` says.
    pub fn join(&mut self, at: usize) -> Result<()> {
        let joined = self.join_as(at, &[]);
        let node = self.nodes.get_mut(at).context("no such node")?;
        joined.with_context(|| format!("{} could not join", node.name))?;
        node.start()?;
        node.ready()
    }

    fn join_as(&mut self, at: usize, more: &[&str]) -> Result<()> {
        let (site, role) = self.nodes.get(at).map(|node| (node.site.clone(), node.role)).context("no such node")?;
        let mut words = vec!["token", "--site", &site];
        if role == Role::Agent {
            words.push("--agent");
        }
        let sponsor = self.living(at).context("no replica runs that could admit it")?;
        let token = sponsor.luc(&words)?;
        let mut words = vec!["join", token.trim()];
        words.extend(more);
        self.nodes.get(at).context("no such node")?.luc(&words).map(drop)
    }

    /// A replica that runs, other than this node: the first.
    #[must_use]
    pub fn living(&self, but: usize) -> Option<&Node> {
        let others = self.nodes.iter().enumerate().filter(|(at, _)| *at != but);
        others.map(|(_, node)| node).find(|node| node.role == Role::Replica && node.is_up())
    }

    /// The id of a node's replica, as its own status says.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn replica_of(&self, at: usize) -> Result<String> {
        let node = self.nodes.get(at).context("no such node")?;
        let status: Value = self.ask(node).get("/luc/v1/status")?;
        Ok(status["replica"].as_str().context("no replica")?.to_owned())
    }

    /// Waits until a replica that runs says that another's retirement has taken effect.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn is_retired(&self, at: usize, replica: &str, limit: Duration) -> Result<()> {
        let other = self.living(at).context("no replica runs")?;
        let asker = self.ask(other);
        eventually(limit, "the retirement to take effect", || {
            let Ok(status) = asker.get("/luc/v1/status") else { return Ok(false) };
            let found = status["replicas"].as_array().into_iter().flatten().find(|one| one["id"] == replica);
            Ok(found.is_some_and(|one| one["retirement"]["state"] == "retired"))
        })
        .map(drop)
    }
}
