//! Who may do what: one table.
//!
//! Roles are Keystone's three: `admin` may everything in the cloud (the role in any project makes an administrator, as
//! OpenStack's default policy has it), `member` may use what belongs to its project, `reader` may look at it.

use uuid::Uuid;

use crate::auth::Caller;
use crate::http::Fault;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at what belongs to a project.
    Read,
    /// Change what belongs to a project.
    Write,
    /// What concerns the cloud: hosts, flavors, quotas, users, other projects.
    Administer,
}

/// Whether a caller may do it to what belongs to `owner` (for [`Action::Administer`], nobody).
#[must_use]
pub fn allows(caller: &Caller, action: Action, owner: Option<Uuid>) -> bool {
    let own = owner.is_none() || owner == caller.project;
    match action {
        _ if caller.is_admin => true,
        Action::Read => own && caller.may_read,
        Action::Write => own && caller.may_write,
        Action::Administer => false,
    }
}

/// As [`allows`], as a fault.
///
/// # Errors
/// 403.
pub fn check(caller: &Caller, action: Action, owner: Option<Uuid>) -> Result<(), Fault> {
    if allows(caller, action, owner) {
        Ok(())
    } else {
        Err(Fault::forbidden("Policy doesn't allow this to be performed."))
    }
}
