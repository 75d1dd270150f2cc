//! What flavors and images ask of hosts, in Nova's own words.
//!
//! Flavors name what the aggregates of a host must have, by extra specs `aggregate_instance_extra_specs:KEY`. Unlike
//! Nova's filter this takes no key without that scope: such keys are notes of people as often as wishes. Images name
//! the architecture and the hypervisor that they run on, as properties.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::HostId;
use crate::record::{Aggregate, Host};
use crate::view::View;

/// The scope of extra specs that speak of aggregates.
const SCOPE: &str = "aggregate_instance_extra_specs:";

/// The extra specs that speak of aggregates: key, and what is asked of its value.
#[derive(Debug)]
pub(crate) struct AggregateWish<'a> {
    wanted: Vec<(&'a str, &'a str)>,
    /// What the aggregates of each host have. Several values of one key are apart in Nova's way, by commas.
    has: BTreeMap<HostId, BTreeMap<&'a str, BTreeSet<&'a str>>>,
}

impl<'a> AggregateWish<'a> {
    pub(crate) fn new(view: &'a View, extra_specs: &'a BTreeMap<String, String>) -> Self {
        let scoped = |(key, value): (&'a String, &'a String)| Some((key.strip_prefix(SCOPE)?, value.as_str()));
        let wanted: Vec<_> = extra_specs.iter().filter_map(scoped).collect();
        let mut has: BTreeMap<HostId, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
        if !wanted.is_empty() {
            for (_, aggregate) in view.all::<Aggregate>() {
                for host in hosts_of(aggregate) {
                    let of_host = has.entry(host).or_default();
                    for (key, values) in &aggregate.metadata {
                        of_host.entry(key).or_default().extend(values.split(',').map(str::trim));
                    }
                }
            }
        }
        Self { wanted, has }
    }

    /// Whether the host's aggregates have, for every key, a value that will do.
    pub(crate) fn is_met(&self, host: HostId) -> bool {
        self.wanted.iter().all(|(key, wish)| {
            let values = self.has.get(&host).and_then(|of_host| of_host.get(key));
            values.is_some_and(|values| values.iter().any(|value| spec_matches(value, wish)))
        })
    }
}

/// The hosts of an aggregate.
pub fn hosts_of(aggregate: &Aggregate) -> impl Iterator<Item = HostId> + '_ {
    aggregate.hosts.keys().filter_map(|id| uuid::Uuid::parse_str(id).ok()).map(HostId)
}

/// Whether a value is what an extra spec asks for: Nova's small language. Without an operator they must be equal; what
/// is no number never matches a numeric operator.
#[must_use]
pub fn spec_matches(value: &str, wish: &str) -> bool {
    let mut words = wish.split_whitespace();
    let operator = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    let first = rest.first().copied();
    let numbers = || Some((value.parse::<f64>().ok()?, first?.parse::<f64>().ok()?));
    let number = |test: fn(&f64, &f64) -> bool| numbers().is_some_and(|(a, b)| test(&a, &b));
    let text = |test: fn(&str, &str) -> bool| first.is_some_and(|first| test(value, first));
    match operator {
        // Nova's "=" is "at least".
        "=" | ">=" => number(f64::ge),
        "==" => number(f64::eq),
        "!=" => number(f64::ne),
        "<=" => number(f64::le),
        "s==" => text(|a, b| a == b),
        "s!=" => text(|a, b| a != b),
        "s<" => text(|a, b| a < b),
        "s<=" => text(|a, b| a <= b),
        "s>" => text(|a, b| a > b),
        "s>=" => text(|a, b| a >= b),
        "<in>" => text(|a, b| a.contains(b)),
        "<all-in>" => !rest.is_empty() && rest.iter().all(|word| value.contains(word)),
        // "<or> a <or> b": every second word is an alternative.
        "<or>" => rest.iter().step_by(2).any(|word| *word == value),
        _ => value == wish,
    }
}

/// Whether a host runs what an image asks for: architecture, hypervisor, its version, and kind of machine.
#[must_use]
pub fn image_fits(properties: &BTreeMap<String, String>, host: &Host) -> bool {
    let given = |names: [&str; 2]| names.iter().find_map(|name| properties.get(*name)).map(|text| text.trim());
    let architecture = given(["hw_architecture", "architecture"]);
    let hypervisor = given(["img_hv_type", "hypervisor_type"]);
    let mode = given(["hw_vm_mode", "vm_mode"]);
    let version = given(["img_hv_requested_version", "hypervisor_version_requires"]);
    architecture.is_none_or(|wanted| canonical(wanted) == canonical(&host.architecture))
        && hypervisor.is_none_or(|wanted| runs(host, wanted))
        && mode.is_none_or(|wanted| wanted.eq_ignore_ascii_case("hvm"))
        && version.is_none_or(|wanted| is_version(host.hypervisor_version, wanted))
}

/// One name for each architecture, of those that people use.
fn canonical(architecture: &str) -> String {
    let lower = architecture.to_ascii_lowercase();
    match lower.as_str() {
        "amd64" | "x64" | "x86-64" => "x86_64".into(),
        "arm64" => "aarch64".into(),
        "i386" | "i486" | "i586" | "x86" => "i686".into(),
        _ => lower,
    }
}

/// A host with KVM runs what was made for plain QEMU, as Nova has it; not the other way round.
fn runs(host: &Host, wanted: &str) -> bool {
    let wanted = wanted.to_ascii_lowercase();
    let has = host.hypervisor_type.to_ascii_lowercase();
    wanted == has || (has == "kvm" && wanted == "qemu")
}

/// Whether a version, as libvirt numbers it, is in a range such as `>=2.6,<9`. What is no range matches nothing.
fn is_version(number: u64, wanted: &str) -> bool {
    let has = [number / 1_000_000, number / 1_000 % 1_000, number % 1_000];
    wanted.split(',').map(str::trim).all(|part| {
        let operator = part.len() - part.trim_start_matches(['<', '>', '=', '!']).len();
        let (operator, version) = part.split_at(operator);
        let Some(version) = parse_version(version.trim()) else { return false };
        match operator {
            "<" => has < version,
            "<=" => has <= version,
            ">" => has > version,
            ">=" => has >= version,
            "==" | "=" => has == version,
            "!=" => has != version,
            _ => false,
        }
    })
}

fn parse_version(text: &str) -> Option<[u64; 3]> {
    let mut version = [0; 3];
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > version.len() {
        return None;
    }
    for (slot, part) in version.iter_mut().zip(parts) {
        *slot = part.parse().ok()?;
    }
    Some(version)
}
