//! Faults of processes.

use super::Nemesis;
use crate::run::Fault;

impl Nemesis<'_> {
    /// Mostly one, sometimes up to half of the nodes that no other fault has, by chance; none if there are none.
    pub(super) fn some_nodes(&mut self, what: &str) -> Option<(Fault, Vec<usize>)> {
        let mut free = self.free_nodes();
        let most = u64::try_from(free.len().div_ceil(2)).ok()?;
        let count = if self.rng.chance(700) { 1 } else { self.rng.between(1, most.max(1)) };
        let mut nodes = Vec::new();
        for _ in 0..count.min(most) {
            let at = usize::try_from(self.rng.below(u64::try_from(free.len()).ok()?)).ok()?;
            nodes.push(free.swap_remove(at));
        }
        (!nodes.is_empty()).then(|| (self.hitting(&nodes, what), nodes))
    }

    /// A fault of these nodes.
    pub(super) fn hitting(&self, nodes: &[usize], what: &str) -> Fault {
        let all = self.around.cluster.as_deref().map(|cluster| cluster.nodes.as_slice()).unwrap_or_default();
        let hit = || nodes.iter().filter_map(|at| all.get(*at));
        let names: Vec<&str> = hit().map(|node| node.name.as_str()).collect();
        let sites: std::collections::BTreeSet<String> = hit().map(|node| node.site.clone()).collect();
        let detail = format!("{what}: {}", names.join(", "));
        Fault { sites: sites.into_iter().collect(), detail, ..Fault::default() }
    }

    /// Nodes that no fault has now.
    pub(super) fn free_nodes(&self) -> Vec<usize> {
        let count = self.around.cluster.as_deref().map_or(0, |cluster| cluster.nodes.len());
        (0..count).filter(|at| !self.open.iter().any(|open| open.nodes.contains(at))).collect()
    }
}
