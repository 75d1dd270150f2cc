//! Quotas: what operators want, and how the pools come to it.
//!
//! A quota is a wish in its project's record, and the rights in its pools. It grows at once: rights are minted. It
//! shrinks as far as rights are free: what is in use is never revoked, so a part may be **pending**. Until that is
//! burnt, new claims are held to the wish wherever it is known; a site that is cut off spends what it holds.
//!
//! One replica alone brings the pools to the wish, the one that took it down (its heir, once it is retired): were there
//! two, both would burn the same surplus. It burns what is free with it, asks the others for the rest, and goes on until
//! nothing is pending. So two sites that raise one quota apart end with what one of them said, not with the sum.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use luc_engine::id::{PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::tx::{Refusal, Shortage, Tx, shortage};
use luc_engine::view::View;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Object, Reply, empty, ok};
use crate::policy::{self, Action};

/// How often what is pending is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The quotas that Nova's clients expect and LUC does not limit: unlimited, which is the truth.
const UNLIMITED: [&str; 3] = ["injected_files", "injected_file_content_bytes", "injected_file_path_bytes"];
/// What is used up, and counted: pools.
const COUNTED: [(&str, Dimension); 4] = [
    ("instances", Dimension::Instances),
    ("cores", Dimension::Vcpus),
    ("ram", Dimension::MemoryMib),
    ("server_groups", Dimension::ServerGroups),
];

/// What is not used up, but how many each thing may have: a wish alone, looked at where one more is written. It is a limit for what
/// is known there: sites that are cut off from each other may go beyond it together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// Of a server.
    MetadataItems,
    /// Of a user, who works in the project.
    KeyPairs,
    /// Servers of a server group.
    ServerGroupMembers,
}

impl Limit {
    const ALL: [Self; 3] = [Self::MetadataItems, Self::KeyPairs, Self::ServerGroupMembers];

    fn name(self) -> &'static str {
        match self {
            Self::MetadataItems => "metadata_items",
            Self::KeyPairs => "key_pairs",
            Self::ServerGroupMembers => "server_group_members",
        }
    }

    /// As in Nova, if nobody has said otherwise.
    fn default(self) -> u64 {
        match self {
            Self::MetadataItems => 128,
            Self::KeyPairs => 100,
            Self::ServerGroupMembers => 10,
        }
    }

    /// The most that can be said.
    fn most(self) -> u64 {
        match self {
            Self::MetadataItems => 1_024,
            Self::KeyPairs | Self::ServerGroupMembers => MOST,
        }
    }

    /// How many a project allows.
    pub(crate) fn of(self, view: &View, project: Uuid) -> u64 {
        let said = view.get::<Project>(project).and_then(|project| project.quota.get(self.name()));
        said.copied().unwrap_or(self.default())
    }

    /// Whether a project allows one more than there are.
    pub(crate) fn allows_more(self, view: &View, project: Uuid, there_are: usize) -> bool {
        u64::try_from(there_are).is_ok_and(|there_are| there_are < self.of(view, project))
    }
}

/// The most that any quota can be.
const MOST: u64 = 1 << 40;

/// A project's quota as it is wanted and as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Quota {
    /// What operators want; what there is, if nobody has said.
    pub(crate) wanted: Amount,
    /// Minted and not burnt, over all its pools.
    pub(crate) capacity: Amount,
    /// Sum of the live claims.
    pub(crate) used: Amount,
}

impl Quota {
    pub(crate) fn of(view: &View, project: Uuid) -> Self {
        let mut quota = Self::default();
        for (_, pool) in view.ledger().quota_pools(project) {
            quota.capacity = quota.capacity.saturating_add(&pool.capacity());
            quota.used = quota.used.saturating_add(&pool.claimed);
        }
        let wish = view.get::<Project>(project).map(|project| &project.quota);
        let wanted =
            |name: &str, d: Dimension| wish.and_then(|wish| wish.get(name)).copied().unwrap_or(quota.capacity.get(d));
        quota.wanted = COUNTED.iter().map(|(name, d)| (*d, wanted(name, *d))).collect();
        quota
    }

    /// What is still to be burnt: rights over the wish that are in use, or held by others.
    pub(crate) fn pending(&self) -> Amount {
        self.capacity.saturating_sub(&self.wanted)
    }

    /// What may still be claimed under the wish, whoever holds the rights.
    pub(crate) fn room(&self) -> Amount {
        self.wanted.saturating_sub(&self.used)
    }

    /// Whether a claim keeps to the wish. Where rights are still to be burnt, some may be free and yet not to be spent.
    pub(crate) fn admits(&self, wanted: &Amount) -> Result<(), Box<Shortage>> {
        if self.pending().is_zero() || self.room().covers(wanted) {
            return Ok(());
        }
        Err(Box::new(Shortage {
            subject: None,
            wanted: wanted.clone(),
            capacity: self.wanted.clone(),
            claimed: self.used.clone(),
            free_here: self.room(),
            elsewhere: Vec::new(),
            unconfirmed: Vec::new(),
        }))
    }
}

/// The project that a path names; 400 if it is none, as Nova says.
pub(super) fn parse_project(app: &App, caller: &Caller, id: &str) -> Result<Uuid, Fault> {
    let id = Uuid::parse_str(id).map_err(|_| Fault::bad(format!("Project ID {id} is not a valid project.")))?;
    policy::check(caller, Action::Read, Some(id))?;
    if app.view().get::<Project>(id).is_none() {
        return Err(Fault::bad(format!("Project ID {} is not a valid project.", id.simple())));
    }
    Ok(id)
}

fn render_quota(
    project: Option<Uuid>,
    (capacity, limit): (&Amount, impl Fn(Limit) -> u64),
    version: Microversion,
    detail: Option<&Amount>,
) -> Value {
    let mut map = Map::new();
    let value = |limit: Value, used: u64| match detail {
        None => limit,
        Some(_) => json!({"limit": limit, "in_use": used, "reserved": 0}),
    };
    if let Some(project) = project {
        map.insert("id".into(), json!(project.simple().to_string()));
    }
    for (name, dimension) in COUNTED {
        let used = detail.map_or(0, |used| used.get(dimension));
        map.insert(name.into(), value(json!(capacity.get(dimension)), used));
    }
    for of in Limit::ALL {
        map.insert(of.name().into(), value(json!(limit(of)), 0));
    }
    if version.0 < 57 {
        for name in UNLIMITED {
            map.insert(name.into(), value(json!(-1), 0));
        }
    }
    if version.0 < 36 {
        for name in ["fixed_ips", "floating_ips", "security_groups", "security_group_rules"] {
            map.insert(name.into(), value(json!(-1), 0));
        }
    }
    json!({"quota_set": map})
}

pub(super) async fn quota(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(project): Path<String>,
) -> Reply {
    let project = parse_project(&app, &caller, &project)?;
    let view = app.view();
    let limits = (&Quota::of(&view, project).wanted, |limit: Limit| limit.of(&view, project));
    ok(&render_quota(Some(project), limits, version, None))
}

pub(super) async fn quota_detail(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(project): Path<String>,
) -> Reply {
    let project = parse_project(&app, &caller, &project)?;
    let view = app.view();
    let Quota { wanted, used, .. } = Quota::of(&view, project);
    let used = if on(SiteMutant::UsageOfOwn) { of_own(&view, project, app.node().me()) } else { used };
    ok(&render_quota(Some(project), (&wanted, |limit: Limit| limit.of(&view, project)), version, Some(&used)))
}

/// What one replica has claimed of a project's quota.
fn of_own(view: &View, project: Uuid, me: ReplicaId) -> Amount {
    let claims = view.children(Kind::Server, project).flat_map(|id| {
        let record = RecordId { kind: Kind::Server, id };
        view.ledger().claims_of(record).filter(|(id, _)| id.entry.author == me).map(|(_, claim)| claim)
    });
    let of_quota = |pool| view.ledger().quota_pools(project).any(|(id, _)| id == pool);
    let claims = claims.filter(|claim| of_quota(claim.pool));
    claims.fold(Amount::default(), |sum, claim| sum.saturating_add(&claim.amount))
}

pub(super) async fn default_quota(
    State(app): State<App>,
    _: Caller,
    Extension(version): Extension<Microversion>,
    Path(project): Path<String>,
) -> Reply {
    let id = Uuid::parse_str(&project).ok();
    ok(&render_quota(id, (&app.settings().default_quota, Limit::default), version, None))
}

/// The only class of quotas is what new projects get; it is set in the configuration of each site.
pub(super) async fn quota_class(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(class): Path<String>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let mut value = render_quota(None, (&app.settings().default_quota, Limit::default), version, None);
    let mut set = value["quota_set"].take();
    set["id"] = json!(class);
    ok(&json!({"quota_class_set": set}))
}

pub(super) async fn set_quota(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(project): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let project = parse_project(&app, &caller, &project)?;
    let given = body.inner("quota_set")?;
    let mut wanted = BTreeMap::new();
    for key in given.0.keys().filter(|key| !matches!(key.as_str(), "force" | "tenant_id" | "id")) {
        let counted = COUNTED.iter().map(|(name, _)| (*name, MOST));
        let all = counted.chain(Limit::ALL.map(|limit| (limit.name(), limit.most())));
        let most = all.clone().find(|(name, _)| name == key).map(|(_, most)| most).ok_or_else(|| {
            let limited: Vec<&str> = all.map(|(name, _)| name).collect();
            Fault::bad(format!("LUC does not limit {key:?}; it limits {}.", limited.join(", ")))
        })?;
        let n = given.number(key)?.filter(|n| *n <= most);
        let n = n.ok_or_else(|| Fault::bad(format!("{key:?} must be a number from 0 to {most}.")))?;
        wanted.insert(key.clone(), n);
    }
    change_quota(&app, project, wanted).await?;
    let view = app.view();
    let limits = (&Quota::of(&view, project).wanted, |limit: Limit| limit.of(&view, project));
    let mut value = render_quota(None, limits, version, None);
    if let Some(set) = value["quota_set"].as_object_mut() {
        set.remove("id");
    }
    ok(&value)
}

pub(super) async fn reset_quota(State(app): State<App>, caller: Caller, Path(project): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let project = parse_project(&app, &caller, &project)?;
    let default = &app.settings().default_quota;
    let mut wanted: BTreeMap<String, u64> = COUNTED.iter().map(|(name, d)| ((*name).into(), default.get(*d))).collect();
    wanted.extend(Limit::ALL.map(|limit| (limit.name().into(), limit.default())));
    change_quota(&app, project, wanted).await?;
    empty(axum::http::StatusCode::ACCEPTED)
}

/// Takes down what is wanted, and does what can be done at once: here, then with what others hand over. What is left is
/// pending, and [`tend`] goes on with it.
async fn change_quota(app: &App, project: Uuid, changes: BTreeMap<String, u64>) -> Result<(), Fault> {
    app.transact(move |tx| {
        let wanted = Quota::of(tx.view(), project).wanted;
        let me = tx.me().to_string();
        tx.update::<Project, Fault>(project, |project| {
            // What was never set stands as it is now: another site's change must not move it.
            project.quota.extend(COUNTED.iter().map(|(name, d)| ((*name).to_owned(), wanted.get(*d))));
            project.quota.extend(changes);
            project.quota_by = me;
            Ok(())
        })?;
        Ok(settle(tx, project)?)
    })
    .await?;
    ask_and_settle(app, project).await
}

/// Mints what is missing and burns what is over and free here, as one entry.
fn settle(tx: &mut Tx<'_>, project: Uuid) -> Result<(), Refusal> {
    let (me, quota) = (tx.me(), Quota::of(tx.view(), project));
    let pools: Vec<PoolId> = tx.view().ledger().quota_pools(project).map(|(id, _)| id).collect();
    let more = quota.wanted.saturating_sub(&quota.capacity);
    if !more.is_zero() {
        match pools.iter().find(|pool| pool.entry.author == me) {
            Some(pool) => tx.grow(*pool, more)?,
            // The root is elsewhere: what is added is a pool of this replica's, and they count together (A2).
            None => luc_sync::join::mint_quota(tx, project, &more)?,
        }
    }
    let mut less = quota.pending();
    for pool in pools {
        let free = tx.view().ledger().pool(pool).map(|pool| pool.free(me)).unwrap_or_default();
        let burn = less.min(&free);
        if !burn.is_zero() {
            tx.burn(pool, burn.clone())?;
            less = less.saturating_sub(&burn);
        }
    }
    Ok(())
}

/// Asks others for rights that are to be burnt, and burns what came.
async fn ask_and_settle(app: &App, project: Uuid) -> Result<(), Fault> {
    let view = app.view();
    let pending = Quota::of(&view, project).pending();
    if pending.is_zero() {
        return Ok(());
    }
    let pools: Vec<PoolId> = view.ledger().quota_pools(project).map(|(id, _)| id).collect();
    let mut short = shortage(&view, app.node().me(), &pools, &pending);
    let is_over = |free: &Amount| !free.min(&pending).is_zero();
    short.elsewhere.retain(|(_, _, free)| is_over(free));
    let until = app.net().rights_deadline();
    let came = app.net().request_rights(std::slice::from_ref(&short), until).await.came;
    if came || is_over(&short.free_here) { app.transact(move |tx| Ok(settle(tx, project)?)).await } else { Ok(()) }
}

/// The projects whose pools are not what is wanted, and whose wish this replica has to bring about.
fn owed(view: &View, me: ReplicaId) -> Vec<Uuid> {
    let mine = |project: &Project| project.quota_by.parse().is_ok_and(|by| view.retired().acts_for(me, by));
    let wished = view.all::<Project>().filter(|(_, project)| !project.quota.is_empty() && mine(project));
    let off = |id: &Uuid| {
        let quota = Quota::of(view, *id);
        COUNTED.iter().any(|(_, d)| quota.wanted.get(*d) != quota.capacity.get(*d))
    };
    wished.map(|(id, _)| id).filter(off).collect()
}

/// Goes on with what is pending, for ever.
pub(crate) async fn tend(app: App) {
    loop {
        tokio::time::sleep(AGAIN).await;
        if app.node().failure().is_some() || app.node().fence().is_some() {
            continue;
        }
        for project in owed(&app.view(), app.node().me()) {
            let settled = match app.transact(move |tx| Ok(settle(tx, project)?)).await {
                Ok(()) => ask_and_settle(&app, project).await,
                failed => failed,
            };
            if let Err(fault) = settled {
                tracing::warn!(%project, reason = fault.message, "a quota is not yet what is wanted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bootstrap::quota as amount;

    const PROJECT: Uuid = Uuid::from_u128(7);

    #[test]
    fn one_replica_alone_brings_the_pools_to_what_is_wanted() {
        let mut replica = crate::testing::founder();
        let me = replica.identity().replica();
        let mut write = |by: ReplicaId, instances: u64| {
            let wish = BTreeMap::from([("instances".to_owned(), instances)]);
            let written = replica.transact::<_, Refusal>(2, |tx| {
                if tx.view().get::<Project>(PROJECT).is_none() {
                    tx.create(PROJECT, Project::default(), &[])?;
                    luc_sync::join::mint_quota(tx, PROJECT, &amount(10, 20, 30))?;
                }
                tx.update::<Project, Refusal>(PROJECT, |project| {
                    (project.quota, project.quota_by) = (wish, by.to_string());
                    Ok(())
                })
            });
            written.unwrap();
            replica.flush().unwrap();
            replica.view().clone()
        };
        let other = ReplicaId(Uuid::from_u128(9));
        let view = write(other, 4);
        assert_eq!(Quota::of(&view, PROJECT).pending(), amount(6, 0, 0));
        assert!(owed(&view, me).is_empty(), "two would burn the same surplus");
        assert_eq!(owed(&write(me, 4), me), [PROJECT]);
        assert_eq!(owed(&write(me, 12), me), [PROJECT], "what another burnt too much is minted again");
        assert!(owed(&write(me, 10), me).is_empty(), "nothing is owed once it is so");
    }

    #[test]
    fn claims_are_held_to_the_wish_while_a_part_of_it_is_pending() {
        let quota = |capacity| Quota { wanted: amount(3, 20, 30), capacity, used: amount(3, 3, 3) };
        let one = amount(1, 1, 1);
        let short = quota(amount(5, 20, 30)).admits(&one).unwrap_err();
        assert_eq!((short.capacity.get(Dimension::Instances), short.claimed.get(Dimension::Instances)), (3, 3));
        assert!(!short.suffices_elsewhere(), "nobody is asked for rights that are to be burnt");
        assert!(quota(amount(5, 20, 30)).admits(&amount(0, 1, 1)).is_ok(), "what is not short is let through");
    }
}
