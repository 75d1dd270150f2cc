//! A network from its beginning to its end, for `wan up` and for the suite's own.

use std::io::Write;
use std::net::Ipv4Addr;

use super::run::run;
use super::site::{Network, SiteError, socket};
use super::switch::Switch;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Too many sites, or none.
    #[error("so many sites have no room in a network of 24 bits")]
    Room,
    /// One name twice.
    #[error("two sites have one name")]
    Twice,
    /// Namespaces.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// Devices and sockets.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Makes the sites, whose addresses are `first` and the next ones; tells them on standard output, then `up`; joins them until
/// it is told to end, and takes them away.
///
/// # Errors
/// [`UpError`].
pub fn up(net: &str, sites: Vec<String>, first: Ipv4Addr, seed: u64) -> Result<(), UpError> {
    let last = usize::from(first.octets()[3]) + sites.len();
    if sites.is_empty() || last > 255 {
        return Err(UpError::Room);
    }
    if (1..sites.len()).any(|n| sites[n..].contains(&sites[n - 1])) {
        return Err(UpError::Twice);
    }
    let addresses: Vec<Ipv4Addr> = (u32::from(first)..).take(sites.len()).map(Ipv4Addr::from).collect();
    let network = Network::take(net)?;
    let mut taps = Vec::new();
    for (index, (site, address)) in sites.iter().zip(&addresses).enumerate() {
        taps.push(network.site(index, site, *address, &addresses)?);
    }
    for (site, address) in sites.iter().zip(&addresses) {
        println!("{site} {address}");
    }
    println!("up");
    std::io::stdout().flush()?;
    run(Switch::new(sites, seed), taps, &socket(net))?;
    drop(network);
    Ok(())
}
