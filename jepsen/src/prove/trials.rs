//! How each seeded bug of a site is met, and which checkers have to notice.

/// A bug, how to meet it, and who has to notice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// Its name, of [`luc_engine::site_mutant`] or [`luc_engine::mutant`].
    pub(super) bug: &'static str,
    /// What clients do.
    pub(super) workload: &'static str,
    /// Which faults.
    pub(super) nemesis: &'static str,
    /// From one to the next.
    pub(super) every: &'static str,
    /// How lines between sites are.
    pub(super) lines: &'static str,
    /// Operations a second.
    pub(super) rate: &'static str,
    /// How long clients work, seconds.
    pub(super) time: u64,
    /// All of these checkers say so: workload and name.
    pub(super) named: &'static [&'static str],
}

impl Trial {
    const fn new(
        bug: &'static str,
        workload: &'static str,
        nemesis: &'static str,
        time: u64,
        named: &'static [&'static str],
    ) -> Self {
        Self { bug, workload, nemesis, every: "8s", lines: "delay=10ms jitter=1ms", rate: "30", time, named }
    }

    /// What makes two trials the same run but for their bugs.
    pub(super) fn setting(&self) -> (&str, &str, &str, &str) {
        (self.workload, self.nemesis, self.lines, self.rate)
    }
}

/// Long lines: who asks elsewhere at once is there before its own writes.
const FAR: &str = "delay=400ms jitter=100ms";

/// Of the site's own bugs and of the engine's: those that clients can meet.
pub(super) const TRIALS: &[Trial] = &[
    Trial::new("AckBeforeFlush", "set", "kill", 40, &["set lost", "cloud lost-acknowledgement"]),
    Trial::new("FlushSkipped", "set", "kill", 40, &["cloud no-going-back"]),
    Trial::new(
        "DeleteForgotten",
        "set,lifecycle",
        "none",
        20,
        &["set resurrected", "cloud resurrection", "lifecycle wished"],
    ),
    Trial::new("StaleRead", "set,register", "none", 20, &["set stale", "register monotone", "cloud session-order"]),
    Trial { lines: FAR, ..Trial::new("FrontierIgnored", "causal", "none", 20, &["causal session"]) },
    Trial::new("RevocationIgnored", "auth", "none", 40, &["auth revoked-works"]),
    Trial::new("TokenForgiven", "auth", "none", 40, &["auth works-again"]),
    Trial::new("ForeignTokenRefused", "auth", "none", 30, &["auth valid-refused"]),
    Trial::new("CertificateKept", "auth", "revoke", 20, &["auth certificate-works"]),
    Trial { lines: FAR, ..Trial::new("OwnNameFirst", "auth", "none", 30, &["auth one-user"]) },
    Trial::new("AsksEverybody", "set", "partition", 40, &["cloud availability"]),
    Trial::new("DomainLeft", "lifecycle", "none", 20, &["lifecycle runs-once", "cloud hypervisor"]),
    Trial::new("ObservationLost", "lifecycle", "none", 20, &["lifecycle settled"]),
    Trial::new("ImageUnchecked", "images", "none", 20, &["images checksum"]),
    Trial::new("ImageUnfetched", "images", "none", 20, &["images image-lost", "images boots"]),
    Trial::new("AddressTwice", "images", "none", 20, &["images unique-addresses", "cloud unique-addresses"]),
    Trial::new(
        "HostOverbooked",
        "claims",
        "none",
        25,
        &["claims double-booking", "claims overbooked-view", "cloud no-double-booking"],
    ),
    Trial::new("RightsUnchecked", "quota", "none", 20, &["quota quota-exceeded", "cloud no-double-booking"]),
    Trial::new("UsageOfOwn", "quota", "none", 20, &["quota usage"]),
    Trial::new("RequestTwice", "set", "none", 15, &["set duplicated"]),
    Trial::new("ListedTwice", "set", "none", 15, &["set duplicated", "cloud duplicate"]),
    Trial::new("MetadataMixed", "register,causal", "none", 15, &["register garbage", "causal garbage"]),
    Trial::new("StaleWrite", "register,causal", "none", 25, &["register lost-update", "causal lost-update"]),
    Trial::new(
        "ChangeSkipped",
        "register,causal,lifecycle",
        "none",
        20,
        &["register converged", "causal converged", "lifecycle one-state", "cloud equal-digests"],
    ),
    Trial::new("HolesKept", "set", "partition", 30, &["cloud convergence"]),
    Trial::new("ReleaseTwice", "quota", "none", 20, &["cloud conservation"]),
    Trial::new("TransferTwice", "quota", "none", 20, &["cloud conservation"]),
    Trial::new("ReleaseNotStored", "set", "kill", 40, &["cloud conservation"]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use luc_engine::mutant::Mutant;
    use luc_engine::site_mutant::SiteMutant;

    use super::*;

    #[test]
    fn every_trial_is_of_a_bug_workloads_and_checkers_that_there_are_and_every_bug_of_sites_is_tried() {
        let workloads: Vec<_> = crate::workload::all().iter().map(|workload| workload.name()).collect();
        let checkers: BTreeSet<String> =
            crate::prove::checkers().map(|(workload, checker)| format!("{workload} {checker}")).collect();
        for trial in TRIALS {
            let of_engine = Mutant::ALL.iter().any(|one| format!("{one:?}") == trial.bug);
            assert!(of_engine || SiteMutant::named(trial.bug).is_some(), "{}", trial.bug);
            for workload in trial.workload.split(',') {
                assert!(workloads.contains(&workload), "{workload}");
            }
            for name in trial.named {
                assert!(checkers.contains(*name), "{name}");
                let of = name.split(' ').next().unwrap_or_default();
                assert!(of == "cloud" || trial.workload.split(',').any(|one| one == of), "{}: {name}", trial.bug);
            }
        }
        for mutant in SiteMutant::ALL {
            assert!(TRIALS.iter().any(|trial| trial.bug == format!("{mutant:?}")), "{mutant:?} is never tried");
        }
        assert_eq!(crate::prove::sites::unnamed(), BTreeSet::new(), "these have no bug to their names");
    }
}
