//! Domain XML, and LUC's label in it.
//!
//! Everything that a user chose goes through the XML library's escaping, and characters that XML cannot hold are left
//! out. Disks are named by what they are, never probed: each says its format, so a guest that writes a qcow2 header
//! into its raw disk gains nothing.

use std::io;
use std::path::Path;

use luc_engine::id::{ClaimId, CloudId, EntryId, HostId, ReplicaId};
use luc_engine::record::Server;
use quick_xml::Reader;
use quick_xml::Writer;
use quick_xml::events::{BytesText, Event};
use uuid::Uuid;

/// Names LUC's element in a domain's `<metadata>`.
pub const NAMESPACE: &str = "urn:luc:domain:1";
/// Its prefix.
pub const PREFIX: &str = "luc";

/// By whom a domain is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainType {
    /// By the processor (libvirt's `kvm`).
    Kvm,
    /// By emulation (libvirt's `qemu`).
    Qemu,
    /// By nobody: libvirt's simulated hypervisor.
    Test,
}

impl DomainType {
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Test => "test",
        }
    }
}

/// Whose domain it is, and which order it follows. Written into the domain, so that an agent that lost everything
/// finds its machines again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The cloud.
    pub cloud: CloudId,
    /// The host.
    pub host: HostId,
    /// The server.
    pub server: Uuid,
    /// The claim that it runs under.
    pub claim: ClaimId,
    /// The placement epoch of its order.
    pub epoch: u64,
}

impl Label {
    fn attributes(&self) -> [(&'static str, String); 5] {
        let ClaimId { entry: EntryId { author, number }, index } = self.claim;
        [
            ("cloud", self.cloud.to_string()),
            ("host", self.host.to_string()),
            ("server", self.server.to_string()),
            ("claim", format!("{author}:{number}:{index}")),
            ("epoch", self.epoch.to_string()),
        ]
    }

    /// As libvirt takes it for a domain that exists.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn to_element(&self) -> io::Result<String> {
        let mut writer = Writer::new(Vec::new());
        let attributes = self.attributes();
        let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
        writer.create_element("server").with_attributes(attributes).write_empty()?;
        String::from_utf8(writer.into_inner()).map_err(io::Error::other)
    }

    /// Reads a label; none if it is not one.
    #[must_use]
    pub fn parse(element: &str) -> Option<Self> {
        let mut reader = Reader::from_str(element);
        let start = loop {
            match reader.read_event().ok()? {
                Event::Start(start) | Event::Empty(start) => break start.into_owned(),
                Event::Eof => return None,
                _ => {}
            }
        };
        let get = |name: &str| -> Option<String> {
            let attribute = start.try_get_attribute(name).ok()??;
            Some(attribute.unescape_value().ok()?.into_owned())
        };
        let claim = get("claim")?;
        let mut parts = claim.split(':');
        let author: ReplicaId = parts.next()?.parse().ok()?;
        let number = parts.next()?.parse().ok()?;
        let index = parts.next()?.parse().ok()?;
        Some(Self {
            cloud: get("cloud")?.parse().ok()?,
            host: get("host")?.parse().ok()?,
            server: get("server")?.parse().ok()?,
            claim: ClaimId { entry: EntryId { author, number }, index },
            epoch: get("epoch")?.parse().ok()?,
        })
    }
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// `qcow2` or `raw`.
    pub format: &'a str,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// What a domain is made of.
#[derive(Clone, Debug)]
pub struct DomainSpec<'a> {
    /// Whose it is.
    pub label: Label,
    /// The record.
    pub server: &'a Server,
    /// By whom it is executed.
    pub domain_type: DomainType,
    /// libvirt's machine type, e.g. `pc` or `q35`.
    pub machine: &'a str,
    /// Disks in the guest's order: vda, vdb, …
    pub disks: &'a [Disk<'a>],
    /// Where the serial console is logged.
    pub console: Option<&'a Path>,
}

type Sink = Writer<Vec<u8>>;

/// Writes a domain.
///
/// # Errors
/// A path that is not UTF-8 cannot be written; nothing else fails, it is written to memory.
pub fn domain(spec: &DomainSpec<'_>) -> io::Result<String> {
    let mut writer = Writer::new(Vec::new());
    let root = writer.create_element("domain").with_attribute(("type", spec.domain_type.name()));
    root.write_inner_content(|w| {
        let flavor = &spec.server.flavor;
        text(w, "name", &format!("luc-{}", spec.label.server))?;
        text(w, "uuid", &spec.label.server.to_string())?;
        text(w, "title", &printable(&spec.server.name))?;
        w.create_element("metadata").write_inner_content(|w| metadata(w, &spec.label))?;
        let memory = BytesText::from_escaped(flavor.ram_mib.max(1).to_string());
        w.create_element("memory").with_attribute(("unit", "MiB")).write_text_content(memory)?;
        text(w, "vcpu", &flavor.vcpus.max(1).to_string())?;
        if spec.domain_type == DomainType::Test {
            return w.create_element("os").write_inner_content(|w| text(w, "type", "hvm")).map(|_| ());
        }
        hardware(w, spec)
    })?;
    String::from_utf8(writer.into_inner()).map_err(io::Error::other)
}

fn metadata(w: &mut Sink, label: &Label) -> io::Result<()> {
    let attributes = label.attributes();
    let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
    let name = format!("{PREFIX}:server");
    let element = w.create_element(&name).with_attribute((format!("xmlns:{PREFIX}").as_str(), NAMESPACE));
    element.with_attributes(attributes).write_empty().map(|_| ())
}

fn hardware(w: &mut Sink, spec: &DomainSpec<'_>) -> io::Result<()> {
    w.create_element("os").write_inner_content(|w| {
        let kind = w.create_element("type").with_attributes([("arch", "x86_64"), ("machine", spec.machine)]);
        kind.write_text_content(BytesText::new("hvm"))?;
        empty(w, "boot", &[("dev", "hd")])
    })?;
    w.create_element("features").write_inner_content(|w| {
        empty(w, "acpi", &[])?;
        empty(w, "apic", &[])?;
        if spec.domain_type == DomainType::Qemu {
            // QEMU's own choice is up to half the host's memory for each guest.
            let cache = BytesText::new("32");
            w.create_element("tcg").write_inner_content(|w| {
                w.create_element("tb-cache").with_attribute(("unit", "MiB")).write_text_content(cache).map(|_| ())
            })?;
        }
        Ok(())
    })?;
    if spec.domain_type == DomainType::Kvm {
        // As close to the host as can still be moved to its like.
        empty(w, "cpu", &[("mode", "host-model")])?;
    }
    empty(w, "clock", &[("offset", "utc")])?;
    text(w, "on_poweroff", "destroy")?;
    text(w, "on_reboot", "restart")?;
    text(w, "on_crash", "destroy")?;
    w.create_element("devices").write_inner_content(|w| devices(w, spec)).map(|_| ())
}

fn devices(w: &mut Sink, spec: &DomainSpec<'_>) -> io::Result<()> {
    for (disk, letter) in spec.disks.iter().zip('a'..='z') {
        w.create_element("disk").with_attributes([("type", "file"), ("device", "disk")]).write_inner_content(|w| {
            empty(w, "driver", &[("name", "qemu"), ("type", disk.format), ("discard", "unmap")])?;
            empty(w, "source", &[("file", utf8(disk.path)?)])?;
            // All disks are virtio, the config-drive too: a guest needs no further driver to read it.
            empty(w, "target", &[("dev", &format!("vd{letter}")), ("bus", "virtio")])?;
            if disk.read_only { empty(w, "readonly", &[]) } else { Ok(()) }
        })?;
    }
    empty(w, "controller", &[("type", "usb"), ("model", "none")])?;
    w.create_element("serial").with_attribute(("type", "pty")).write_inner_content(|w| {
        if let Some(console) = spec.console {
            empty(w, "log", &[("file", utf8(console)?), ("append", "on")])?;
        }
        empty(w, "target", &[("port", "0")])
    })?;
    let console = w.create_element("console").with_attribute(("type", "pty"));
    console.write_inner_content(|w| empty(w, "target", &[("type", "serial"), ("port", "0")]))?;
    empty(w, "memballoon", &[("model", "virtio")])?;
    w.create_element("rng").with_attribute(("model", "virtio")).write_inner_content(|w| {
        let backend = w.create_element("backend").with_attribute(("model", "random"));
        backend.write_text_content(BytesText::new("/dev/urandom")).map(|_| ())
    })?;
    Ok(())
}

fn text(w: &mut Sink, name: &str, value: &str) -> io::Result<()> {
    w.create_element(name).write_text_content(BytesText::new(value)).map(|_| ())
}

fn empty(w: &mut Sink, name: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
    w.create_element(name).with_attributes(attributes.iter().copied()).write_empty().map(|_| ())
}

fn utf8(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other(format!("the path {} is not UTF-8", path.display())))
}

/// libvirt refuses line breaks in a title, and XML most control characters.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn label() -> Label {
        let author = ReplicaId(Uuid::from_u128(7));
        let claim = ClaimId { entry: EntryId { author, number: 9 }, index: 3 };
        let (cloud, host) = (CloudId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)));
        Label { cloud, host, server: Uuid::from_u128(3), claim, epoch: 4 }
    }

    #[test]
    fn a_label_survives_being_written_and_read() {
        assert_eq!(Label::parse(&label().to_element().unwrap()), Some(label()));
        for bad in ["", "<server/>", "<server cloud='x'/>", "no xml <", "<a b='c"] {
            assert_eq!(Label::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_hostile_name_stays_a_name() {
        let name = "</title><devices>&\"'\u{1}\n<disk/>".to_owned();
        let server = Server { name, ..Server::default() };
        let disk = Disk { path: Path::new("/x/<&>\"'"), format: "qcow2", read_only: true };
        let domain_type = DomainType::Qemu;
        let disks = [disk];
        let spec =
            DomainSpec { label: label(), server: &server, domain_type, machine: "pc", disks: &disks, console: None };
        let xml = domain(&spec).unwrap();
        assert_eq!(xml.matches("<devices>").count(), 1, "{xml}");
        assert_eq!(xml.matches("<disk ").count(), 1);
        assert!(!xml.contains('\u{1}') && !xml.contains('\n'));
        let mut reader = Reader::from_str(&xml);
        while reader.read_event().unwrap() != Event::Eof {}
    }
}
