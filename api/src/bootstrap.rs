//! What a new cloud starts with: a project, its administrator, and flavors.

use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Assignment, Flavor, Kind, Project, RecordId, Site, User, site_record};
use luc_engine::replica::WHOLE_CLOUD;
use luc_engine::tx::{Refusal, Tx};
use luc_sync::join::mint_quota;
use uuid::Uuid;

/// The parent under which flavor ids are unique: apart from flavor names.
pub const FLAVOR_IDS: Uuid = Uuid::from_u128(1);

/// Flavors of a new cloud: id, name, vCPU, MiB of memory, GiB of disk. Nova's classic ones, and two for tests.
const FLAVORS: [(&str, &str, u64, u64, u64); 7] = [
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2_048, 20),
    ("3", "m1.medium", 2, 4_096, 40),
    ("4", "m1.large", 4, 8_192, 80),
    ("5", "m1.xlarge", 8, 16_384, 160),
    ("42", "m1.nano", 1, 128, 1),
    ("84", "m1.micro", 1, 192, 1),
];

/// A quota as an amount: instances, vCPU, MiB of memory.
#[must_use]
pub fn quota(instances: u64, vcpus: u64, memory_mib: u64) -> Amount {
    [(Dimension::Instances, instances), (Dimension::Vcpus, vcpus), (Dimension::MemoryMib, memory_mib)]
        .into_iter()
        .collect()
}

/// All that a project is limited in: as [`quota`], and server groups.
#[must_use]
pub fn project_quota(instances: u64, vcpus: u64, memory_mib: u64, server_groups: u64) -> Amount {
    quota(instances, vcpus, memory_mib).iter().chain([(Dimension::ServerGroups, server_groups)]).collect()
}

/// Writes the first records, as one entry. `ids` are random.
///
/// # Errors
/// [`Refusal`]; nothing was written.
pub fn found(
    tx: &mut Tx<'_>,
    password_hash: String,
    endpoint: &str,
    quota: &Amount,
    ids: &[Uuid; 10],
) -> Result<(), Refusal> {
    describe_site(tx, endpoint)?;
    let [project, user, assignment, flavors @ ..] = ids;
    let record =
        Project { name: "admin".into(), description: "The operators' own".into(), enabled: true, ..Project::default() };
    let project_record = tx.create(*project, record, &[])?;
    tx.bind(WHOLE_CLOUD, "admin", project_record)?;
    mint_quota(tx, *project, quota)?;
    let record =
        User { name: "admin".into(), enabled: true, password_hash, default_project: Some(*project), ..User::default() };
    let user_record = tx.create(*user, record, &[])?;
    tx.bind(WHOLE_CLOUD, "admin", user_record)?;
    tx.create(*assignment, Assignment { user: *user, project: *project, role: "admin".into() }, &[])?;
    for (id, (flavor_id, name, vcpus, ram_mib, disk_gib)) in flavors.iter().zip(FLAVORS) {
        let flavor = Flavor {
            flavor_id: flavor_id.into(),
            name: name.into(),
            vcpus,
            ram_mib,
            disk_gib,
            public: true,
            ..Flavor::default()
        };
        create_flavor(tx, *id, flavor)?;
    }
    Ok(())
}

/// Creates a flavor: its id and its name are both unique in the cloud.
///
/// # Errors
/// [`Refusal::NameTaken`] among others.
pub fn create_flavor(tx: &mut Tx<'_>, id: Uuid, flavor: Flavor) -> Result<(), Refusal> {
    let record = RecordId { kind: Kind::Flavor, id };
    let (flavor_id, name) = (flavor.flavor_id.clone(), flavor.name.clone());
    tx.create(id, flavor, &[])?;
    tx.bind(WHOLE_CLOUD, &name, record)?;
    tx.bind(FLAVOR_IDS, &flavor_id, record)
}

/// Writes down where this site's API is, if that is new.
///
/// # Errors
/// [`Refusal`].
pub fn describe_site(tx: &mut Tx<'_>, endpoint: &str) -> Result<(), Refusal> {
    let name = tx.site().to_string();
    let id = site_record(&name);
    if tx.view().held(id).is_none() {
        let site = Site { name, description: String::new(), endpoint: endpoint.into() };
        return tx.create(id.id, site, &[]).map(|_| ());
    }
    tx.update::<Site, Refusal>(id.id, |site| {
        site.endpoint = endpoint.into();
        Ok(())
    })
}
