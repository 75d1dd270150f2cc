//! Members come and go.

use anyhow::{Context, Result};

use super::{Nemesis, Undo};
use crate::cluster::node::Role;

impl Nemesis<'_> {
    /// A further replica joins at a site, by chance; it has no host, and no clients.
    pub(super) fn newcomer(&mut self, site: usize) -> Result<(usize, Undo)> {
        let cluster = self.cluster()?;
        let at = cluster.prepare(site, Role::Replica, false)?;
        match cluster.join(at) {
            Ok(()) => Ok((at, Undo::Newcomer)),
            Err(error) => {
                cluster.leave(at);
                Err(error)
            }
        }
    }

    /// It is stopped for good, and retired.
    pub(super) fn farewell(&mut self, at: usize) -> Result<()> {
        let cluster = self.cluster()?;
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.kill();
        let replica = node.replica.clone().context("it has no replica")?;
        if !cluster.retiring.contains(&replica) {
            cluster.retire(at, &replica)?;
        }
        cluster.leave(at);
        Ok(())
    }
}
